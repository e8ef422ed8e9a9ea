"""scripts/example.ipynb: runs from top to bottom in a kernel of its own, on a results folder that was made up here."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from past_sweeps import Past, past_sweep, write_trial
from sweeping import tiny_spec

from sweep.outcome import Outcome

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "scripts" / "example.ipynb"
PLOTLY = "application/vnd.plotly.v1+json"


@pytest.fixture
def notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def results_folder(folder: Path) -> Path:
    """A sweep of four trials, and a run of its confirmation."""
    spec = tiny_spec(name="alpha_beta")
    equal = {"alpha": 0.5, "base_lr": 0.03}
    results = past_sweep(
        folder,
        spec,
        Past(equal, preset="equal-weights", last={"objective/value": 0.9}),
        Past({"alpha": 0.7, "base_lr": 0.1}),
        Past({"alpha": 0.2, "base_lr": 0.1}, Outcome.PRUNED, epochs=1),
        Past({"alpha": 0.9, "base_lr": 0.2}, Outcome.DIVERGED, epochs=2, nan_in="batch"),
    )
    write_trial(results / "trials" / "c0000", spec, Past(equal), seed=7)
    with (results / "confirm.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["trial", "state", "candidate"], ["c0000", "complete", "equal-weights"]])
    return results


def test_the_notebook_is_short_and_without_outputs(notebook):
    assert len(notebook.cells) < 15
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.process
def test_every_cell_runs_and_shows_what_it_says(notebook, tmp_path):
    results_folder(tmp_path / "results" / "alpha_beta")
    (tmp_path / "scripts").mkdir()  # Jupyter runs a notebook in the folder where it lies
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
    }
    client = NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(tmp_path / "scripts")}})
    client.execute(env=environment)
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    texts = [str(output.get("text") or output.get("data", {}).get("text/plain")) for output in shown]
    assert "<sweep alpha_beta: 4 trials" in texts[0]
    assert "best of the search: trial 000" in texts[1]
    assert any("equal-weights" in text and "objective/imbalance" in text for text in texts)
    figures = [output.data[PLOTLY] for output in shown if PLOTLY in output.get("data", {})]
    assert len(figures) == 2
    assert all(figure["data"] for figure in figures)
    assert not [output for output in shown if output.output_type == "error" or output.get("name") == "stderr"]
