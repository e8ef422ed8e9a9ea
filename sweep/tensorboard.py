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
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from model.errors import UserError
from model.metrics import BATCH_STEP, EPOCH_STEP, OBJECTIVE_NAMES
from model.sinks import Row, read_json, sound_rows, write_json, write_text
from sweep.conclusion import SEED
from sweep.outcome import Outcome
from sweep.parameters import Choice, Parameter
from sweep.results import ResultsFolder
from sweep.tables import SweepTables

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event

FOLLOW_S = 5.0  # between two passes
TABLES = {"batch.csv": BATCH_STEP, "epoch.csv": EPOCH_STEP}  # file -> the metric that is its rows' step


def main(arguments: list[str] | None = None, wait: Callable[[float], None] = time.sleep) -> int:
    """Run the command; returns the exit code: 0 done, 2 bad input, 3 the disk failed, 130 stopped by Ctrl-C.

    `wait` passes the seconds between two passes of --follow.
    """
    options = parser().parse_args(arguments)
    logdir = options.logdir or options.results / "tensorboard"
    try:
        return _run(options.results, logdir, wait if options.follow else None)
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


def _run(results: Path, logdir: Path, wait: Callable[[float], None] | None) -> int:
    events = SweepEvents(results, logdir)
    with _alone(logdir):
        rows = events.update()
        print(f"{logdir}: {_counted(rows, 'new row')} of {_counted(events.trials, 'trial')}", flush=True)
        print(f"to look at them: tensorboard --logdir {shlex.quote(str(logdir))}", flush=True)
        while wait is not None:
            wait(FOLLOW_S)
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
        self._files: dict[Path, TrialEvents] = {}
        self._spec = SweepTables(results).spec

    def update(self) -> int:
        """Write what is new; returns the number of rows.

        Raises UserError where the folder has events of another sweep or program, OSError where it cannot be written to.
        """
        self._claim()
        trials = SweepTables(self._results).trials
        self._file(self._logdir, self._results).update({"experiment": self._experiment()}, ended=True)
        rows = 0
        for trial in trials.to_dict("records"):
            name = str(trial["trial"])
            file = self._file(self._logdir / name, self._results / "trials" / name)
            session = self._session({str(key): value for key, value in trial.items()})
            rows += file.update(session, ended=trial["state"] != Outcome.RUNNING)
        self.trials = len(trials)
        return rows

    def _file(self, folder: Path, trial: Path) -> TrialEvents:
        if folder not in self._files:
            self._files[folder] = TrialEvents(folder, trial, self._tell)
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


@dataclass
class _State:
    """rows.json: how far each CSV file was read (bytes, checksum of them), the size of each event file, and which of
    the hparams' messages are written."""

    read: dict[str, tuple[int, int]] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)


class TrialEvents:
    """The events of one trial: what is new goes into a file that this process began.

    Where the event files are not as rows.json beside them says (a process was killed), or a CSV file no longer begins
    as it did (its trial was trained again), the events are written anew.

    Args:
        folder: gets the files; TensorBoard calls the run by its name.
        trial: folder with batch.csv and epoch.csv.
        note: takes a sentence on what cannot be read.
    """

    def __init__(self, folder: Path, trial: Path, note: Callable[[str], None]) -> None:
        self._folder = folder
        self._trial = trial
        self._note = note
        self._state_file = folder / "rows.json"
        self._seen: dict[str, tuple[int, int]] = {}
        self._writer: EventsWriter | None = None
        self._state = self._load()

    def update(self, summaries: Mapping[str, Any], ended: bool) -> int:
        """Write the rows that are new; returns how many.

        Args:
            summaries: other `Summary` messages by name, each written once.
            ended: no more rows are expected: the file is closed. There may be thousands of such trials.

        Raises OSError where the folder cannot be written to.
        """
        contents = dict(self._changed())
        if any(not self._goes_on(name, content) for name, content in contents.items()):
            self._close()
            self._state = self._fresh()
            self._seen.clear()
            contents = dict(self._changed())
        parts = [name for name in summaries if name not in self._state.parts]
        rows = [event for name, content in contents.items() for event in self._rows(name, content)]
        self._state.parts += parts
        if parts or rows:
            self._write([*(_event(time.time(), summary=summaries[name]) for name in parts), *rows])
        if ended:
            self._close()
        return len(rows)

    def _load(self) -> _State:
        try:
            known = read_json(self._state_file)
            state = _State(**{**known, "read": {name: (end, crc) for name, (end, crc) in known["read"].items()}})
            if state.files == self._sizes():
                return state
        except FileNotFoundError:
            pass
        except (OSError, UserError, TypeError, ValueError, LookupError, AttributeError):
            self._note(f"{self._state_file}: damaged; the events of trial {self._trial.name} are written anew")
        return self._fresh()

    def _fresh(self) -> _State:
        """Nothing is written, and earlier event files are gone."""
        for name in self._sizes():
            (self._folder / name).unlink()
        return _State()

    def _sizes(self) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in self._folder.glob("*tfevents*")}

    def _changed(self) -> Iterator[tuple[str, bytes]]:
        """The CSV files that are not as the last pass saw them."""
        for name in TABLES:
            path = self._trial / name
            try:
                there = path.stat()
                if (there.st_size, there.st_mtime_ns) == self._seen.get(name):
                    continue
                content = path.read_bytes()
            except FileNotFoundError:
                if name in self._state.read:
                    yield name, b""
                continue
            except OSError as error:
                self._note(f"{path}: cannot be read ({error.strerror})")
                continue
            self._seen[name] = (there.st_size, there.st_mtime_ns)
            yield name, content

    def _goes_on(self, name: str, content: bytes) -> bool:
        end, crc = self._state.read.get(name, (0, 0))
        return len(content) >= end and zlib.crc32(content[:end]) == crc

    def _rows(self, name: str, content: bytes) -> list[Event]:
        """Events of the whole rows behind those that were read: each holds all values of a row, as 32-bit floats."""
        head = content[: content.find(b"\n") + 1]
        end = max(self._state.read.get(name, (0, 0))[0], len(head))
        lines = [line for line in content[end:].splitlines(keepends=True) if head and line.endswith(b"\n")]
        try:
            wall_s = (self._trial / name).stat().st_mtime
        except OSError:
            wall_s = time.time()
        events = []
        with suppress(LookupError, ValueError, OverflowError):
            for row in sound_rows([line.decode(errors="replace") for line in (head, *lines)]):
                events.append(_row_event(row, TABLES[name], wall_s))  # those before the damage stay
        if len(events) < len(lines):
            self._note(f"{self._trial / name}: a row is damaged; it and the rows after it are left out")
        end += sum(map(len, lines[: len(events)]))
        self._state.read[name] = (end, zlib.crc32(content[:end]))
        return events

    def _write(self, events: Sequence[Event]) -> None:
        from tensorboardX.event_file_writer import EventsWriter  # imports torch, which takes seconds

        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(self._folder / "events"), f".{time.time_ns()}")
        for event in events:
            self._writer.write_event(event)
        self._writer.flush()
        self._state.files = self._sizes()
        write_json(self._state_file, asdict(self._state))

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _row_event(row: Row, step: str, wall_s: float) -> Event:
    from tensorboardX.proto.summary_pb2 import Summary

    shown = [Summary.Value(tag=tag, simple_value=value) for tag, value in row.items() if tag != step]
    return _event(wall_s, step=int(row[step]), summary=Summary(value=shown))


def _event(wall_s: float, **content: Any) -> Event:
    from tensorboardX.proto.event_pb2 import Event

    return Event(wall_time=wall_s, **content)


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
