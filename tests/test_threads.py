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


@pytest.mark.ray
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="a share of one core shows nothing")
def test_a_worker_is_reused_and_has_as_many_threads_as_its_trial_has_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    from sweep.trainable import SweepTrainable
    from sweep.tuner import run_trials

    class Telling(SweepTrainable):
        def step(self) -> dict[str, Any]:
            import torch

            seen = [os.getpid(), torch.get_num_threads(), int(os.environ["OMP_NUM_THREADS"]), decoding_threads()]
            Path(self._job.folder.parent / f"{self._job.trial}.json").write_text(json.dumps(seen))
            return super().step()

    wandb, resources = {"mode": "disabled"}, {"cpu": 2, "max_concurrent": 1}
    spec = tiny_spec(run_cap=3, wandb=wandb, resources=resources)
    folder = ResultsFolder(tmp_path / "results")
    folder.open(spec, resume=False)
    (folder.path / "trials").mkdir()
    study = SweepStudy(folder.path, spec.name, spec.space)
    assert not run_trials(spec, folder, study, "uid", 3, Quiet(), trainable=Telling)
    folder.close()
    seen = [json.loads((folder.path / f"trials/000{number}.json").read_text()) for number in range(3)]
    assert [threads for _, *threads in seen] == [[2, 2, 2]] * 3
    assert len({pid for pid, *_ in seen}) == 1
