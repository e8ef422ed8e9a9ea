"""What a spec may say and probably does not mean."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from model.config import TrainConfig
from model.configfile import field_value
from sweep.grammar import distribution_of
from sweep.search_checks import search_warnings
from sweep.space import Space
from sweep.trial_command import TRIAL_MODULE

if TYPE_CHECKING:  # sweep.spec imports this module
    from sweep.spec import SweepSpec

CHANGES_EVALUATION = ("data.", "encoder.patch_size", "norm_pix_loss")  # other clips, or another target
KEEPS_EVALUATION = ("data.hflip", "data.vflip", "data.clips_per_epoch", "data.store_dir")
TRAINING_LOSSES = ("epoch/train_loss", "epoch/best_loss_so_far", "summary/best_loss")
# metrics.md, "Why the objective does not use the training loss"
SHIFTS_TRAINING_LOSS = ("alpha", "beta", "mask_ratio", "mask_kind", "mode", "weighting", "norm_pix_loss")


def warnings_of(spec: SweepSpec, engine: Literal["run", "scheduler", "wandb"] = "run") -> Iterator[str]:
    """One sentence each, with what to write instead.

    Args:
        engine: what will search: python -m sweep.run, our scheduler behind W&B's agents, or W&B's own server.
    """
    if engine == "run":
        yield from _program_warnings(spec)
    searched = spec.space.parameters
    shifting = [name for name in SHIFTS_TRAINING_LOSS if name in searched]
    if spec.objective.loss == "train" and spec.metric.name == "objective/value" and shifting:
        yield (
            f"objective.loss: train does not compare across {', '.join(shifting)}, which the sweep varies: "
            "the searcher would learn to cheat, not to train. Write objective.loss: reference."
        )
    if spec.metric.name in TRAINING_LOSSES and shifting:
        yield (
            f"metric.name: {spec.metric.name} does not compare across {', '.join(shifting)}, which the sweep varies. "
            "Write objective/value or eval/reference_loss."
        )
    if spec.metric.name.endswith("_skill") and spec.metric.goal == "minimize":
        yield f"metric.goal: {spec.metric.name} is better when higher. Write goal: maximize."
    if {"alpha", "beta"} <= searched.keys():
        yield (
            "alpha and beta are both searched, but under Adam only alpha : beta matters: one degree of freedom too "
            "many. Leave beta out; it is then 1 - alpha."
        )
    unequal = [name for name in ("mode", "weighting") if name in searched]
    if unequal and spec.metric.name == "objective/value":
        yield (
            f"{' and '.join(unequal)} is searched: a mode that trains one loss has no imbalance or instability, and "
            "weights that move are made to balance, so the penalties favour some choices by themselves. Write metric: "
            "{name: eval/reference_loss, goal: minimize}."
        )
    if spec.method != "grid" and spec.run_cap is None:
        yield f"run_cap is absent: {spec.num_trials} trials will run. Write run_cap."
    if spec.method == "grid" and spec.num_trials < (spec.space.grid_size or 0):
        yield f"run_cap = {spec.run_cap} cuts the grid of {spec.space.grid_size} combinations."
    # W&B's own search has no use for the block search
    yield from (text for text in search_warnings(spec) if engine != "wandb" or not text.startswith("search."))
    measuring = [name for name in searched if name.startswith(CHANGES_EVALUATION) and name not in KEEPS_EVALUATION]
    if measuring and not spec.metric.name.endswith("_skill"):
        yield (
            f"{', '.join(measuring)}: changes what is evaluated, so {spec.metric.name} does not compare across it (the "
            "easiest clips win). Fix it, or write metric: {name: eval/pred_skill, goal: maximize}, which is measured "
            "against the same clips."
        )
    stop, epochs = spec.early_terminate, spec.space.to_config(spec.trainer, {}).epochs
    if stop is not None and "epochs" not in searched and stop.first_rung >= epochs:
        yield (
            f"early_terminate: the first decision comes after {stop.first_rung} epochs, but a trial has only "
            f"{epochs}, so nothing is ever stopped early. Lower min_iter or raise trainer.epochs."
        )
    filled_in = {n for p in spec.presets for n in spec.space.fill_preset(p, spec.trainer).keys() - p.keys()}
    for name in sorted((spec.given_of_trainer & spec.parameters.keys()) - filled_in):
        yield f"trainer.{name} is also a parameter; the parameter wins. Leave trainer.{name} out."
    for name, entry in spec.parameters.items():
        yield from (f"parameters.{name}: {text}" for text in _parameter_warnings(name, entry))


def _program_warnings(spec: SweepSpec) -> Iterator[str]:
    if spec.command is not None:
        foreign = "command" if TRIAL_MODULE not in map(str, spec.command) else None
    else:
        foreign = "program" if spec.program is not None else None
    if foreign is not None:
        yield (
            f"{foreign}: it is for W&B's agents (python -m sweep.agent keeps it) and is not started here, where each "
            "trial trains our model."
        )


def _parameter_warnings(name: str, entry: Mapping[str, Any]) -> Iterator[str]:
    distribution = distribution_of(entry)
    low, high = entry.get("min", 0.0), entry.get("max", 0.0)  # distributions without them warn of nothing here
    default = field_value(TrainConfig().model_dump(), name)
    if distribution == "int_uniform" and "distribution" not in entry and isinstance(default, float):
        yield (
            f"min = {low} and max = {high} are whole numbers, so only whole numbers are tried, as in W&B. "
            f"Write {low}.0 and {high}.0 for the numbers between."
        )
    if distribution in ("log_uniform", "q_log_uniform") and 0 < low < high < 1:
        yield (
            f"{distribution} takes exponents of e: values are {math.exp(low):.4g} to {math.exp(high):.4g}. "
            f"To give the values themselves, write {distribution}_values."
        )
    if distribution == "q_uniform":
        q = entry.get("q", 1)
        off_grid = [f"{key} = {n}" for key, n in (("min", low), ("max", high)) if Decimal(repr(n)) % Decimal(repr(q))]
        if off_grid:
            multiples = Space({name: entry}).parameters[name].probes()
            yield (
                f"{' and '.join(off_grid)} is no multiple of q = {q}; values are multiples, here {min(multiples)} to "
                f"{max(multiples)} (W&B's own agents may also round to a multiple outside the range)."
            )
