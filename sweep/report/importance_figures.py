"""Which of the searched parameters matters: importances by Optuna."""

from __future__ import annotations

import warnings

import optuna
import plotly.graph_objects as go
from optuna.importance import PedAnovaImportanceEvaluator

from sweep.outcome import Outcome
from sweep.report.base import BLUE, Figure, finished, label
from sweep.report.data import SweepResults

TITLE = "Importance of the parameters"
MIN_TRIALS = 8  # fewer give an order that is chance
MIN_COMPLETE = 3  # of them; what stopped trials would have come to is guessed from these
FEW_TRIALS = 30  # up to here the order of neighbours still often changes: tried on 60 functions of 3 parameters
BEST_SHARE = 0.25  # of the trials are called good: Optuna's 0.1 is two trials of a sweep of 16


def importances(results: SweepResults, study: optuna.Study) -> dict[str, float] | str:
    """Searched parameters -> their shares, which sum to 1, the largest first; or why there are none.

    Args:
        study: of `as_study`.
    """
    trials = study.get_trials(deepcopy=False)
    complete = sum(trial.record.outcome is Outcome.COMPLETE for trial in results.trials)
    if len(trials) < MIN_TRIALS or complete < MIN_COMPLETE:
        return (
            f"Not drawn: {complete} trials that trained to the end and {len(trials) - complete} that were stopped "
            f"early or diverged are too few; it needs {MIN_TRIALS} in all, {MIN_COMPLETE} of them to the end."
        )
    if len({trial.value for trial in trials}) == 1:
        return f"Not drawn: all {len(trials)} trials have the same {results.spec.metric.name}."
    names = [
        name
        for name in results.spec.space.parameters
        if len({repr(trial.params[name]) for trial in trials if name in trial.params}) > 1
    ]
    if not names:
        return "Not drawn: no parameter has two different values among the trials."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that PED-ANOVA takes smaller values for better: here they are
        shares = optuna.importance.get_param_importances(
            study, params=names, evaluator=PedAnovaImportanceEvaluator(target_quantile=BEST_SHARE)
        )
    if sum(shares.values()) == 0:
        return "Not drawn: the best trials lie where all of them lie, so no parameter stands out."
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def importance_figure(results: SweepResults, shares: dict[str, float] | str, count: int) -> Figure:
    """Bars, the most important parameter on top; without a picture where there is nothing to tell.

    Args:
        shares: of `importances`, made of `count` trials.
    """
    if isinstance(shares, str):
        return Figure(TITLE, shares, "")
    names = list(reversed(shares))  # plotly draws the first one at the bottom
    figure = go.Figure()
    figure.add_bar(
        x=[shares[name] for name in names],
        y=names,
        orientation="h",
        marker={"color": BLUE},
        text=[f"{shares[name]:.0%}" for name in names],
        textposition="auto",
        hovertext=[f"{label(name)} {shares[name]:.3f}" for name in names],
        hoverinfo="text",
        width=0.6,
    )
    figure.update_yaxes(type="category")
    text = (
        f"PED-ANOVA (Watanabe et al. 2023, by Optuna): how differently the best quarter of {count} trials is spread "
        "over a parameter's range than all of them. Trials that were stopped early count with what they would have "
        "come to, diverged ones as bad as the worst."
    )
    if count < FEW_TRIALS:
        text += f" {count} trials are few: neighbours may change places."
    return finished(TITLE, text, figure, f"share, by {results.spec.metric.name}", "parameter")
