"""Threads of a trial: its share of the cores, for torch, for what follows OMP_NUM_THREADS, and for decoding."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from model.data.threads import MAX_THREADS, decoding_threads
from sweep.results import ResultsFolder
from sweep.study import SweepStudy
from tests.sweeping import tiny_spec


@pytest.mark.parametrize(
    ("given", "threads"),
    [("1", 1), ("3", 3), ("999", MAX_THREADS), ("2,4", 2), *((text, None) for text in ("", "0", "-1", "x"))],
)
def test_frames_are_decoded_by_the_share_of_a_process(
    given: str, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert decoding_threads() == (threads or min(MAX_THREADS, os.cpu_count() or 1))


class Quiet:
    """A watcher that says nothing."""

    def started(self, trial: str) -> None: ...

    def epoch(self, trial: str, epochs: int, metrics: dict[str, Any]) -> None: ...

    def ended(self, trial: str) -> None: ...

    def finding(self, trial: str, text: str, severity: str) -> None: ...

    def warning(self, text: str) -> None: ...


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="a share of one core shows nothing")
def test_a_worker_has_as_many_threads_as_its_trial_has_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    from sweep.trainable import SweepTrainable
    from sweep.tuner import run_trials

    class Telling(SweepTrainable):
        def step(self) -> dict[str, Any]:
            import torch

            seen = [torch.get_num_threads(), int(os.environ["OMP_NUM_THREADS"]), decoding_threads()]
            Path(self._job.folder.parent / f"{self._job.trial}.json").write_text(json.dumps(seen))
            return super().step()

    spec = tiny_spec(run_cap=1, resources={"cpu": 2})
    folder = ResultsFolder(tmp_path / "results")
    folder.open(spec, resume=False)
    (folder.path / "trials").mkdir()
    study = SweepStudy(folder.path, spec.name, spec.space)
    assert not run_trials(spec, folder, study, "uid", 1, Quiet(), trainable=Telling)
    folder.close()
    assert json.loads((folder.path / "trials/0000.json").read_text()) == [2, 2, 2]
