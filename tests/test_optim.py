"""Learning rates by layer, and what is decayed."""

from __future__ import annotations

import pytest
import torch

from model.distributed import ALONE
from model.learner import Learner
from model.optim import make_optimiser, set_lr
from tests.tiny import tiny_config


def rates(**changes) -> dict[str, float]:
    """Learning rate of each parameter where the schedule says 1."""
    config = tiny_config(encoder={"depth": 3}, **changes)
    model = Learner(config, torch.device("cpu"), ALONE).model
    optimiser = make_optimiser(model, config)
    set_lr(optimiser.param_groups, 1.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(p)]: group["lr"] for group in optimiser.param_groups for p in group["params"]}
    assert found.keys() == set(names.values())
    return found


def test_without_layer_decay_all_layers_learn_alike():
    assert set(rates().values()) == {1.0}


def test_layer_decay_slows_each_layer_by_the_factor_from_the_decoder_down_to_the_embedding():
    found = rates(layer_decay=0.5)
    by_layer = [
        {rate for name, rate in found.items() if name.startswith(start)}
        for start in ("embed.", "encoder.blocks.0.", "encoder.blocks.1.", "encoder.blocks.2.", "encoder.norm.")
    ]
    assert by_layer == [{0.0625}, {0.125}, {0.25}, {0.5}, {1.0}]
    assert {rate for name, rate in found.items() if not name.startswith(("embed", "encoder"))} == {1.0}


@pytest.mark.parametrize("layer_decay", [None, 0.8])
def test_only_matrices_are_decayed(layer_decay):
    config = tiny_config(weight_decay=0.3, layer_decay=layer_decay, encoder={"sensors": ["a", "b"]})
    model = Learner(config, torch.device("cpu"), ALONE).model
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = make_optimiser(model, config).param_groups
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {name for name, p in model.named_parameters() if name.endswith("weight") and p.ndim == 2}
    assert {group["weight_decay"] for group in groups} == {0.3, 0.0}
