"""The row budget of an online run, on a clock of the tests' own."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweep.wandb_rate import WINDOW_S, RowBudget

LIMIT = 95  # of 100 rows in 60 s, those that updates may bring them to
EPOCH_LIMIT = 99


class Clock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Run:
    """A run under a budget: when its rows were taken, and which."""

    def __init__(self, rows_per_minute: int = 100, first: int = 0, sent: Sequence[float] = ()) -> None:
        self.clock = Clock()
        self.budget = RowBudget(rows_per_minute, self.clock, sent)
        self.iteration = first
        self.taken: list[tuple[float, int]] = []  # (time, iteration)
        self.epochs: list[tuple[float, int]] = []  # (time, epoch)
        self.num_epochs = 0
        self.strides: list[int] = []

    def update(self, after_s: float) -> None:
        self.clock.now += after_s
        if self.budget.takes_update(self.iteration):
            self.taken.append((self.clock.now, self.iteration))
        self.strides.append(self.budget.stride)
        self.iteration += 1

    def updates(self, gaps: Iterable[float]) -> None:
        for gap in gaps:
            self.update(gap)

    def epoch(self) -> bool:
        taken = self.budget.takes_epoch(self.num_epochs)
        if taken:
            self.epochs.append((self.clock.now, self.num_epochs))
        self.num_epochs += 1
        return taken

    @property
    def times(self) -> list[float]:
        return [now for now, _ in [*self.taken, *self.epochs]]


def most_in_a_window(times: list[float]) -> int:
    """The largest number of times in any 60 s, both ends included."""
    times = sorted(times)
    most = begin = 0
    for end, now in enumerate(times):
        while times[begin] < now - WINDOW_S:
            begin += 1
        most = max(most, end - begin + 1)
    return most


# phases of a run: (updates, seconds between two of them)
GAPS = st.sampled_from([0.0, 1e-4, 0.01, 0.1, 0.31, 0.63, 1.0, 2.5, 61.0]) | st.floats(0, 5)
PHASES = st.lists(st.tuples(st.integers(1, 300), GAPS), max_size=8)


@settings(max_examples=80)
@given(phases=PHASES, first=st.integers(0, 10**6), epoch_every=st.integers(20, 200))
def test_no_minute_holds_more_rows_than_the_budget(
    phases: list[tuple[int, float]], first: int, epoch_every: int
) -> None:
    run = Run(first=first)
    for count, gap in phases:
        for _ in range(count):
            run.update(gap)
            if run.iteration % epoch_every == 0:
                run.epoch()
    assert most_in_a_window(run.times) <= EPOCH_LIMIT
    # an update is never what brings it above 95 %
    for now, _ in run.taken:
        rows = [t for t, _ in run.taken if now - WINDOW_S <= t <= now] + [
            t for t, _ in run.epochs if now - WINDOW_S <= t < now
        ]
        assert len(rows) <= LIMIT
    assert run.budget.thinned == run.iteration - first - len(run.taken) + run.num_epochs - len(run.epochs)


MIX = st.lists(st.tuples(st.integers(1, 200), GAPS, st.sampled_from([0, 1, 2, 7, 40])), max_size=10)


@settings(max_examples=50, deadline=None)
@given(phases=MIX, pictures=st.booleans(), sent=st.lists(st.floats(0, 70), max_size=150), parts=st.integers(1, 4))
def test_no_minute_holds_more_rows_than_the_budget_whatever_the_mix_and_however_often_it_is_resumed(
    phases: list[tuple[int, float, int]], pictures: bool, sent: list[float], parts: int
) -> None:
    run = Run(sent=sent)
    times = [run.clock.now - age for age in sorted(sent)[:EPOCH_LIMIT]]
    for _ in range(parts):
        for count, gap, updates_an_epoch in phases:
            for number in range(count):
                if updates_an_epoch == 0 or number % updates_an_epoch:
                    run.update(gap)
                else:
                    run.clock.now += gap
                    run.epoch()
                if pictures and number % 5 == 0 and run.budget.takes_picture():
                    times.append(run.clock.now)
        run.budget = RowBudget(100, run.clock, run.budget.sent())  # a part ends, the next begins at once
    assert most_in_a_window([*times, *run.times]) <= EPOCH_LIMIT


@settings(max_examples=80)
@given(bursts=st.lists(st.tuples(st.integers(1, 47), st.floats(0, 0.5)), max_size=20))
def test_a_run_with_at_most_half_the_budget_a_minute_keeps_every_row_however_it_comes(
    bursts: list[tuple[int, float]],
) -> None:
    run = Run()
    for count, gap in bursts:
        run.updates([61.0, *[gap] * (count - 1)])
    assert run.budget.thinned == 0
    assert [iteration for _, iteration in run.taken] == list(range(run.iteration))


@pytest.mark.parametrize("a_minute", [10, 60, 90, 94])
def test_a_steady_run_within_the_budget_keeps_every_row(a_minute: int) -> None:
    run = Run()
    run.updates([60 / a_minute] * 500)
    assert run.budget.thinned == 0


@pytest.mark.parametrize(("a_minute", "stride"), [(100, 2), (150, 2), (300, 4), (4_000, 64), (60_000, 1024)])
def test_a_steady_run_above_the_budget_settles_on_the_smallest_power_of_two(a_minute: int, stride: int) -> None:
    run = Run()
    run.updates([60 / a_minute] * a_minute * 5)
    last_two_minutes = run.strides[-2 * a_minute :]
    assert set(last_two_minutes) == {stride}
    begin = run.clock.now - 120
    assert [i for now, i in run.taken if now > begin + 1e-6] == [
        i for i in range(run.iteration - 2 * a_minute, run.iteration) if i % stride == 0
    ]


@settings(max_examples=40)
@given(phases=PHASES)
def test_strides_are_powers_of_two_and_rows_their_multiples(phases: list[tuple[int, float]]) -> None:
    run = Run()
    for count, gap in phases:
        for _ in range(count):
            before = len(run.taken)
            run.update(gap)
            stride = run.budget.stride
            assert stride & (stride - 1) == 0
            if len(run.taken) > before:
                assert run.taken[-1][1] % stride == 0


@settings(max_examples=40)
@given(phases=PHASES, first=st.integers(0, 10**6))
def test_the_same_times_give_the_same_rows(phases: list[tuple[int, float]], first: int) -> None:
    runs = [Run(first=first), Run(first=first)]
    for run in runs:
        for count, gap in phases:
            run.updates([gap] * count)
    assert runs[0].taken == runs[1].taken


def test_two_fast_runs_of_different_speed_share_their_points() -> None:
    slower, faster = Run(), Run()
    slower.updates([60 / 300] * 9000)
    faster.updates([60 / 2000] * 20000)
    settled = [{i for now, i in run.taken if now > 1000 + 120} for run in (slower, faster)]
    shared = {i for i in settled[1] if min(settled[0]) <= i <= max(settled[0])}
    assert shared
    assert shared <= settled[0]


def test_a_fast_run_spreads_its_rows_over_its_first_minute_and_does_not_stop_after_a_burst() -> None:
    run = Run(rows_per_minute=900)
    run.updates([0.01] * 12_000)  # two minutes at 100 a second
    times = [now - 1000 for now, _ in run.taken]
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) < 2
    assert 1_000 < len(times) <= 2 * 855


def test_a_run_that_speeds_up_is_thinned_within_a_second_and_one_that_slows_down_is_whole_again() -> None:
    run = Run()
    run.updates([1.0] * 120)
    assert run.budget.stride == 1
    run.updates([0.005] * 400)  # two seconds
    assert run.budget.stride > 1
    run.updates([1.5] * 90)
    assert run.budget.stride == 1
    thinned = run.budget.thinned
    run.updates([1.5] * 200)
    assert run.budget.thinned == thinned


def test_a_long_pause_forgets_what_was_before_it() -> None:
    run = Run()
    run.updates([0.001] * 5_000)
    run.updates([3600.0, *[0.01] * 40])
    assert [i for _, i in run.taken[-41:]] == list(range(5_000, 5_041))


def test_updates_give_way_to_epochs() -> None:
    run = Run()
    run.updates([0.5] * 4)
    for _ in range(LIMIT - 4):
        assert run.budget.takes_epoch(0)
    run.updates([0.001] * 10)
    assert len(run.taken) == 4
    run.updates([61.0])
    assert len(run.taken) == 5


@pytest.mark.parametrize(("a_minute", "stride"), [(90, 1), (150, 2), (1_200, 16), (60_000, 1024)])
def test_epochs_that_break_the_budget_by_themselves_are_thinned_to_a_power_of_two(a_minute: int, stride: int) -> None:
    run = Run()
    for _ in range(a_minute * 4):
        run.clock.now += 60 / a_minute
        run.epoch()
    since = run.clock.now - 120
    settled = [epoch for now, epoch in run.epochs if now > since + 1e-6]
    assert settled == [e for e in range(run.num_epochs - 2 * a_minute, run.num_epochs) if e % stride == 0]
    assert most_in_a_window(run.times) <= EPOCH_LIMIT
    assert run.budget.thinned == run.num_epochs - len(run.epochs)


def test_epochs_that_fit_by_themselves_stay_whole_whatever_the_updates_are() -> None:
    run = Run(rows_per_minute=900)
    for _ in range(1_600):  # 400 epochs of 50 updates a minute
        run.updates([60 / 400 / 50] * 50)
        run.epoch()
    assert len(run.epochs) == run.num_epochs
    assert 855 * 0.75 < most_in_a_window(run.times) <= 891


def test_as_many_epochs_as_updates_are_whole_up_to_the_budget() -> None:
    run = Run()
    for _ in range(400):
        run.updates([60 / 45])
        run.epoch()
    assert run.budget.thinned == 0


def test_what_an_earlier_part_sent_counts_until_it_is_a_minute_old() -> None:
    run = Run(sent=[30.0] * 200)
    run.updates([0.5] * 10)
    assert not run.epoch()
    assert run.taken == []
    run.updates([25.5, *[1.0] * 10])
    assert len(run.taken) == 11
    assert len(Run(sent=[60.5] * 200).budget.sent()) == 0


def test_a_slow_run_that_is_resumed_keeps_every_row() -> None:
    run = Run(sent=[float(age) for age in range(1, 60, 2)])
    for _ in range(60):
        run.updates([2.0])
        assert run.epoch() or run.iteration % 5
    assert run.budget.thinned == 0


def test_rows_that_end_a_run_always_go_and_count() -> None:
    run = Run()
    for _ in range(200):
        run.budget.takes_epoch(0)
    left_out = run.budget.thinned
    assert left_out == 101
    run.budget.count_last(left_out_epoch=True)
    assert run.budget.thinned == left_out - 1
    assert len(run.budget.sent()) == 100
    assert 59 < run.budget.room_in_s() < 61
    run.clock.now += run.budget.room_in_s()
    assert run.budget.room_in_s() == 0


def test_a_run_that_goes_on_at_a_later_update_has_the_same_grid() -> None:
    run = Run(first=12_345)
    run.updates([0.01] * 20_000)
    settled = [i for now, i in run.taken if now > 1000 + 120]
    assert settled
    assert all(i % 64 == 0 for i in settled)


def test_random_speeds_stay_within_the_budget_for_hours() -> None:
    rng = random.Random(3)
    run = Run()
    for _ in range(300):
        gap = rng.choice([0.002, 0.02, 0.2, 0.7, 2.0])
        run.updates([gap * rng.uniform(0.5, 1.5) for _ in range(rng.randrange(200))])
        run.epoch()
    times = [now for now, _ in run.taken]
    assert most_in_a_window(run.times) <= EPOCH_LIMIT
    assert most_in_a_window(times) <= LIMIT
    assert most_in_a_window(times) > LIMIT * 0.8  # and the budget is used where it is needed


def test_a_budget_too_small_to_share_says_so() -> None:
    with pytest.raises(ValueError, match="at least 20"):
        RowBudget(19)


def test_a_row_costs_microseconds() -> None:
    budget = RowBudget()
    began = time.perf_counter()
    for iteration in range(100_000):
        budget.takes_update(iteration)
        budget.takes_epoch(iteration)
    assert time.perf_counter() - began < 100_000 * 40e-6  # about 1 us each on an idle core
