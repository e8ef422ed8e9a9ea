"""The benchmark compares like with like: the plain step computes what ours computes. Nothing is timed here."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.losses import unpatchify
from model.metrics import Level
from model.trainer import Trainer
from tests.metric_names import BATCH
from tests.tiny import tiny_config

SCRIPTS = Path(__file__).parent.parent / "scripts"
PREFIXED = {"name": "vit_tiny_patch16_224", "patch_size": 8}  # with a class token and learnt positions


@pytest.fixture
def scripts(monkeypatch):
    """Imports a script by its name, as a script finds its neighbours."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module


def tiny_vit_config(**changes):
    return tiny_config(encoder=PREFIXED | {"width": 128, "depth": 4, "heads": 4}, **changes)


@pytest.mark.parametrize("make_config", [tiny_config, tiny_vit_config])
def test_the_plain_step_has_the_losses_of_ours_over_several_updates(scripts, make_config):
    config = make_config(epochs=1, warmup_epochs=0.5, alpha=0.3)
    trainer = Trainer(config)
    plain = scripts("plain_trainer").PlainTrainer(config, trainer.clips, trainer.model, trainer.device)
    given = []
    hook = trainer.model.register_forward_pre_hook(
        lambda model, inputs: given.append(inputs) if model.training else None
    )
    ours = [event.values for event in trainer.run_epoch() if event.level is Level.BATCH]
    hook.remove()

    assert len(ours) == len(given) == 6
    for row, (patches, static_order, dynamic_order, *_) in zip(ours, given, strict=True):
        clips = unpatchify(patches, config.encoder.patch, config.grid).permute(0, 1, 4, 2, 3)
        assert plain.step(clips, static_order, dynamic_order) == pytest.approx(row, rel=1e-5)
    trained, theirs, start = (
        model.encoder.blocks[0].attn.qkv.weight for model in (trainer.model, plain.model, Trainer(config).model)
    )
    torch.testing.assert_close(theirs, trained, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(trained, start, rtol=1e-1, atol=1e-3)  # the updates changed the weights, and alike


def test_the_plain_trainer_reads_normalised_clips_and_logs_all_batch_metrics(scripts):
    config = tiny_config(data={"hflip": 0.0})
    trainer = Trainer(config)
    module = scripts("plain_trainer")
    dataset = module.PlainClips(trainer.clips, hflip=0.0, generator=torch.Generator())
    patches = trainer.batches.plain(torch.arange(len(dataset))).patches
    ours = unpatchify(patches, config.encoder.patch, config.grid).permute(0, 1, 4, 2, 3)
    torch.testing.assert_close(torch.stack([dataset[number] for number in range(len(dataset))]), ours)

    rows = list(module.PlainTrainer(config, trainer.clips, trainer.model, trainer.device).run(10))
    assert [set(row) for row in rows] == [set(BATCH)] * 10  # the 6 batches of an epoch, and on


@pytest.mark.parametrize("make_config", [tiny_config, tiny_vit_config])
def test_the_formula_counts_the_flops_of_a_forward_pass(scripts, make_config):
    config = make_config()
    trainer = Trainer(config)
    patches = torch.zeros(1, config.num_patches, 4, 3 * config.encoder.patch**2)
    order = torch.arange(config.num_patches)[None]
    # as plain matrix products: not every release of torch counts each of its fused kernels
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        trainer.model(patches, order, order, config.num_patches - config.num_masked)
    assert scripts("bench_trainer").forward_flops(config, trainer) == counter.get_total_flops()
