"""`python -m sweep.doctor RESULTS`: do the study, the trials' folders, W&B's runs and Ray's directories agree?

    python -m sweep.doctor results/alpha_beta             # a line for each disagreement; changes nothing
    python -m sweep.doctor results/alpha_beta --repair    # mends them; what was damaged is kept in damaged/

No network is used, and nothing that was computed is deleted. `python -m sweep.run SPEC --resume` mends by itself what
it would stumble over; this command looks at every row, checkpoint and W&B file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from model.errors import ConfigError, UserError
from sweep.faults import storage_trouble
from sweep.remote import cache_folder, checked_url, is_url
from sweep.results import RUNS, ResultsFolder
from sweep.spec import SweepSpec, load_spec

if TYPE_CHECKING:
    from sweep.doctor.examine import Examination

LOCK_LIMIT_S = 10.0  # a single trial holds its folder's lock for some milliseconds


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m sweep.doctor`."""
    result = argparse.ArgumentParser(
        prog="python -m sweep.doctor",
        description="Compare what study, trials, W&B and Ray say of a sweep, list what disagrees, and mend it.",
        epilog="example: python -m sweep.doctor results/alpha_beta --repair",
    )
    result.add_argument("results", metavar="RESULTS", help="results folder of a sweep")
    result.add_argument("--repair", action="store_true", help="mend what disagrees; damaged files are kept")
    result.add_argument("--spec", type=Path, help="the sweep's file, where spec.yaml in RESULTS is lost or damaged")
    result.add_argument(
        "--set", dest="options", action="append", default=[], metavar="KEY=VALUE", help="set a key of --spec"
    )
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 all books agree, 1 disagreements are left, 2 bad input.

    2 as well where a file cannot be read or written.
    """
    options = parser().parse_args(arguments)
    try:
        folder = _folder(options.results)
        with _alone(folder, options.repair):
            spec = _spec(folder, options.spec, options.options)
            return _repair(folder, spec) if options.repair else _check(folder, spec)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        why = storage_trouble(error) or error
        print(f"error: {why}; put that right, and the same command goes on. Nothing was lost", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with what is left", file=sys.stderr)
        return 130


def _folder(path: str) -> ResultsFolder:
    if is_url(path):
        copy = cache_folder(checked_url(path))
        raise UserError(
            f"results: {path} is a URL; give a folder: its copy on this machine, {copy}, or one fetched with the "
            "store's own tools"
        )
    folder = ResultsFolder(Path(path))
    if not any((folder.path / name).exists() for name in ("spec.yaml", "trials", "study.journal")):
        what = "holds no sweep" if folder.path.is_dir() else "is no folder"
        raise UserError(f"results: {path} {what}; give the results folder of a sweep, such as results/alpha_beta")
    return folder


@contextmanager
def _alone(folder: ResultsFolder, repair: bool) -> Iterator[None]:
    """Alone in the folder. Raises ConfigError where a driver is at work in it, or where it cannot be written to."""
    trials = FileLock(folder.path / ".runs.lock", timeout=LOCK_LIMIT_S) if (folder.path / RUNS).exists() else None
    try:
        folder.lock() if trials is None else trials.acquire()
    except Timeout:
        raise ConfigError(f"results: another process has held the lock of {folder.path} for 10 s; end it") from None
    except OSError as error:
        if repair:
            raise ConfigError(f"results: cannot write to {folder.path}: {error}; nothing was mended") from None
    try:
        yield
    finally:
        folder.close() if trials is None else trials.release()


def _spec(folder: ResultsFolder, given: Path | None, options: list[str]) -> SweepSpec:
    """The sweep's spec. Raises UserError where it is lost and none is given, or what is given is not the sweep's."""
    there = folder.spec_file
    try:
        spec = load_spec(there)
    except UserError as error:
        if given is None:
            fault = str(error).splitlines()[0] if there.exists() else f"{there} is missing"
            raise UserError(
                f"{fault}. No other file holds all of it: give the file that the sweep was started with, "
                f"python -m sweep.doctor {folder.path} --spec SPEC.yaml"
            ) from None
    else:
        if given is not None or options:
            raise UserError(f"--spec: {there} is sound; leave --spec and --set out")
        return spec
    spec = load_spec(given, options)
    _check_spec(folder, spec, given)
    return spec


def _check_spec(folder: ResultsFolder, spec: SweepSpec, given: Path) -> None:
    """Raise UserError where a trial was not trained with this spec."""
    from sweep.doctor.files import trainer_differences

    for path in sorted((folder.path / "trials").glob("[0-9]*")):
        differs = trainer_differences(path, spec)
        if differs:
            raise UserError(
                f"--spec {given}: not the spec of this sweep: trial {path.name} has {differs}; give the one that it "
                "was started with, and its --set options"
            )


def _check(folder: ResultsFolder, spec: SweepSpec) -> int:
    from sweep.doctor.examine import Examination

    seen = Examination(folder.path, spec)
    lost = [] if _has_spec(folder) else ["spec.yaml: it is missing or damaged; --repair writes it anew from --spec"]
    for line in [*lost, *seen.findings]:
        print(line)
    _print_end(seen)
    count = len(seen.findings) + len(lost)
    if count:
        mendable = len(lost) + sum(finding.remedy is not None for finding in seen.findings)
        how = f"; python -m sweep.doctor {folder.path} --repair mends {_share(mendable, count)}" if mendable else ""
        print(f"{count} disagreement{'s' if count > 1 else ''}{how}")
    return 1 if count else 0


def _repair(folder: ResultsFolder, spec: SweepSpec) -> int:
    from sweep.doctor.repair import Repair

    repair = Repair(folder.path, spec)
    if not _has_spec(folder):
        repair.aside.copy(folder.spec_file)
        folder.write_spec(spec)
        print("mended spec.yaml: it was missing or damaged", flush=True)
    count = 0
    for finding in repair.run():
        count += 1
        print(f"mended {finding.place}: {finding.what}", flush=True)
    assert repair.last is not None
    for finding in repair.last.findings:
        print(f"left: {finding}")
    _print_end(repair.last)
    if repair.aside.folder.exists():
        print(f"what was damaged is kept in {repair.aside.folder}")
    left = len(repair.last.findings)
    if count or left:
        print(f"{count} mended, {left} left")
    return 1 if left else 0


def _has_spec(folder: ResultsFolder) -> bool:
    try:
        load_spec(folder.spec_file)
    except UserError:
        return False
    return True


def _share(mendable: int, count: int) -> str:
    return {count: "it" if count == 1 else "all of them"}.get(mendable, f"{mendable} of them")


def _print_end(seen: Examination) -> None:
    for note in seen.notes:
        print(f"note: {note}")
    if not seen.findings:
        runs = sum(run is not None for run in (books.run for books in seen.trials.values()))
        print(f"all books agree: {len(seen.trials)} trials, {runs} W&B runs")


if __name__ == "__main__":
    sys.exit(main())
