"""sweep/report/health.py: the diagnosis on the page, and what the answer says of it."""

from __future__ import annotations

import math
from pathlib import Path

from model.metrics import Level
from model.sinks import CsvSink, Event
from sweep.report.data import read_results
from sweep.report.health import health
from tests.reporting import COMPLETE, DIVERGED, Ending, sweep_folder, told


def shares(folder: Path, trial: str, share: float) -> None:
    """Give all epochs of a trial this share of the static loss."""
    path = folder / "trials" / trial / "epoch.csv"
    head, *lines = path.read_text(encoding="utf-8").splitlines()
    place = head.split(",").index("epoch/actual_static_contribution")
    rows = [line.split(",") for line in lines]
    for cells in rows:
        cells[place] = repr(share)
    path.write_text("\n".join([head, *(",".join(cells) for cells in rows)]) + "\n", encoding="utf-8")


def test_the_answer_warns_of_a_critical_finding_in_its_own_trial_only(tmp_path):
    folder = sweep_folder(tmp_path / "r", Ending(COMPLETE, (1.0, 0.9, 0.8)), Ending(COMPLETE, (1.0, 0.8, 0.5)))
    shares(folder, "0000", 0.9)
    shares(folder, "0001", 0.5)
    assert "Mind its diagnosis" not in told(folder)
    shares(folder, "0001", 0.9)
    assert "Mind its diagnosis, though: static share is critical in trial 0001." in told(folder)


def test_a_trial_that_diverged_before_its_first_epoch_ended_is_judged_by_its_updates(tmp_path):
    folder = sweep_folder(tmp_path / "r", Ending(COMPLETE, (1.0, 0.9)), Ending(DIVERGED))
    (folder / "trials/0001/batch.csv").unlink(missing_ok=True)
    sink = CsvSink(folder / "trials/0001")
    sink.log(Event(Level.BATCH, {"batch/epoch": 0, "batch/iteration": 0, "batch/loss_total": math.nan}))
    sink.close(0)
    (fired,) = [fired for fired in health(read_results(folder)).fired if fired.rule.value == "NaN / Inf"]
    assert fired.trials == ["0001"]
