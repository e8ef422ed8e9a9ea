"""The one table of metrics: name, level, formula, meaning, and how it looks in a sound run.

CSV headers, W&B axes, documents (model/metric_table.py) and checks are made from it; no other module spells out a list
of metric names.
The 30 names of the metric text come first (16 batch, 11 epoch, 3 summary), then our own (`eval/`, `objective/`,
`probe/`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How often a metric is logged."""

    BATCH = "batch"  # once per gradient update
    EPOCH = "epoch"  # once at each epoch's end
    SUMMARY = "summary"  # once, at the end of the trial


@dataclass(frozen=True)
class Metric:
    """One metric of the table."""

    name: str
    level: Level
    formula: str
    meaning: str
    optional: bool = False
    """Absent from a row where what it needs was not computed: modes 0 and 1, no probe at this epoch."""
    sound: str = ""
    """How it looks in a sound run; empty where it tells nothing of that."""


def _batch(name: str, formula: str, meaning: str, sound: str = "", optional: bool = False) -> Metric:
    return Metric(f"batch/{name}", Level.BATCH, formula, meaning, optional, sound)


def _epoch(name: str, formula: str, meaning: str, sound: str = "", optional: bool = False) -> Metric:
    return Metric(name, Level.EPOCH, formula, meaning, optional, sound)


# the limits in `sound` are those of sections 1 and 2 of the metric text
BATCH = (
    _batch("loss_total", "alpha * loss_static + beta * loss_dynamic", "what is minimised", "falls"),
    _batch("lr", "lr_at(update)", "learning rate of this update", "rises in the warm-up, then falls along a cosine"),
    _batch("epoch", "micro-batches before // num_micro_batches", "epoch of this update, from 0", "rises by steps of 1"),
    _batch(
        "iteration",
        "micro_batch // accum_iter + epoch * (num_micro_batches // accum_iter)",
        "number of this update, from 0; the axis of all batch metrics",
        "rises by 1",
    ),
    _batch("loss_static", "MSE(frame 1), masked patches", "reconstruction of a single frame", "falls", True),
    _batch("loss_dynamic", "loss_recon + loss_pred", "understanding of the sequence", "falls", True),
    _batch(
        "loss_recon",
        "MSE(frames 1-3), masked patches",
        "reconstruction within the sequence",
        "falls; if it alone stalls: mask ratio or model size",
        True,
    ),
    _batch(
        "loss_pred",
        "MSE(frame 4), all patches",
        "prediction of the next frame",
        "falls; if it alone stalls: the task over time is too hard",
        True,
    ),
    _batch(
        "loss_ratio",
        "loss_static / loss_dynamic",
        "balance of difficulty: which weight to raise",
        "steady, 0.7 to 1.0; above 1.2 raise beta, below 0.6 raise alpha",
        True,
    ),
    _batch("weighted_static", "alpha * loss_static", "static part of the total", "falls", True),
    _batch("weighted_dynamic", "beta * loss_dynamic", "dynamic part of the total", "falls", True),
    _batch("alpha", "alpha of the config", "weight of the static loss", "constant; moves with another `weighting`"),
    _batch("beta", "beta of the config, else 1 - alpha", "weight of the dynamic loss", "as alpha"),
    _batch(
        "static_contribution",
        "weighted_static / loss_total",
        "actual share of the static loss in the total",
        "near its target, 0.5; above it raise beta, below it raise alpha",
        True,
    ),
    _batch(
        "dynamic_contribution",
        "weighted_dynamic / loss_total",
        "actual share of the dynamic loss in the total",
        "1 - static_contribution",
        True,
    ),
    _batch("mode", "0 static, 1 dynamic, 2 joint", "training mode of this update", "constant; 0 and 1 if alternating"),
)

EPOCH = (
    _epoch("epoch", "batch/epoch", "epoch, from 0; the axis of all epoch metrics", "rises by 1"),
    _epoch("epoch/train_loss", "mean batch/loss_total", "training loss of the epoch", "falls steadily"),
    _epoch("epoch/lr", "batch/lr of the last update", "learning rate at the epoch's end", "rises, then falls"),
    _epoch("epoch/best_loss_so_far", "min epoch/train_loss so far", "running minimum", "falls in steps"),
    _epoch("epoch/loss_static", "mean batch/loss_static", "static loss", "falls", True),
    _epoch("epoch/loss_dynamic", "mean batch/loss_dynamic", "dynamic loss", "falls", True),
    _epoch("epoch/loss_ratio", "mean batch/loss_ratio", "balance of difficulty", "steady", True),
    _epoch("epoch/weighted_static", "mean batch/weighted_static", "static part of the total", "falls", True),
    _epoch("epoch/weighted_dynamic", "mean batch/weighted_dynamic", "dynamic part of the total", "falls", True),
    _epoch(
        "epoch/actual_static_contribution",
        "alpha * mean static / (alpha * mean static + beta * mean dynamic)",
        "actual share of the static loss: do the weights do what was meant",
        "around 0.5; above 0.6 lower alpha, below 0.4 raise it",
        True,
    ),
    _epoch(
        "epoch/actual_dynamic_contribution",
        "1 - epoch/actual_static_contribution",
        "actual share of the dynamic loss",
        "around 0.5",
        True,
    ),
)

SUMMARY = (
    Metric("summary/best_epoch", Level.SUMMARY, "argmin epoch/train_loss", "epoch of the best training loss"),
    Metric("summary/best_loss", Level.SUMMARY, "min epoch/train_loss", "best training loss"),
    Metric(
        "summary/total_time_seconds",
        Level.SUMMARY,
        "sum over sessions of end - start",
        "training time, resumed parts added up",
    ),
)

EVAL = (
    _epoch("eval/loss_static", "as loss_static, held-out clips, fixed protocol", "static loss, comparable", "falls"),
    _epoch("eval/loss_recon", "as loss_recon, held-out clips, fixed protocol", "reconstruction, comparable", "falls"),
    _epoch("eval/loss_pred", "as loss_pred, held-out clips, fixed protocol", "prediction, comparable", "falls"),
    _epoch("eval/loss_dynamic", "eval/loss_recon + eval/loss_pred", "dynamic loss, comparable", "falls"),
    _epoch(
        "eval/reference_loss",
        "0.5 * eval/loss_static + 0.5 * eval/loss_dynamic",
        "what trials are compared by",
        "falls",
    ),
    _epoch(
        "eval/static_skill",
        "1 - eval/loss_static / MSE(training-set mean frame)",
        "gain over the mean frame, which needs no learning",
        "rises above 0",
        True,
    ),
    _epoch(
        "eval/pred_skill",
        "1 - eval/loss_pred / MSE(copy of frame 3)",
        "gain over a copy of frame 3, which needs no learning",
        "rises; above 0 is hard where neighbouring frames are alike (`data.frame_stride`)",
        True,
    ),
)

OBJECTIVE = (
    _epoch(
        "objective/value",
        "loss + contribution_weight * imbalance + ratio_weight * instability",
        "minimised by the sweep",
        "falls",
    ),
    _epoch("objective/loss", "best so far of eval/reference_loss (or epoch/train_loss)", "loss part", "falls in steps"),
    _epoch(
        "objective/imbalance",
        "mean |actual_static_contribution - target|, settled epochs",
        "imbalance part",
        "near 0",
        True,
    ),
    _epoch(
        "objective/instability",
        "mean std / mean of batch/loss_ratio, settled epochs",
        "instability part",
        "near 0",
        True,
    ),
)

FEATURES = (
    _epoch(
        "eval/effective_rank",
        "exp(entropy of the normalised singular values of centred held-out features)",
        "directions in which the features differ",
        "far above 1; near 1: collapse",
        True,
    ),
    _epoch(
        "probe/linear_accuracy",
        "held-out clips told right, logistic regression",
        "of frozen, mean-pooled features",
        "above chance",
        True,
    ),
    _epoch(
        "probe/linear_balanced_accuracy",
        "mean recall of the classes",
        "the same, for uneven classes",
        "above 1 / classes",
        True,
    ),
    _epoch(
        "probe/attentive_accuracy",
        "held-out clips told right, attentive pooling",
        "of frozen patch tokens",
        "above chance",
        True,
    ),
    _epoch(
        "probe/attentive_balanced_accuracy",
        "mean recall of the classes",
        "the same, for uneven classes",
        "above 1 / classes",
        True,
    ),
    _epoch(
        "probe/chance_accuracy",
        "held-out clips of the largest training class",
        "what needs no features",
        "constant",
        True,
    ),
)

CONTRACT = BATCH + EPOCH + SUMMARY  # the 30 of the metric text
ALL = CONTRACT + EVAL + OBJECTIVE + FEATURES

BATCH_NAMES = tuple(m.name for m in BATCH)
EPOCH_NAMES = tuple(m.name for m in EPOCH)
SUMMARY_NAMES = tuple(m.name for m in SUMMARY)
EVAL_NAMES = tuple(m.name for m in EVAL)
OBJECTIVE_NAMES = tuple(m.name for m in OBJECTIVE)
FEATURE_NAMES = tuple(m.name for m in FEATURES)
EPOCH_COLUMNS = EPOCH_NAMES + EVAL_NAMES + OBJECTIVE_NAMES + FEATURE_NAMES  # of epoch.csv; new ones go to the end

BATCH_STEP = "batch/iteration"  # the step axis of every batch metric
EPOCH_STEP = "epoch"  # the step axis of every epoch metric

MODE_STATIC, MODE_DYNAMIC, MODE_JOINT = 0, 1, 2
