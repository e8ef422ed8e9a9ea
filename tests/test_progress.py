"""The progress lines, where the output is no terminal and where it is one."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sweep.progress import Progress
from sweep.study import Outcome, Record


class Board:
    """A progress over trials whose ends the test decides."""

    def __init__(self, terminal: bool, sign: float = 1.0) -> None:
        self.out = io.StringIO()
        self.records: dict[str, Record] = {}
        self.ended: list[str] = []
        self.progress = Progress(
            Console(file=self.out, force_terminal=terminal, width=200, color_system=None),
            num_trials=3,
            done=0,
            epochs=4,
            find=lambda trial: self.records[trial],
            sign=sign,
            metric="objective/value",
            on_ended=lambda record: self.ended.append(record.trial),
        )

    def end(self, number: int, outcome: Outcome, value: float | None, reason: str | None = None) -> None:
        record = Record(number, f"{number:04d}", {"alpha": 0.51234567}, None, outcome, value, 2, reason)
        self.records[record.trial] = record
        self.progress.ended(record.trial)

    def lines(self) -> list[str]:
        return self.out.getvalue().splitlines()


def test_each_trial_that_ends_has_a_line_and_is_handed_on() -> None:
    board = Board(terminal=False)
    with board.progress:
        board.progress.started("0000")
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
        board.progress.started("0001")
        board.progress.epoch("0001", 2, {"objective/value": 0.7})
        board.progress._live.refresh()
    shown = board.out.getvalue()
    assert "trial 0001" in shown
    assert "epoch 2/4" in shown
    assert "1 of 3 trials done, best objective/value 0.8000 (trial 0000)" in shown
    assert "left" in shown


def test_text_from_outside_is_no_markup() -> None:
    board = Board(terminal=False)
    board.progress.warning("[bold]W&B[/bold] is gone [/x]")
    assert board.lines() == ["note: [bold]W&B[/bold] is gone [/x]"]
