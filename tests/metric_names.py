"""The names of the metric contract, spelled out once more: tests compare the code with these, not with itself."""

BATCH = (
    "batch/loss_total",
    "batch/lr",
    "batch/epoch",
    "batch/iteration",
    "batch/loss_static",
    "batch/loss_dynamic",
    "batch/loss_recon",
    "batch/loss_pred",
    "batch/loss_ratio",
    "batch/weighted_static",
    "batch/weighted_dynamic",
    "batch/alpha",
    "batch/beta",
    "batch/static_contribution",
    "batch/dynamic_contribution",
    "batch/mode",
)
EPOCH = (
    "epoch",
    "epoch/train_loss",
    "epoch/lr",
    "epoch/best_loss_so_far",
    "epoch/loss_static",
    "epoch/loss_dynamic",
    "epoch/loss_ratio",
    "epoch/weighted_static",
    "epoch/weighted_dynamic",
    "epoch/actual_static_contribution",
    "epoch/actual_dynamic_contribution",
)
SUMMARY = ("summary/best_epoch", "summary/best_loss", "summary/total_time_seconds")
EVAL = (
    "eval/loss_static",
    "eval/loss_recon",
    "eval/loss_pred",
    "eval/loss_dynamic",
    "eval/reference_loss",
    "eval/static_skill",
    "eval/pred_skill",
)
OBJECTIVE = ("objective/value", "objective/loss", "objective/imbalance", "objective/instability")
FEATURES = (
    "eval/effective_rank",
    "probe/linear_accuracy",
    "probe/linear_balanced_accuracy",
    "probe/attentive_accuracy",
    "probe/attentive_balanced_accuracy",
    "probe/chance_accuracy",
)
