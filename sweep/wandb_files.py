"""What W&B's files of a run hold, read by wandb's own inspector (`wandb leet inspect`); wandb is not imported."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

import psutil

from model.metrics import BATCH_STEP, EPOCH_STEP

INSPECT_LIMIT_S = 60.0
# wandb's service writes a run's file behind the run's back: `finish` returns, and a killed worker is gone, before the
# last rows are in it. A file without its last record is complete once nothing was written to it for QUIET_S.
QUIET_S, WRITING_LIMIT_S = 2.0, 15.0
FLUSH_S = 16.0  # wandb's service keeps up to 32 KiB of a part for 15 s before it writes them
KINDS = OFFLINE, ONLINE = "offline-run", "run"  # how the name of a run's folder begins
UNREADABLE = "unreadable"
BROKEN_STREAM = "filestream: fatal error"  # in wandb's log: rows did not arrive
STILL_WRITTEN_S = 60.0  # a part without an end that another machine wrote to within this time may go on


def last_rows(folder: Path, run_id: str, kinds: Sequence[str] = KINDS) -> tuple[int, int]:
    """(batch/iteration, epoch) of the last rows in all parts of a run below `folder`/wandb; -1 where there is none.

    A part that was cut off by a kill counts as far as it can be read. Waits for a part that is still being written, or
    of which a service process on this machine still keeps rows: its own process may be stopped, and its trial given to
    this one.

    Args:
        kinds: of the parts that count: how the names of their folders begin.
    """
    iteration = epoch = -1
    for kind in kinds:
        # two parts that start in the same second: the later one's folder ends with -1
        for file in sorted(folder.glob(f"wandb/{kind}-*-{run_id}*/run-{run_id}.wandb")):
            _wait_for_flush(file)
            for record in whole_records(file):
                if record.get("type") == "history":
                    item = record["history"]["item"]
                    iteration = max(iteration, int(item.get(BATCH_STEP, -1)))
                    epoch = max(epoch, int(item.get(EPOCH_STEP, -1)))
    return iteration, epoch


def _wait_for_flush(file: Path) -> None:
    give_up = time.monotonic() + FLUSH_S
    with suppress(OSError):
        before = file.stat().st_mtime
        # below 0: the clock was set back
        while 0 <= time.time() - before < FLUSH_S and time.monotonic() < give_up and file.resolve() in _open_files():
            if file.stat().st_mtime != before:
                return
            time.sleep(0.2)


def whole_records(file: Path) -> list[dict[str, Any]]:
    """The records of a run's file, once its end was written or nothing is written to it any more.

    Raises:
        Nothing: what cannot be read is left out.
    """
    give_up = time.monotonic() + WRITING_LIMIT_S
    while True:
        records = list(_records(file))
        if any(record.get("type") == "exit" for record in records) or time.monotonic() > give_up:
            return records
        try:
            quiet_s = time.time() - file.stat().st_mtime
        except OSError:
            return records
        if not 0 <= quiet_s < QUIET_S:  # below 0: the clock was set back
            return records
        time.sleep(0.1)


def _records(file: Path) -> Iterator[dict[str, Any]]:
    return (record for line in _inspected(file)[0].splitlines() if (record := _object(line)))


def broken_stream(run_folder: Path) -> str | None:
    """Why the rows of an online run no longer went to the server, of wandb's log; `finish` does not tell."""
    with suppress(OSError):
        log = (run_folder / "logs" / "debug-internal.log").read_text(encoding="utf-8", errors="replace")
        for line in log.splitlines():
            if BROKEN_STREAM in line:
                return str(_object(line).get("msg", BROKEN_STREAM))
    return None


def unsent_marker(run_folder: Path) -> Path:
    """Of an online run's folder below `wandb/`: is there while the server lacks some of the run."""
    return run_folder / "unsent"


@dataclass(frozen=True)
class RunFile:
    """One part of a run: what a `.wandb` file says of it. A run that was resumed has several.

    Attributes:
        started: when, in W&B's words, in UTC; "" where the file does not say. They sort by time.
        suffix: of parts whose folders bear the same second, the later one's number; 0 of the first.
        ended: its last record is there.
        readable: as a whole or in part.
    """

    file: Path
    run_id: str
    started: str
    suffix: int
    ended: bool
    readable: bool

    @property
    def marker(self) -> Path:
        """The file by which `wandb sync` knows that this part was uploaded."""
        return self.file.with_suffix(".wandb.synced")

    @property
    def online(self) -> bool:
        """Whether it was recorded online: W&B has its rows, all but some at most."""
        return not self.file.parent.name.startswith(OFFLINE)

    @property
    def unsent(self) -> Path:
        """The file that says that the server did not get all of an online part."""
        return unsent_marker(self.file.parent)

    def is_written(self) -> bool:
        """Whether a process of this machine still writes to it, or did so a moment ago."""
        if self.ended:
            return False
        with suppress(OSError):
            if abs(time.time() - self.file.stat().st_mtime) < STILL_WRITTEN_S:
                return True
        return self.file.resolve() in _open_files()


@dataclass(frozen=True)
class PastRun:
    """A run of W&B's that was recorded earlier, whole.

    Attributes:
        state: in W&B's words: finished, failed, crashed, killed, running, ...; or UNREADABLE.
        config: without wandb's own keys.
        summary: the last value of each metric, and what was put there.
        read_rows: its history rows in order, as JSON has them, and what was lost of them; None where nothing was. A
            run that was cut off has lost nothing: its state says so.
    """

    run_id: str
    name: str
    state: str
    config: dict[str, Any]
    summary: dict[str, Any]
    read_rows: Callable[[], tuple[Iterable[dict[str, Any]], str | None]]


def recorded_runs(folder: Path) -> list[PastRun]:
    """The runs whose files are in a folder `wandb/`, in the order in which they began; all parts of each as one."""
    parts: dict[str, list[RunFile]] = {}
    for part in run_files(folder):
        parts.setdefault(part.run_id, []).append(part)
    return [_past_run(own) for own in sorted(parts.values(), key=lambda own: (own[0].started, own[0].run_id))]


def recorded_run(file: Path) -> PastRun:
    """The run that a `.wandb` file is of, with the other parts of it that lie beside its folder."""
    parts = {file.resolve()}
    for kind in KINDS:
        parts |= {own.resolve() for own in file.resolve().parents[1].glob(f"{kind}-*/{file.name}")}
    return _past_run(sorted(map(_run_file, parts), key=lambda part: (part.started, part.suffix, part.file.name)))


def _past_run(parts: Sequence[RunFile]) -> PastRun:
    heads = [head for part in parts if part.readable and (head := read_head(part.file))]
    last = heads[-1] if heads else {}
    code = last.get("exit_code")
    state = "running" if parts[-1].is_written() else "crashed"
    if code is not None:
        state = "finished" if code == 0 else "failed"
    if not any(part.readable for part in parts):
        state = UNREADABLE
    return PastRun(
        run_id=parts[0].run_id,
        name=last.get("name") or parts[0].run_id,
        state=state,
        config={name: value for name, value in last.get("config", {}).items() if name != "_wandb"},
        summary=dict(last.get("summary", {})),
        read_rows=lambda: _rows_of(parts),
    )


def _rows_of(parts: Sequence[RunFile]) -> tuple[list[dict[str, Any]], str | None]:
    rows: list[dict[str, Any]] = []
    lost = []
    for part in parts:
        text, complaints = _inspected(part.file)
        records = [record for line in text.splitlines() if (record := _object(line))]
        rows += [record["history"]["item"] for record in records if record.get("type") == "history"]
        if "corrupt" in complaints or (not records and part.file.stat().st_size):
            lost.append(str(part.file))
    return rows, f"damaged, so that some of its rows are lost: {', '.join(lost)}" if lost else None


def run_files(folder: Path, kinds: Sequence[str] = KINDS) -> list[RunFile]:
    """The parts of all runs in a folder `wandb/`, or of the one run whose folder this is; by run, then by time.

    Args:
        kinds: how the names of the runs' folders begin.
    """
    files = [file for kind in kinds for file in folder.glob(f"{kind}-*/run-*.wandb")]
    if folder.name.startswith(tuple(f"{kind}-" for kind in kinds)):
        files += folder.glob("run-*.wandb")
    return sorted(map(_run_file, files), key=lambda part: (part.run_id, part.started, part.suffix, part.file.name))


def read_head(file: Path) -> dict[str, Any]:
    """Run id, start, state, exit code, config and summary of one part; empty where nothing can be read."""
    return _object(_inspected(file, "--summary")[0])


def _run_file(file: Path) -> RunFile:
    head = read_head(file)
    run_id = file.stem.removeprefix("run-")
    number = file.parent.name.rpartition(f"-{run_id}")[2].removeprefix("-")
    return RunFile(
        file=file,
        run_id=run_id,
        # to the microsecond, as text that sorts by time: zeros at its end are left out
        started=(head.get("start_time") or "").rstrip("Z"),
        suffix=int(number) if number.isdecimal() else 0,
        ended=head.get("exit_code") is not None,
        readable=bool(head.get("run_id")),
    )


def _object(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _open_files() -> set[Path]:
    """Files that wandb's service processes of this user have open on this machine."""
    found = set()
    for process in psutil.process_iter(["name"]):
        with suppress(psutil.Error, OSError):
            if process.info["name"] == "wandb-core":
                found |= {Path(entry.path).resolve() for entry in process.open_files()}
    return found


def _inspected(file: Path, *options: str) -> tuple[str, str]:
    """What wandb's inspector says of a file, and what it complains of; both empty where it does not run."""
    # its program itself: the command `wandb` takes a second to get there
    package = util.find_spec("wandb")
    assert package is not None
    assert package.origin is not None
    program = Path(package.origin).parent / "bin" / "wandb-core"
    command = [str(program), "leet", "inspect", "--no-observability", "--json", *options]
    command += ["--run-file", str(file), str(file.parent.parent)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=INSPECT_LIMIT_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return "", ""
    return done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
