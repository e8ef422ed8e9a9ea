"""`python -m sweep.tensorboard RESULTS`: the rows of a sweep's trials as event files, for TensorBoard.

    python -m sweep.tensorboard results/alpha_beta
    tensorboard --logdir results/alpha_beta/tensorboard

Each trial is a run: its updates over batch/iteration, its epochs over the epoch; the tab HPARAMS compares the trials by
parameters and objective. TensorBoard keeps 32-bit floats; the CSV files have all digits. A repetition adds only what is
new.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from model.errors import UserError
from model.metrics import OBJECTIVE_NAMES
from model.sinks import write_text
from sweep.conclusion import SEED
from sweep.event_file import EventFile
from sweep.outcome import Outcome
from sweep.parameters import Choice, Parameter
from sweep.results import ResultsFolder
from sweep.tables import SweepTables

FOLLOW_S = 5.0  # between two passes


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 done, 2 bad input, 3 the disk failed, 130 stopped by Ctrl-C."""
    options = parser().parse_args(arguments)
    logdir = options.logdir or options.results / "tensorboard"
    try:
        return _run(options.results, logdir, options.follow)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {logdir}: cannot be written to ({error}); choose another folder by --logdir", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print(f"stopped; tensorboard --logdir {logdir} shows what was written", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m sweep.tensorboard`."""
    result = argparse.ArgumentParser(
        prog="python -m sweep.tensorboard",
        description="Write the rows of a sweep's trials as event files for TensorBoard; a repetition adds what is new.",
        epilog="example: python -m sweep.tensorboard results/alpha_beta --follow",
    )
    result.add_argument("results", type=Path, metavar="RESULTS", help="results folder of a sweep")
    result.add_argument("--logdir", type=Path, metavar="DIR", help="where to (default: RESULTS/tensorboard)")
    result.add_argument("--follow", action="store_true", help="go on while the sweep runs, until Ctrl-C")
    return result


def _run(results: Path, logdir: Path, follow: bool) -> int:
    events = SweepEvents(results, logdir)
    with _alone(logdir):
        rows = events.update()
        print(f"{logdir}: {_counted(rows, 'new row')} of {_counted(events.trials, 'trial')}", flush=True)
        print(f"to look at them: tensorboard --logdir {shlex.quote(str(logdir))}", flush=True)
        while follow:
            time.sleep(FOLLOW_S)
            if rows := events.update():
                print(f"{_counted(rows, 'new row')} of {_counted(events.trials, 'trial')}", flush=True)
    return 0


@contextmanager
def _alone(logdir: Path) -> Iterator[None]:
    """Keeps a second process away, which would write each row a second time."""
    logdir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(logdir / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{logdir}: another process writes events there; stop it, or give another --logdir") from None
    try:
        yield
    finally:
        lock.release()


class SweepEvents:
    """The event files of a sweep.

    Args:
        results: results folder.
        logdir: has a folder for each trial then.

    Attributes:
        trials: how many the last pass found.

    Raises:
        UserError: the results folder is none of a sweep.
    """

    def __init__(self, results: Path, logdir: Path) -> None:
        self.trials = 0
        self._results = results
        self._logdir = logdir
        self._told: set[str] = set()
        self._files: dict[Path, EventFile] = {}
        self._spec = SweepTables(results).spec

    def update(self) -> int:
        """Write what is new; returns the number of rows.

        Raises UserError where the folder has events of another sweep or program, OSError where it cannot be written to.
        """
        self._claim()
        trials = SweepTables(self._results).trials
        self._file(self._logdir, self._results).update({"experiment": self._experiment()})
        rows = 0
        for trial in trials.to_dict("records"):
            name = str(trial["trial"])
            file = self._file(self._logdir / name, self._results / "trials" / name)
            rows += file.update(self._session({str(key): value for key, value in trial.items()}))
        self.trials = len(trials)
        return rows

    def _file(self, folder: Path, trial: Path) -> EventFile:
        if folder not in self._files:
            self._files[folder] = EventFile(folder, trial, self._tell)
        return self._files[folder]

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            print(f"note: {text}", file=sys.stderr, flush=True)

    def _claim(self) -> None:
        owner = self._logdir / ".sweep"
        own = str(ResultsFolder(self._results).provenance().get("uid") or self._results.resolve())
        if not owner.exists():
            self._logdir.mkdir(parents=True, exist_ok=True)
            if any(next(self._logdir.glob(pattern), None) for pattern in ("*tfevents*", "*/*tfevents*")):
                # those of a trial's name would be taken for its older ones, and removed
                raise UserError(f"{self._logdir}: holds event files of another program; give a new folder by --logdir")
            write_text(owner, own)
        elif owner.read_text(encoding="utf-8", errors="replace") != own:
            raise UserError(f"{self._logdir}: holds the events of another sweep; give another folder by --logdir")

    def _experiment(self) -> Any:
        """What the tab HPARAMS compares: the searched parameters, and the objective with its parts."""
        parameters = self._spec.space.parameters.items()
        examples = {name: _cell(p, p.values[0] if isinstance(p, Choice) else 0.0) for name, p in parameters}
        metrics = dict.fromkeys((*(metric.name for metric in self._spec.objectives), *OBJECTIVE_NAMES), 0.0)
        if self._spec.confirm is not None:
            examples[SEED] = 0.0
        return _hparams(examples, metrics)[0]

    def _session(self, trial: dict[str, Any]) -> dict[str, Any]:
        """The trial's parameters, and once it has ended well, that it has."""
        values = {
            name: _cell(parameter, trial[name])
            for name, parameter in self._spec.space.parameters.items()
            if not _is_missing(trial.get(name))
        }
        if not _is_missing(trial.get(SEED)):
            values[SEED] = float(trial[SEED])
        _, start, end = _hparams(values, {})
        ended = trial["state"] in (Outcome.COMPLETE, Outcome.PRUNED)
        return {"parameters": start} | ({"end": end} if ended else {})


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _hparams(values: dict[str, Any], metrics: dict[str, float]) -> tuple[Any, Any, Any]:
    from tensorboardX.summary import hparams

    experiment, start, end = hparams(values, metrics)
    return experiment, start, end


def _cell(parameter: Parameter, value: Any) -> bool | float | str:
    """A parameter's value in one type for all trials: TensorBoard knows numbers, texts and truth values."""
    if not isinstance(parameter, Choice):
        return float(value)
    if all(isinstance(choice, bool) for choice in parameter.values):
        return str(value) in ("True", "true", "1", "1.0")
    if all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in parameter.values):
        return float(value)
    return str(value)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


if __name__ == "__main__":
    sys.exit(main())
