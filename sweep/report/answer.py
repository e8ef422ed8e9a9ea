"""What a sweep found, in plain sentences."""

from __future__ import annotations

from collections import Counter

from model.metrics import OBJECTIVE_NAMES
from sweep.candidates import how_to_confirm
from sweep.report.data import SweepResults, TrialResult
from sweep.report.figures import number, state_name
from sweep.study import Outcome

SKILLS = {"eval/static_skill": "predicting the mean frame", "eval/pred_skill": "copying frame 3"}
MAX_NAMED = 6  # trials of a Pareto front


def answer(results: SweepResults) -> str:
    """What the sweep found, in plain sentences: what was confirmed, else the search's pick, called just that."""
    if results.spec.metrics:
        return _front(results)
    conclusion = results.conclusion
    if conclusion is not None and conclusion.confirmed:
        return f"Confirmed with fresh seeds: {conclusion.answer}"
    winner, metric = results.best, results.spec.metric.name
    if winner is None:
        return _no_winner(results)
    row = winner.metrics
    complete = sum(trial.record.outcome is Outcome.COMPLETE for trial in results.trials)
    rank = f"the best of the {complete} trials" if complete > 1 else "the only trial"
    parts = [f"{name.partition('/')[2]} {number(row[name])}" for name in OBJECTIVE_NAMES[1:] if name in row]
    made_of = f" ({', '.join(parts)})" if metric == OBJECTIVE_NAMES[0] and parts else ""
    values = ", ".join(f"{name} = {number(value)}" for name, value in winner.record.values.items())
    sentences = [
        f"Trial {winner.name} is {rank} that trained to the end{f', with {values}' if values else ''}.",
        f"Its {metric} is {number(winner.record.value)}{made_of}.",
        _gain(results, winner),
    ]
    for name, rival in SKILLS.items():
        if name in row:
            better = "better" if row[name] > 0 else "not better"
            sentences.append(f"With {name} {number(row[name])} it is {better} than {rival}.")
    sentences.append(f"It is {how_to_confirm(results.spec, results.folder if results.single else None)}.")
    if conclusion is not None:
        sentences.append(conclusion.answer)
    return " ".join(sentences)


def _front(results: SweepResults) -> str:
    """The Pareto front: no trial is the best of several metrics."""
    if not results.front:
        return _no_winner(results)
    names = " and ".join(metric.name for metric in results.spec.metrics)
    parts = [
        f"trial {trial.name} ({', '.join(map(number, trial.record.objectives))})" for trial in results.front[:MAX_NAMED]
    ]
    more = f" and {len(results.front) - MAX_NAMED} others" if len(results.front) > MAX_NAMED else ""
    return (
        f"Of {names} no trial is the best. {len(results.front)} trials are on the Pareto front, which no complete "
        f"trial beats in all of them: {'; '.join(parts)}{more}. One seed each: trials that lie close together may "
        "change places with another seed. pareto.csv has their rows, pareto/ a config of each."
    )


def _no_winner(results: SweepResults) -> str:
    if not results.trials:
        return "No trial has left anything yet."
    sentences = ["No trial has trained to its end, so there is no best one."]
    first = min((trial.record for trial in results.trials), key=results.rank)
    if first.value is not None:
        epochs = "1 epoch" if first.epochs == 1 else f"{first.epochs} epochs"
        sentences.append(
            f"The best value until now is {results.spec.metric.name} {number(first.value)}, of trial {first.trial} "
            f"after {epochs} ({state_name(first.outcome)}); values after different numbers of epochs do not compare."
        )
    reasons = Counter(trial.record.reason for trial in results.trials if trial.record.reason)
    if reasons:
        sentences.append("Reasons: " + "; ".join(f"{text} ({count} x)" for text, count in reasons.most_common(3)) + ".")
    return " ".join(sentences)


def _gain(results: SweepResults, winner: TrialResult) -> str:
    """The winner against equal weights, with what that is worth."""
    equal = results.equal
    if equal is None:
        return "There is no equal-weights preset among the trials, so no gain can be stated."
    if equal is winner:
        return "It is the equal-weights preset itself: the search found nothing better."
    base, value = equal.record.value, winner.record.value
    if equal.record.outcome is not Outcome.COMPLETE or base is None or value is None:
        state = state_name(equal.record.outcome)
        return f"The equal-weights preset (trial {equal.name}) is {state}, so no gain can be stated."
    gain = abs(base - value)
    share = f" ({gain / abs(base):.1%})" if base else ""
    return (
        f"That is better by {number(gain)}{share} than the equal-weights preset (trial {equal.name}: {number(base)}). "
        "One seed each is no proof, and the best of many is picked for luck too."
    )
