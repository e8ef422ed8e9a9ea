"""The one table of metrics: name, level, formula, meaning.

CSV headers, W&B axes, documents and checks are made from it; no other module spells out a list of metric names.
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
    """One metric: `optional` ones are absent from a row when what they need was not computed (modes 0 and 1, no probe
    at this epoch)."""

    name: str
    level: Level
    formula: str
    meaning: str
    optional: bool = False


def _batch(name: str, formula: str, meaning: str, optional: bool = False) -> Metric:
    return Metric(f"batch/{name}", Level.BATCH, formula, meaning, optional)


def _epoch(name: str, formula: str, meaning: str, optional: bool = False) -> Metric:
    return Metric(name, Level.EPOCH, formula, meaning, optional)


BATCH = (
    _batch("loss_total", "alpha * loss_static + beta * loss_dynamic", "what is minimised"),
    _batch("lr", "lr_at(update)", "learning rate of this update"),
    _batch("epoch", "", "epoch of this update, from 0"),
    _batch("iteration", "micro_batch // accum_iter + epoch * (num_micro_batches // accum_iter)", "update, from 0"),
    _batch("loss_static", "MSE(frame 1), masked patches", "single-frame reconstruction", True),
    _batch("loss_dynamic", "loss_recon + loss_pred", "temporal understanding", True),
    _batch("loss_recon", "MSE(frames 1-3), masked patches", "reconstruction in the sequence", True),
    _batch("loss_pred", "MSE(frame 4), all patches", "prediction of the next frame", True),
    _batch("loss_ratio", "loss_static / loss_dynamic", "balance of difficulty", True),
    _batch("weighted_static", "alpha * loss_static", "static part of the total", True),
    _batch("weighted_dynamic", "beta * loss_dynamic", "dynamic part of the total", True),
    _batch("alpha", "", "weight of the static loss"),
    _batch("beta", "", "weight of the dynamic loss"),
    _batch("static_contribution", "weighted_static / loss_total", "actual share of the static loss", True),
    _batch("dynamic_contribution", "weighted_dynamic / loss_total", "actual share of the dynamic loss", True),
    _batch("mode", "0 static, 1 dynamic, 2 joint", "training mode of this update"),
)

EPOCH = (
    _epoch("epoch", "", "epoch, from 0"),
    _epoch("epoch/train_loss", "mean batch/loss_total", "training loss of the epoch"),
    _epoch("epoch/lr", "batch/lr of the last update", "learning rate at the epoch's end"),
    _epoch("epoch/best_loss_so_far", "min epoch/train_loss so far", "running minimum"),
    _epoch("epoch/loss_static", "mean batch/loss_static", "static loss", True),
    _epoch("epoch/loss_dynamic", "mean batch/loss_dynamic", "dynamic loss", True),
    _epoch("epoch/loss_ratio", "mean batch/loss_ratio", "balance of difficulty", True),
    _epoch("epoch/weighted_static", "mean batch/weighted_static", "static part of the total", True),
    _epoch("epoch/weighted_dynamic", "mean batch/weighted_dynamic", "dynamic part of the total", True),
    _epoch(
        "epoch/actual_static_contribution",
        "alpha * mean static / (alpha * mean static + beta * mean dynamic)",
        "actual share of the static loss",
        True,
    ),
    _epoch(
        "epoch/actual_dynamic_contribution",
        "1 - epoch/actual_static_contribution",
        "actual share of the dynamic loss",
        True,
    ),
)

SUMMARY = (
    Metric("summary/best_epoch", Level.SUMMARY, "argmin epoch/train_loss", "epoch of the best training loss"),
    Metric("summary/best_loss", Level.SUMMARY, "min epoch/train_loss", "best training loss"),
    Metric("summary/total_time_seconds", Level.SUMMARY, "", "training time, resumed parts added up"),
)

EVAL = (
    _epoch("eval/loss_static", "as loss_static, held-out clips, fixed protocol", "static loss, comparable"),
    _epoch("eval/loss_recon", "as loss_recon, held-out clips, fixed protocol", "reconstruction, comparable"),
    _epoch("eval/loss_pred", "as loss_pred, held-out clips, fixed protocol", "prediction, comparable"),
    _epoch("eval/loss_dynamic", "eval/loss_recon + eval/loss_pred", "dynamic loss, comparable"),
    _epoch("eval/reference_loss", "0.5 * eval/loss_static + 0.5 * eval/loss_dynamic", "comparable across trials"),
    _epoch(
        "eval/static_skill",
        "1 - eval/loss_static / MSE(training-set mean frame)",
        "above 0: beats that",
        True,
    ),
    _epoch("eval/pred_skill", "1 - eval/loss_pred / MSE(copy of frame 3)", "above 0: beats that", True),
)

OBJECTIVE = (
    _epoch(
        "objective/value",
        "loss + contribution_weight * imbalance + ratio_weight * instability",
        "minimised by the sweep",
    ),
    _epoch("objective/loss", "best so far of eval/reference_loss (or epoch/train_loss)", "loss part"),
    _epoch("objective/imbalance", "mean |actual_static_contribution - target|, settled epochs", "imbalance part", True),
    _epoch("objective/instability", "mean std / mean of batch/loss_ratio, settled epochs", "instability part", True),
)

FEATURES = (
    _epoch(
        "eval/effective_rank",
        "exp(entropy of the normalised singular values of centred held-out features)",
        "directions in which the features differ; near 1: collapse",
        True,
    ),
    _epoch(
        "probe/linear_accuracy",
        "held-out clips told right, logistic regression",
        "of frozen, mean-pooled features",
        True,
    ),
    _epoch("probe/linear_balanced_accuracy", "mean recall of the classes", "the same, for uneven classes", True),
    _epoch("probe/attentive_accuracy", "held-out clips told right, attentive pooling", "of frozen patch tokens", True),
    _epoch("probe/attentive_balanced_accuracy", "mean recall of the classes", "the same, for uneven classes", True),
    _epoch("probe/chance_accuracy", "held-out clips of the largest training class", "what needs no features", True),
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
