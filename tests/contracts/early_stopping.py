"""The contract of an early-stopping rule."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator

import pytest

from sweep.early_stopping import EarlyStopping, Rule

MakeRule = Callable[[], Rule]
Report = tuple[str, int, float]  # trial, epochs done, value

TRIALS, EPOCHS = 12, 9


class RuleContract:
    """What a rule of sweep/early_stopping.py keeps to, by itself and within `EarlyStopping`.

        class TestMyRule(RuleContract):
            @pytest.fixture
            def make_rule(self) -> MakeRule:
                return lambda: MyRule(first=1)

    The rule has to decide before epoch 9 where 12 trials train side by side.
    """

    @pytest.fixture
    def make_rule(self) -> MakeRule:
        raise NotImplementedError

    def test_a_trial_without_rivals_is_not_stopped(self, make_rule: MakeRule) -> None:
        rule = make_rule()
        assert not any(rule.stops("alone", epochs, float(epochs)) for epochs in range(1, EPOCHS + 1))

    def test_bad_trials_are_stopped_and_the_best_is_not(self, make_rule: MakeRule) -> None:
        for seed in range(5):
            stopped = stopped_of(make_rule(), list(history(seed)))
            assert stopped
            assert "0" not in stopped

    def test_the_same_history_gives_the_same_decisions_whatever_trials_are_called(self, make_rule: MakeRule) -> None:
        reports = list(history(0))
        renamed = [(f"sweep/{trial}", epochs, value) for trial, epochs, value in reports]
        decided = decisions(make_rule(), reports)
        assert decisions(make_rule(), reports) == decided
        assert decisions(make_rule(), renamed) == decided

    def test_a_resumed_sweep_decides_as_an_uninterrupted_one(self, make_rule: MakeRule) -> None:
        """The study tells values by trial and epoch, not in the order of their arrival."""
        reports = list(history(0))
        whole = decisions(make_rule(), reports)
        for dies_after in range(0, len(reports), 7):
            known, rest = reports[:dies_after], reports[dies_after:]
            resumed = EarlyStopping(make_rule())
            for report in sorted(known, key=lambda report: (report[0], report[1])):
                resumed.stops(*report)
            assert [resumed.stops(*report) for report in rest] == whole[dies_after:]

    def test_epochs_that_are_trained_again_change_no_decision(self, make_rule: MakeRule) -> None:
        reports = list(history(0))
        stopping = EarlyStopping(make_rule())
        decided = []
        for place, report in enumerate(reports):
            decided.append(stopping.stops(*report))
            again = [earlier for earlier in reports[: place + 1] if earlier[0] == report[0]][-2:]
            assert not any(stopping.stops(*earlier) for earlier in again)
        assert decided == decisions(make_rule(), reports)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_value_that_is_none_stops_nothing_and_changes_no_decision(
        self, make_rule: MakeRule, value: float
    ) -> None:
        reports = list(history(0))
        stopping = EarlyStopping(make_rule())
        decided = []
        for trial, epochs, number in reports:
            assert not stopping.stops(f"diverged-{trial}", epochs, value)
            decided.append(stopping.stops(trial, epochs, number))
        assert decided == decisions(make_rule(), reports)

    def test_a_preset_is_never_stopped_and_counts_for_the_others(self, make_rule: MakeRule) -> None:
        reports = list(history(0))
        plain = decisions(make_rule(), reports)
        stopping = EarlyStopping(make_rule())
        decided = [stopping.stops(*report, preset=report[0] == WORST) for report in reports]
        assert any(stop for stop, (trial, _, _) in zip(plain, reports, strict=True) if trial == WORST)
        assert decided == [stop and trial != WORST for stop, (trial, _, _) in zip(plain, reports, strict=True)]

    def test_of_a_maximised_metric_the_same_trials_are_stopped(self, make_rule: MakeRule) -> None:
        reports = list(history(0))
        stopping = EarlyStopping(make_rule(), sign=-1.0)
        decided = [stopping.stops(trial, epochs, -value) for trial, epochs, value in reports]
        assert decided == decisions(make_rule(), reports)


WORST = str(TRIALS - 1)


def history(seed: int) -> Iterator[Report]:
    """Trials that fall side by side, trial 0 the best at every epoch and the last one the worst; they take turns."""
    draws = random.Random(seed)
    done = dict.fromkeys(map(str, range(TRIALS)), 0)
    while going := [trial for trial, epochs in done.items() if epochs < EPOCHS]:
        trial = draws.choice(going)
        done[trial] += 1
        yield trial, done[trial], int(trial) + 1 / done[trial]


def decisions(rule: Rule, reports: list[Report]) -> list[bool]:
    """What the rule says after each report; a trial that it would stop trains on."""
    stopping = EarlyStopping(rule)
    return [stopping.stops(*report) for report in reports]


def stopped_of(rule: Rule, reports: list[Report]) -> set[str]:
    """The trials that are stopped; these report no more."""
    stopped: set[str] = set()
    for trial, epochs, value in reports:
        if trial not in stopped and rule.stops(trial, epochs, value):
            stopped.add(trial)
    return stopped
