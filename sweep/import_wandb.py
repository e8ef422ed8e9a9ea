"""`python -m sweep.import_wandb SOURCE... --results DIR`: finished W&B runs as a results folder.

    python -m sweep.import_wandb me/tactile-sweep/abc123 --results results/from_wandb
    python -m sweep.import_wandb copied/wandb --spec sweeps/alpha_beta.yaml --results results/from_wandb

A SOURCE is a sweep at W&B (ENTITY/PROJECT/SWEEP, or its page's address) or a folder with runs' files (`wandb/`, a
results folder, or the folder of one run). DIR can then be named in search.warm_start of another spec, ranked anew by
`python -m sweep.rescore`, and shown by `python -m sweep.report`.

Runs of ours come back exactly, from their files or a server that was sent every row. Of other runs, config keys that
are fields of the trainer and metrics that are ours are taken; what is not is named.

Without --spec the search space is that of the sweep's W&B config; of a results folder that of its spec.yaml; of other
folders what differs between the runs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.configfile import validated, with_overrides
from model.errors import DataError, UserError
from model.metrics import Level
from model.sinks import CsvSink, Event, write_json, write_text
from sweep.imported import LeftOutError, Trial, as_trial, spec_of_runs, spec_of_sweep, values_of
from sweep.outcome import Outcome
from sweep.results import RUNS, ResultsFolder
from sweep.scored import Ledger, read_trial
from sweep.spec import SweepSpec, load_spec
from sweep.study import Record
from sweep.trial_table import TrialTable
from sweep.wandb_files import PastRun, recorded_runs
from sweep.wandb_runs import ServerSweep, SweepName
from sweep.words import few


@dataclass(frozen=True)
class Source:
    """Where runs come from.

    Attributes:
        spec_file: the spec that they ran under, where it lies beside them.
        config: the W&B config of their sweep.
    """

    name: str
    runs: Sequence[PastRun]
    spec_file: Path | None = None
    config: Mapping[str, Any] | None = None


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 done, 2 bad input."""
    options = parser().parse_args(arguments)
    try:
        for line in import_runs(options.sources, options.results, options.spec, options.options):
            print(line, flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m sweep.import_wandb`."""
    result = argparse.ArgumentParser(
        prog="python -m sweep.import_wandb",
        description="Bring finished W&B runs into a results folder, for search.warm_start, rescore and report.",
        epilog="example: python -m sweep.import_wandb me/tactile-sweep/abc123 --results results/from_wandb",
    )
    result.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="ENTITY/PROJECT/SWEEP, or a folder with the files of runs"
    )
    result.add_argument("--results", type=Path, required=True, metavar="DIR", help="new results folder")
    result.add_argument(
        "--spec", type=Path, help="sweep file: what was searched, and the trainer of runs that do not say it"
    )
    result.add_argument(
        "--set", dest="options", action="append", default=[], metavar="KEY=VALUE", help="set a key of the spec"
    )
    return result


def import_runs(
    sources: Sequence[str], results: Path, spec_file: Path | None = None, overrides: Sequence[str] = ()
) -> Iterator[str]:
    """Bring runs into a new results folder; yields lines for the terminal. DIR is complete or not there at all.

    Raises UserError where a source has no runs, no spec fits, none of the runs can be a trial, or DIR holds something.
    """
    folder = ResultsFolder(results)
    _check_empty(folder.path)
    spec = load_spec(spec_file, overrides) if spec_file is not None else None
    read = [_source(text) for text in sources]
    if spec is None:
        spec, notes = _concluded_spec(read, overrides)
        yield from (f"note: {note}" for note in notes)
    scratch = folder.path.with_name(f".{folder.path.name}.{os.getpid()}.importing")
    try:
        try:
            scratch.mkdir(parents=True)
        except OSError as error:
            raise UserError(
                f"results: cannot write to {results}: {error.strerror}; give another --results DIR"
            ) from None
        importer = _Importer(ResultsFolder(scratch), spec)
        seen: set[str] = set()
        for source in read:
            for run in source.runs:
                if run.run_id in seen:
                    importer.leave_out("it is in two of the sources", run)
                else:
                    seen.add(run.run_id)
                    importer.take(run)
        importer.finish()
        if folder.path.exists():
            folder.path.rmdir()  # it is empty
        scratch.rename(folder.path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    yield from importer.lines(results)


def _check_empty(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise UserError(f"results: {path} is a file; give a new folder with --results DIR")
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"results: {path} holds something already; give an empty or a new folder with --results DIR")


def _source(text: str) -> Source:
    path = Path(text).expanduser()
    if path.is_dir():
        folder = path / "wandb" if (path / "wandb").is_dir() else path
        runs = recorded_runs(folder)
        if not runs:
            raise UserError(
                f"{text}: holds no W&B runs (folders offline-run-* or run-*, with a file run-*.wandb); give a folder "
                "wandb/, or a results folder"
            )
        places = (folder, folder.parent, folder.parent.parent) if folder.name != "wandb" else (folder.parent,)
        return Source(text, runs, next((p / "spec.yaml" for p in places if (p / "spec.yaml").is_file()), None))
    name = SweepName.parse(text)
    if path.exists() or name is None:
        what = "is a file" if path.exists() else "is no folder, and no sweep of the form ENTITY/PROJECT/SWEEP"
        raise UserError(f"{text}: {what}; give one or the other")
    sweep = ServerSweep(name)
    runs = list(sweep.runs())
    if not runs:
        raise UserError(f"{text}: the sweep has no runs yet; there is nothing to import")
    return Source(text, runs, config=sweep.config)


def _concluded_spec(sources: Sequence[Source], overrides: Sequence[str]) -> tuple[SweepSpec, list[str]]:
    """The spec that the first source's runs ran under, as far as it tells, and notes."""
    source = sources[0]
    if source.spec_file is not None:
        return load_spec(source.spec_file, overrides), [f"spec: {source.spec_file}"]
    if source.config is not None:
        content, notes = spec_of_sweep(source.config, source.name.rpartition("/")[2], source.runs)
    else:
        content, notes = spec_of_runs(source.name, source.runs)
    try:
        return validated(SweepSpec, with_overrides(content, overrides), "spec"), notes
    except UserError as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"{source.name}: what is known of the sweep makes no spec ({first}); give --spec SPEC"
        ) from None


class _Importer:
    """Writes runs as the trials of a results folder."""

    def __init__(self, folder: ResultsFolder, spec: SweepSpec) -> None:
        self._folder = folder
        self._spec = spec
        self._table = TrialTable(folder, spec)
        self._trials: dict[str, str] = {}  # run -> trial
        self._waiting: list[PastRun] = []  # that have no number, or one that is taken
        self._counts: Counter[Outcome] = Counter()
        self._left_out: dict[str, list[str]] = {}
        self._unknown: Counter[str] = Counter()
        self._notes: list[str] = []

    def take(self, run: PastRun, number: int | None = None) -> None:
        """Write one run, unless it cannot be a trial. One without a number of its own waits for `finish`."""
        try:
            trial = as_trial(run, self._spec)
            number = trial.number if number is None else number
            if number is None or f"{number:04d}" in self._trials.values():
                self._waiting.append(run)
                return
            self._write(trial, f"{number:04d}")
        except (LeftOutError, DataError) as why:
            self.leave_out(str(why).replace(f"{self._folder.path}{os.sep}", ""), run)

    def leave_out(self, why: str, run: PastRun) -> None:
        """Name a run that is not imported."""
        self._left_out.setdefault(why, []).append(run.name if run.name == run.run_id else f"{run.name} ({run.run_id})")

    def finish(self) -> None:
        """Number the runs that wait, and write the folder's own files. Raises UserError where there is no trial."""
        free = max((int(trial) for trial in self._trials.values()), default=-1) + 1
        for number, run in enumerate(self._waiting, start=free):
            self.take(run, number)
        if not self._trials:
            raise UserError(f"none of the runs can be imported: {'; '.join(self._reasons())}")
        self._table.write()
        self._folder.write_spec(self._spec)
        self._folder.write_provenance(self._spec)
        write_json(self._folder.path / RUNS, self._trials)

    def lines(self, results: Path) -> Iterator[str]:
        """What became of the runs."""
        yield from (f"note: {note}" for note in self._notes)
        for why in self._reasons():
            yield f"note: left out, since {why}"
        if self._unknown:
            yield f"note: not ours, left out: {few(sorted(self._unknown))}"
        counts = ", ".join(f"{count} {outcome.value}" for outcome, count in self._counts.most_common())
        total = len(self._trials) + sum(map(len, self._left_out.values()))
        yield f"{results}: {len(self._trials)} of {total} runs: {counts}"
        yield f"use them in another sweep by search.warm_start: [{results}]"

    def _reasons(self) -> list[str]:
        return [f"{why}: {few(runs)}" for why, runs in self._left_out.items()]

    def _write(self, trial: Trial, name: str) -> None:
        from sweep.trial import config_text  # imports torch

        folder = self._folder.trial_folder(name)
        about = f"trial {name} of sweep {trial.run.config.get('sweep', self._spec.name)}"
        sink = CsvSink(folder)
        for event in trial.history.events():
            sink.log(event)
        if trial.history.summary:
            sink.log(Event(Level.SUMMARY, trial.history.summary))
        sink.close(0)
        write_text(folder / "config.yaml", config_text(trial.config, about))
        try:
            read_trial(folder, Ledger(trial.outcome, trial.preset)).scored(self._spec.objective)
        except DataError:
            shutil.rmtree(folder)
            raise
        self._trials[trial.run.run_id] = name
        self._counts[trial.outcome] += 1
        self._unknown.update(trial.unknown)
        self._table.update(self._record(trial, name))
        if trial.lost:
            self._notes.append(f"trial {name}: {trial.lost}")
        if trial.rows_of:
            rows, updates = trial.rows_of
            self._notes.append(
                f"trial {name}: {rows} of {updates} updates have a row (`wandb.log_every`, or some were lost), "
                "so its objective/instability is an estimate where it is computed anew"
            )

    def _record(self, trial: Trial, name: str) -> Record:
        last = trial.history.epoch[-1] if trial.history.epoch else {}
        return Record(
            number=int(name),
            trial=name,
            values=values_of(trial.config, self._spec),
            preset=trial.preset,
            outcome=trial.outcome,
            value=None if trial.outcome is Outcome.DIVERGED else last.get(self._spec.metric.name),
            epochs=len(trial.history.epoch),
            reason=trial.reason,
        )


if __name__ == "__main__":
    sys.exit(main())
