"""The progress lines, where the output is no terminal and where it is one."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest
from rich.console import Console

from sweep.progress import Progress
from sweep.study import Outcome, Record


class Board:
    """A progress over trials whose ends the test decides."""

    def __init__(
        self, terminal: bool, sign: float = 1.0, earlier: Sequence[Record] = (), competing: bool = True
    ) -> None:
        self.out = io.StringIO()
        self.records: dict[str, Record] = {}
        self.ended: list[str] = []
        self.progress = Progress(
            Console(file=self.out, force_terminal=terminal, width=200, color_system=None),
            num_trials=3,
            earlier=earlier,
            epochs=4,
            find=lambda trial: self.records[trial],
            sign=sign,
            metric="objective/value",
            on_ended=lambda record: self.ended.append(record.trial),
            competing=competing,
        )

    def start(self, number: int) -> None:
        trial = f"{number:04d}"
        self.records[trial] = Record(number, trial, {"alpha": 0.51234567}, None, Outcome.RUNNING, None, 0, None)
        self.progress.started(trial)

    def end(self, number: int, outcome: Outcome, value: float | None, reason: str | None = None) -> None:
        record = Record(number, f"{number:04d}", {"alpha": 0.51234567}, None, outcome, value, 2, reason)
        self.records[record.trial] = record
        self.progress.ended(record.trial)

    def lines(self) -> list[str]:
        return self.out.getvalue().splitlines()


def test_each_trial_that_ends_has_a_line_and_is_handed_on() -> None:
    board = Board(terminal=False)
    with board.progress:
        board.start(0)
        board.progress.epoch("0000", 1, {"objective/value": 0.9})
        board.end(0, Outcome.COMPLETE, 0.8)
        board.end(1, Outcome.PRUNED, 0.5)
        board.end(2, Outcome.DIVERGED, 0.1, "loss_pred = nan")
    assert board.ended == ["0000", "0001", "0002"]
    assert board.lines()[1:] == [
        "1/3  trial 0000  0.8000  alpha 0.5123  (2 epochs)  best so far",
        "2/3  trial 0001  0.5000  alpha 0.5123  (stopped early, 2 epochs)",
        "3/3  trial 0002    none  alpha 0.5123  (diverged: loss_pred = nan)",
    ]


@pytest.mark.parametrize(("sign", "best"), [(1.0, 1), (-1.0, 0)])
def test_the_best_is_that_of_the_metrics_direction(sign: float, best: int) -> None:
    board = Board(terminal=False, sign=sign)
    board.end(0, Outcome.COMPLETE, 0.8)
    board.end(1, Outcome.COMPLETE, 0.7)
    assert ("best so far" in board.lines()[-1]) == (best == 1)


def test_an_interrupted_trial_is_not_counted() -> None:
    board = Board(terminal=False)
    board.end(0, Outcome.RUNNING, 0.8)
    board.end(1, Outcome.COMPLETE, 0.7)
    assert board.lines()[0] == "trial 0000  interrupted; --resume goes on with it"
    assert board.lines()[1].startswith("1/3")


def test_a_terminal_shows_what_runs_the_best_and_the_time_left() -> None:
    board = Board(terminal=True)
    with board.progress:
        board.end(0, Outcome.COMPLETE, 0.8)
        board.start(1)
        board.progress.epoch("0001", 2, {"objective/value": 0.7})
        board.progress._live.refresh()
    shown = board.out.getvalue()
    assert "0001" in shown
    assert "training" in shown
    assert "2/4" in shown
    assert "0.5123" in shown
    assert "1 of 3 trials done" in shown
    assert "best objective/value 0.8000 (trial 0000)" in shown
    assert "left" in shown


def test_the_end_of_a_live_view_leaves_the_lines_only() -> None:
    board = Board(terminal=True)
    with board.progress:
        board.start(0)
        board.progress._live.refresh()
    with_view, _, after = board.out.getvalue().rpartition("\x1b[2K")  # erases a line
    assert "0000" in with_view
    assert "0000" not in after
    assert board.out.getvalue().count("\x1b[?25l") == board.out.getvalue().count("\x1b[?25h") == 1  # the cursor is back


def test_a_trial_that_goes_on_after_its_worker_died_keeps_its_epochs() -> None:
    board = Board(terminal=True)
    with board.progress:
        board.start(0)
        board.progress.epoch("0000", 2, {})
        board.progress.started("0000")
        board.progress._live.refresh()
    assert "restarted" in board.out.getvalue()
    assert board.out.getvalue().rpartition("restarted")[2].split()[1] == "2/4"


def test_where_it_stands_says_how_trials_ended() -> None:
    board = Board(terminal=False)
    board.end(0, Outcome.COMPLETE, 0.8)
    assert board.progress._standing()[0].startswith("1 of 3 trials done, ")
    board.end(1, Outcome.PRUNED, 0.7)
    board.end(2, Outcome.FAILED, None, "its worker died")
    assert board.progress._standing()[0].startswith("3 of 3 trials done (1 complete, 1 stopped early, 1 failed), ")


def test_trials_of_an_earlier_session_count_and_may_be_the_best() -> None:
    earlier = Record(0, "0000", {"alpha": 0.5}, None, Outcome.COMPLETE, 0.5, 4, None)
    board = Board(terminal=False, earlier=[earlier])
    board.end(1, Outcome.COMPLETE, 0.8)
    assert board.lines() == ["2/3  trial 0001  0.8000  alpha 0.5123  (2 epochs)"]
    assert "best objective/value 0.5000 (trial 0000)" in board.progress._standing()


def test_before_the_first_trial_ends_its_epochs_tell_how_long_the_sweep_takes_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = 100.0
    monkeypatch.setattr("time.monotonic", lambda: clock)
    board = Board(terminal=False)
    board.start(0)
    clock = 110.0
    assert board.progress._standing()[0].endswith("10 s so far")
    board.progress.epoch("0000", 1, {})
    board.progress.epoch("0000", 2, {})  # of 3 x 4
    assert board.progress._standing()[0].endswith("10 s so far, at most about 50 s left")
    board.end(0, Outcome.COMPLETE, 0.8)
    assert board.progress._standing()[0].endswith("10 s so far, about 20 s left")
    board.end(1, Outcome.COMPLETE, 0.8)
    board.end(2, Outcome.COMPLETE, 0.8)
    assert board.progress._standing()[0].endswith("10 s so far")


@pytest.mark.parametrize("terminal", [True, False])
def test_the_page_of_wandbs_project_is_shown_once(terminal: bool) -> None:
    board = Board(terminal=terminal)
    board.progress.online("https://wandb.ai/me/touch/runs/ab12-0000")
    board.progress.online("https://wandb.ai/me/touch/runs/ab12-0001")
    if terminal:
        with board.progress:
            board.progress._live.refresh()
        assert "W&B https://wandb.ai/me/touch\n" in board.out.getvalue().replace("\r", "")
    else:
        assert board.lines() == ["W&B https://wandb.ai/me/touch"]


def test_findings_are_lines_where_there_is_no_terminal_and_are_counted_at_the_end() -> None:
    board = Board(terminal=False)
    with board.progress:
        board.progress.finding("0000", "ratio high 1.3", "info")
        board.progress.finding("0000", "ratio high 1.6", "warning")
        board.progress.finding("0001", "NaN", "critical")
    assert board.lines()[1:] == [
        "warning: trial 0000: ratio high 1.6",
        "critical: trial 0001: NaN",
        "findings in 2 trials: 1 critical, 1 warning, 1 info; see the report's section Diagnosis",
    ]


def test_findings_of_a_confirmation_are_not_sought_in_the_report_which_is_about_the_search() -> None:
    board = Board(terminal=False, competing=False)
    with board.progress:
        board.progress.finding("c0000", "ratio high 1.6", "warning")
    assert board.lines()[-1] == "findings in 1 trial: 1 warning; python -m sweep.diagnose RESULTS has them"


def test_warnings_without_end_do_not_bury_the_trials_and_critical_findings_always_show() -> None:
    board = Board(terminal=False)
    for number in range(100):
        board.progress.finding(f"{number:04d}", "ratio high", "warning")
    board.progress.finding("0100", "NaN", "critical")
    assert len(board.lines()) == 12
    assert "counted, not printed" in board.lines()[10]
    assert board.lines()[11] == "critical: trial 0100: NaN"


def test_findings_on_a_terminal_stand_in_the_live_view_alone() -> None:
    board = Board(terminal=True)
    board.progress.finding("0000", "ratio high 1.6", "warning")
    assert board.lines() == []
    with board.progress:
        board.progress._live.refresh()
    assert "warning: trial 0000: ratio high 1.6" in board.out.getvalue()


def test_text_from_outside_is_no_markup() -> None:
    board = Board(terminal=False)
    board.progress.warning("[bold]W&B[/bold] is gone [/x]")
    assert board.lines() == ["note: [bold]W&B[/bold] is gone [/x]"]


def test_what_is_left_is_told_from_the_trials_not_from_how_long_ray_took_to_start(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr("sweep.progress.time.monotonic", lambda: now[0])
    board = Board(terminal=False)
    with board.progress:
        now[0] = 90.0
        board.start(0)
        now[0] = 130.0  # an epoch takes 40 s, 11 are to come
        board.progress.epoch("0000", 1, {})
    assert "2 min 10 s so far, at most about 7 min 20 s left" in board.lines()[-1]
