"""What a sweep found, in plain sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from model.metrics import OBJECTIVE_NAMES
from sweep.candidates import how_to_confirm
from sweep.conclusion import Conclusion, Row
from sweep.report.data import SweepResults, TrialResult
from sweep.report.figures import number, state_name
from sweep.statistics import Estimate, Verdict, paired_gain, verdict
from sweep.study import Outcome

BALANCED = "balanced-weights"  # sweep/plan.py names the preset of alpha 0.75 so
NO_PROOF = "One seed each is no proof, and the best of many is picked for luck too."
SKILLS = {"eval/static_skill": "predicting the mean frame", "eval/pred_skill": "copying frame 3"}
MAX_NAMED = 6  # trials of a Pareto front


def answer(results: SweepResults) -> str:
    """What the sweep found, in plain sentences: what was confirmed, else the search's pick, called just that."""
    if results.spec.metrics:
        return _front(results)
    conclusion = results.conclusion
    if conclusion is not None and conclusion.chosen_row is not None and conclusion.confirmed:
        row = conclusion.chosen_row
        sentences = [f"Confirmed with fresh seeds: {conclusion.answer}", *_against_balanced(conclusion, row)]
        return " ".join([*sentences, *_how_sure(row), *_at_ends(results, row.params)])
    winner, metric = results.best, results.spec.metric.name
    if winner is None:
        return _no_winner(results)
    row_of_last = winner.metrics
    complete = sum(trial.record.outcome is Outcome.COMPLETE for trial in results.trials)
    rank = f"the best of the {complete} trials" if complete > 1 else "the only trial"
    named = [(name.partition("/")[2], row_of_last[name]) for name in OBJECTIVE_NAMES[1:] if name in row_of_last]
    parts = ", ".join(f"{name} {number(value)}" for name, value in named)
    made_of = f" ({parts})" if metric == OBJECTIVE_NAMES[0] and parts else ""
    values = ", ".join(f"{name} = {number(value)}" for name, value in winner.record.values.items())
    sentences = [
        f"Trial {winner.name} is {rank} that trained to the end{f', with {values}' if values else ''}.",
        f"Its {metric} is {number(winner.record.value)}{made_of}.",
        *_gains(results, winner),
    ]
    for name, rival in SKILLS.items():
        if name in row_of_last:
            better = "better" if row_of_last[name] > 0 else "not better"
            sentences.append(f"With {name} {number(row_of_last[name])} it is {better} than {rival}.")
    if conclusion is None or conclusion.runs_left:
        sentences.append(f"It is {how_to_confirm(results.spec, results.folder if results.single else None)}.")
    if conclusion is not None:
        done = "" if conclusion.runs_left else "The confirmation is done. "
        sentences.append(f"{done}{conclusion.answer}")
    return " ".join([*sentences, *_at_ends(results, winner.record.values)])


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


def _gains(results: SweepResults, winner: TrialResult) -> list[str]:
    """The winner against equal weights and against the balanced ones, with what that is worth."""
    equal, said = results.equal, []
    compared = False
    if equal is None:
        said.append("There is no equal-weights preset among the trials, so no gain over it can be stated.")
    elif equal is winner:
        said.append("It is the equal-weights preset itself: the search found nothing better.")
    else:
        text, compared = _gain(winner, equal, "equal-weights", "That is")
        said.append(text)
    balanced = next((trial for trial in results.trials if trial.record.preset == BALANCED), None)
    if balanced is winner:
        said.append("It is the balanced-weights preset itself.")
    elif balanced is not None:
        text, also = _gain(winner, balanced, BALANCED, "It is")
        said.append(text)
        compared = compared or also
    return [*said, NO_PROOF] if compared else said


def _gain(winner: TrialResult, rival: TrialResult, name: str, begin: str) -> tuple[str, bool]:
    """A sentence on the winner against a preset, and whether it states a gain."""
    base, value = rival.record.value, winner.record.value
    if rival.record.outcome is not Outcome.COMPLETE or base is None or value is None:
        state = state_name(rival.record.outcome)
        return f"The {name} preset (trial {rival.name}) is {state}, so no gain over it can be stated.", False
    gain = abs(base - value)
    if gain == 0:
        return f"{begin} no better than the {name} preset (trial {rival.name}: {number(base)}).", True
    share = f" ({gain / abs(base):.1%})" if base else ""
    return f"{begin} better by {number(gain)}{share} than the {name} preset (trial {rival.name}: {number(base)}).", True


def _against_balanced(conclusion: Conclusion, chosen: Row) -> list[str]:
    """The confirmed config against the balanced weights, seed by seed as it was against the equal ones."""
    rival = next((row for row in conclusion.rows if row.name == BALANCED), None)
    if rival is None:
        return []
    if rival is chosen:
        return ["It is the balanced-weights preset."]
    values, base = ({run.seed: run.value for run in row.runs if run.value is not None} for row in (chosen, rival))
    others = len(conclusion.rows) - 1  # whichever of them was chosen after a look at the numbers, its interval holds
    gain = paired_gain(values, base, conclusion.goal, others)
    if gain is None:
        return ["There is no run of the balanced weights with the same seeds to compare with."]
    shown = verdict(gain, diverged=chosen.diverged > 0, baseline_diverged=rival.diverged > 0)
    return [f"Against the balanced weights it is {_worded(gain)}: {shown}."]


def _worded(gain: Estimate) -> str:
    seen, word = (gain.opposite, "worse") if gain.mean < 0 else (gain, "better")
    return f"{seen.text} {word}{f' (95 % {seen.range_text})' if seen.range_text else ''}"


def _how_sure(chosen: Row) -> list[str]:
    """What the verdict against equal weights is worth."""
    if chosen.gain is None or chosen.verdict in (Verdict.BASELINE, Verdict.NO_BASELINE):
        return []
    if chosen.gain.low is None:
        return ["How sure: not at all, since one seed gives no interval; name more in confirm.seeds."]
    seeds = f"{chosen.gain.n} seeds"
    if chosen.verdict is Verdict.NO_DIFFERENCE:
        return [
            f"How sure: {seeds} cannot tell it from equal weights, since the interval of the difference holds 0; more "
            "seeds, named beforehand, make it narrower."
        ]
    return [
        f"How sure: the interval of the difference to equal weights leaves out 0, with 95 % for all configs at once. "
        f"That rests on {seeds} and on these held-out clips; it says nothing of other data."
    ]


def _at_ends(results: SweepResults, values: Mapping[str, Any]) -> list[str]:
    """Where the search should be wider."""
    searched = {name: value for name, value in values.items() if name in results.spec.space.parameters}
    try:
        ends = results.spec.space.at_ends(searched)
    except (TypeError, ValueError):  # values of another version's table, which the space as it was read cannot place
        return []
    if not ends:
        return []
    what = f"{' and '.join(ends)} {'lies' if len(ends) == 1 else 'lie'} at an end of the range"
    return [f"{what}: the best may lie beyond, so widen {', '.join(f'parameters.{name}' for name in ends)}."]
