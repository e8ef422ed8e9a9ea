"""The benchmark of large sweeps runs, and looks for every row. Nothing is timed here."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from tests.inline import inline_runner

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def test_a_small_load_runs_to_its_end_with_all_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setattr(sys, "argv", ["bench_load.py", "--trials", "10", "--concurrent", "2"])
    with inline_runner():
        importlib.import_module("bench_load").main()
    printed = capsys.readouterr().out
    assert "the driver's cost" in printed
    assert "10 trials (" in printed
    assert "each row is in its CSV file once" in " ".join(printed.split())
