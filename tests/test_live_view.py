"""The live view: it fits any terminal, and keeps what matters most where there is little room."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from sweep.live_view import LiveView, Notice, RunningTrial

METRICS = {"objective/value": 0.75, "objective/loss": 0.68, "objective/imbalance": 0.06, "objective/instability": 0.01}
VALUES = {"alpha": 0.512345, "base_lr": 0.008, "encoder.name": "vit_large_patch14_clip_quickgelu_224.openai"}
STANDING = ["4 of 40 trials done (2 complete, 2 stopped early), 31 s so far, about 2 min left", "best 0.7 (trial 0001)"]


def trial(number: int, **changes: Any) -> RunningTrial:
    return RunningTrial(
        **{"trial": f"{number:04d}", "of": 8, "values": VALUES, "epochs": 4, "metrics": METRICS} | changes
    )


def view(trials: int = 1, notices: int = 0) -> LiveView:
    found = [Notice(f"{number:04d}", f"finding {number} " + "很长" * 100, "warning") for number in range(notices)]
    return LiveView([trial(number) for number in range(trials)], "objective/value", found, STANDING)


def shown(live: LiveView, width: int = 80, height: int = 22) -> list[str]:
    return [line.plain for line in live.lines(width, height)]


@pytest.mark.parametrize("width", [1, 10, 40, 80, 200])
@pytest.mark.parametrize("height", [1, 2, 3, 5, 8, 18, 50])
@pytest.mark.parametrize("trials", [0, 1, 16, 300])
def test_it_is_never_larger_than_the_terminal(width: int, height: int, trials: int) -> None:
    lines = shown(view(trials, notices=5), width, height)
    assert 1 <= len(lines) <= height
    assert all(cell_len(line) <= width for line in lines)


def test_80_columns_have_the_state_the_epochs_and_the_objective_with_its_parts() -> None:
    header, row, *_ = shown(view())
    assert header.split() == ["trial", "state", "epoch", "value", "loss", "imbalance", "instability"]
    assert row.split() == ["0000", "starting", "━━━━━╌╌╌╌╌", "4/8", "0.7500", "0.6800", "0.0600", "0.0100"]


def test_a_wide_terminal_has_the_parameters_too() -> None:
    header, row, *_ = shown(view(), width=200)
    assert header.split()[-3:] == ["alpha", "base_lr", "encoder.name"]
    assert row.split()[-3:] == ["0.5123", "0.008", "vit_large_pat…"]


def test_a_narrow_terminal_keeps_trial_epoch_and_value() -> None:
    header, row, *_ = shown(view(), width=24)
    assert header.split() == ["trial", "epoch", "value"]
    assert row.split() == ["0000", "4/8", "0.7500"]


def test_trials_without_room_are_counted() -> None:
    lines = shown(view(trials=16, notices=2), height=18)
    rows = [line for line in lines if line[:4].isdigit() and "/8" in line]
    assert len(rows) == 12
    assert "and 4 more" in lines
    assert len(lines) == 18


def test_no_trial_is_hidden_where_all_fit() -> None:
    lines = shown(view(trials=15), height=18)
    assert sum("/8" in line for line in lines) == 15
    assert not any("more" in line for line in lines)


def test_the_last_findings_stand_below_the_trials() -> None:
    lines = shown(view(notices=5))
    assert [line[:25] for line in lines[2:5]] == [f"warning: trial 000{n}: findi"[:25] for n in (2, 3, 4)]
    assert lines[5].startswith("4 of 40")


def test_a_trial_without_an_epoch_has_no_numbers_yet_and_a_diverged_value_is_short() -> None:
    live = LiveView(
        [trial(0, metrics={}), trial(1, metrics={"objective/value": 1.5e30})], "objective/value", [], STANDING
    )
    rows = shown(live)[1:3]
    assert rows[0].split()[4:] == ["-", "-", "-", "-"]
    assert rows[1].split()[4] == "1.5e+30"


def test_any_metric_of_a_sweep_has_its_column() -> None:
    live = LiveView([trial(0, metrics={"eval/loss_static": 0.5})], "eval/loss_static", [], STANDING)
    assert "loss_static" in shown(live)[0].split()
    assert "0.5000" in shown(live)[1]


def test_text_of_a_finding_is_one_line_and_no_markup() -> None:
    live = LiveView([], "objective/value", [Notice("0003", "[bold]two\nlines[/bold]", "critical")], STANDING)
    out = io.StringIO()
    Console(file=out, width=80, height=24, force_terminal=True, color_system=None).print(live)
    assert out.getvalue().splitlines()[0] == "critical: trial 0003: [bold]two lines[/bold]"
