"""`python -m sweep.run SPEC`: search alpha : beta, learning rate and mask ratio of the joint tactile MAE.

    python -m sweep.run sweeps/alpha_beta.yaml --set run_cap=32 --results results/first

Checks the spec and the data first, then runs the trials with Ray Tune. Ctrl-C ends cleanly; `--resume` goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from rich.console import Console

from model.bars import decoding
from model.errors import ConfigError, UserError
from sweep import cluster
from sweep.conclusion import Conclusion
from sweep.confirm import Confirmation
from sweep.doctor.repair import mended_for_resume
from sweep.faults import MachineError, storage_trouble
from sweep.findings import write_best, write_conclusion, write_front, write_report_or_say_why_not
from sweep.forecast import forecast
from sweep.forecast_text import print_forecast
from sweep.front import front_of
from sweep.halt import GO_ON, MACHINE_FAILED
from sweep.lines import open_console, say
from sweep.plan import SweepPlan, make_plan, unchecked
from sweep.probe import LIMIT_S, Measurement, measure
from sweep.progress import Progress
from sweep.remote import is_url
from sweep.results import ResultsFolder
from sweep.run_command import parser
from sweep.spec import SweepSpec, load_spec
from sweep.study import JOURNAL, Outcome, Record, SweepStudy, best
from sweep.sweep_mirror import SweepMirror
from sweep.terminal import print_conclusion, print_counts, print_front, print_next_steps, print_plan, print_summary
from sweep.trial_table import TrialTable
from sweep.warm_start import WarmStart, load_warm_start


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code.

    0 done, 1 no trial finished, 2 bad input, 3 the machine failed (a full disk, Ray died), 130 stopped by the user.
    """
    options = parser().parse_args(arguments)
    console = open_console()
    try:
        with cluster.named(options.address):
            return _run_command(options, console)
    except MachineError as error:
        _print_error(str(error))
        return MACHINE_FAILED
    except UserError as error:
        _print_error(str(error))
        return 2
    except OSError as error:
        if (trouble := storage_trouble(error)) is None:
            raise
        _print_error(f"{trouble}; {GO_ON}")
        return MACHINE_FAILED
    except (KeyboardInterrupt, SystemExit):  # the latter: SIGTERM while Ray starts
        print("stopped at once; go on with the same command and --resume, if the sweep had begun", file=sys.stderr)
        return 130


def _run_command(options: argparse.Namespace, console: Console) -> int:
    spec = load_spec(options.spec, options.options)
    place = options.results or spec.results or str(Path("results") / spec.name)
    how = {"dry_run": options.dry_run, "measured": not options.no_measure, "verbose": options.verbose}
    if not is_url(place):
        folder = ResultsFolder(Path(place))
        return run(spec, folder, console, resume=_resumes(options, folder), **how)
    mirror = _mirror(spec, place, console)
    with mirror.opened(options.resume or options.resume_or_start, options.dry_run):
        folder = ResultsFolder(mirror.folder)
        resume = _resumes(options, folder)
        return run(spec, folder, console, resume=resume, mirror=mirror, **how)


def _resumes(options: argparse.Namespace, folder: ResultsFolder) -> bool:
    return bool(options.resume or (options.resume_or_start and folder.spec_file.exists()))


def _print_error(text: str) -> None:
    Console(stderr=True, highlight=False).print(f"error: {text}", style="red", markup=False, soft_wrap=True)


def run(
    spec: SweepSpec,
    folder: ResultsFolder,
    console: Console,
    *,
    resume: bool = False,
    dry_run: bool = False,
    measured: bool = True,
    verbose: bool = False,
    mirror: SweepMirror | None = None,
) -> int:
    """Check, plan, run, sum up; returns the exit code. Raises UserError for bad input, before anything is started.

    Args:
        measured: a dry run predicts time and memory from a few updates.
        verbose: print what Ray and its workers say.
        mirror: open; `folder` is the local copy of its URL.
    """
    for warning in spec.warnings():
        say(f"note: {warning}", console, "yellow")
    folder.check(spec, resume)
    warm = _warm_start(spec, folder)
    for note in warm.notes:
        console.print(note, markup=False, soft_wrap=True)
    plan = _plan_with_bar(spec, console, warm)
    print_plan(plan, folder, console)
    if mirror is not None:
        console.print(f"           copied to {mirror.url}", markup=False, soft_wrap=True)
    if dry_run:
        _print_forecast(plan, folder, measured, console)
        left = unchecked(spec)
        checked = "spec, data and model were" if left else "everything was"
        console.print(f"dry run: {checked} checked, nothing was started", markup=False)
        if left:
            console.print(f"not checked: {'; '.join(left)}", markup=False, soft_wrap=True)
        return 0
    folder.open(spec, resume)
    try:
        if resume:
            for line in mended_for_resume(folder.path, spec):
                console.print(line, markup=False, soft_wrap=True)
        with nullcontext() if mirror is None else mirror.running():
            return _run_open(plan, folder, console, mirror, verbose)
    except UserError:
        if not resume:
            folder.discard()  # nothing was computed: the mended spec may use the same folder
            if mirror is not None:
                mirror.discard()
        raise
    except OSError as error:
        if (trouble := storage_trouble(error, folder.path)) is None:
            raise
        raise MachineError(f"{trouble}; {GO_ON}") from None
    finally:
        folder.close()


def _run_open(
    plan: SweepPlan, folder: ResultsFolder, console: Console, mirror: SweepMirror | None, verbose: bool
) -> int:
    spec = plan.spec
    uid = folder.write_provenance(spec)
    if spec.search.warm_start:
        plan.warm.save(folder.warm_start_file)  # what it was made of may be gone when the sweep is resumed
    study = _open_study(plan, folder)
    to_run = spec.num_trials - len(_ended(study))
    if to_run <= 0:
        console.print(f"all {spec.num_trials} trials are done already; --set run_cap={spec.num_trials * 2} adds more")
    else:
        folder.conclusion_file.unlink(missing_ok=True)  # the trials to come may change what is to be confirmed
    stopped = _run_trials(plan, folder, study, uid, max(to_run, 0), console, mirror, verbose)
    records = study.records()
    if spec.metrics:
        return _end_with_front(spec, folder, records, stopped, console)
    winner = best(records, spec.metric.goal)
    print_summary(spec, folder, records, winner, console)
    config, conclusion = None, None
    if winner is not None:
        config = write_best(spec, folder, winner)
        if spec.confirm is not None and not stopped:
            conclusion, stopped = _confirm(plan, folder, records, uid, console, mirror, verbose)
            config = write_best(spec, folder, winner, conclusion)
    confirmed = conclusion is not None and conclusion.confirmed
    write_report_or_say_why_not(folder, console)
    if conclusion is not None:
        print_conclusion(conclusion, console)
    print_next_steps(spec, folder, config, confirmed, console)
    if stopped:
        console.print("stopped; go on with the same command and --resume", style="bold")
        return 130
    return 1 if config is None or (conclusion is not None and not confirmed) else 0


def _end_with_front(
    spec: SweepSpec, folder: ResultsFolder, records: list[Record], stopped: bool, console: Console
) -> int:
    """Of several metrics there is no best trial, but a Pareto front: write and print it; returns the exit code."""
    front = front_of(records, spec)
    table = TrialTable(folder, spec)
    for record in records:
        table.update(record)
    table.write()
    write_front(spec, folder, table, front)
    write_report_or_say_why_not(folder, console)
    print_counts(records, console)
    if front:
        print_front(spec, folder, front, console)
    console.print(f"report: {folder.report_file}", soft_wrap=True, markup=False)
    if stopped:
        console.print("stopped; go on with the same command and --resume", style="bold")
        return 130
    return 0 if front else 1


def _run_trials(
    plan: SweepPlan,
    folder: ResultsFolder,
    study: SweepStudy,
    uid: str,
    to_run: int,
    console: Console,
    mirror: SweepMirror | None,
    verbose: bool,
) -> bool:
    """Run trials of the search, or of the confirmation, to their ends; True where the user stopped it."""
    spec, confirming = plan.spec, isinstance(study, Confirmation)
    table = TrialTable(folder, spec, study.space if confirming else None)
    records, ended = study.records(), _ended(study)
    for record in records:
        table.update(record)
    if to_run == 0:
        table.write()
        return False
    from sweep.tuner import run_trials  # imports Ray: not before everything was checked

    if records:
        console.print(f"resuming: {len(ended)} trials are done, {study.unfinished} go on, {to_run} to run in all")

    def note_ended(record: Record) -> None:
        table.update(record)
        if mirror is not None:
            mirror.ended(record)

    progress = Progress(
        console,
        num_trials=len(ended) + to_run,
        earlier=ended,
        epochs=plan.base.epochs,
        find=study.record,
        sign=spec.metric.sign,
        metric=spec.metric.name,
        on_ended=note_ended,
        competing=not confirming and not spec.metrics,
    )
    with progress:
        try:
            remote = None if mirror is None else mirror.url
            stopped = run_trials(
                spec, folder, study, uid, to_run, progress, search=not confirming, remote=remote, verbose=verbose
            )
            if mirror is not None:
                mirror.hurry = stopped
            return stopped
        finally:
            if mirror is not None:
                mirror.pull()  # the files of trials that ran on other machines
            for record in study.records():
                table.update(record)
            table.write()


def _ended(study: SweepStudy) -> list[Record]:
    return [record for record in study.records() if record.outcome is not Outcome.RUNNING]


def _confirm(
    plan: SweepPlan,
    folder: ResultsFolder,
    records: list[Record],
    uid: str,
    console: Console,
    mirror: SweepMirror | None,
    verbose: bool,
) -> tuple[Conclusion, bool]:
    """Train the search's best configs and the presets again; what that shows, and whether the user stopped it."""
    with _usable_study(folder):
        confirmation = Confirmation(folder, plan.spec, records)
    configs = ", ".join(candidate.name for candidate in confirmation.candidates.configs)
    console.print(
        f"\nconfirming {configs}: {confirmation.num_runs} runs, {confirmation.to_run} to go",
        markup=False,
        soft_wrap=True,
    )
    write_conclusion(folder, confirmation.conclude())  # a killed confirmation leaves no older one behind
    stopped = _run_trials(plan, folder, confirmation, uid, confirmation.to_run, console, mirror, verbose)
    return write_conclusion(folder, confirmation.conclude()), stopped


def _print_forecast(plan: SweepPlan, folder: ResultsFolder, measured: bool, console: Console) -> None:
    found = None
    if measured:
        text = f"measuring a few updates of a trial: at most {LIMIT_S:.0f} s and the start of a process"
        with console.status(text) if console.is_terminal else nullcontext():
            found = measure(plan.spec)
    print_forecast(plan, found, forecast(plan, found or Measurement(), folder.path), console)


def _mirror(spec: SweepSpec, url: str, console: Console) -> SweepMirror:
    """For results at a URL. Raises ConfigError for a sweep that cannot have them there."""
    if spec.search.pbt is not None:
        raise ConfigError(
            f"results: {url}: population-based training (search.pbt) copies weights between trials, which needs a "
            "folder that all nodes share; give one with --results DIR"
        )
    return SweepMirror(url, lambda text: console.print(f"note: {text}", style="yellow", markup=False, soft_wrap=True))


def _open_study(plan: SweepPlan, folder: ResultsFolder) -> SweepStudy:
    spec = plan.spec
    with _usable_study(folder):
        return SweepStudy(
            folder.path,
            spec.name,
            spec.space,
            sampler=spec.search.sampler or "random",
            seed=spec.search.seed,
            startup_trials=spec.search.startup_trials,
            goals=[metric.goal for metric in spec.objectives],
            first=plan.first,
            prior=plan.warm.prior,
        )


@contextmanager
def _usable_study(folder: ResultsFolder) -> Iterator[None]:
    """Raises UserError for what goes wrong while a study is opened."""
    try:
        yield
    except (ValueError, LookupError, OSError) as error:
        if storage_trouble(error, folder.path) is not None:
            raise
        raise UserError(
            f"results: the study {folder.path / JOURNAL} cannot be used ({type(error).__name__}: {error}); restore it "
            "from a copy, or start anew in another folder with --results DIR. The trials' own files are untouched"
        ) from None


def _warm_start(spec: SweepSpec, folder: ResultsFolder) -> WarmStart:
    if not spec.search.warm_start:
        return WarmStart()
    if folder.warm_start_file.exists():  # of the first session
        return WarmStart.load(folder.warm_start_file)
    return load_warm_start(spec.search.warm_start, spec, own=folder.path)


def _plan_with_bar(spec: SweepSpec, console: Console, warm: WarmStart) -> SweepPlan:
    with decoding(console) as progress:
        return make_plan(spec, progress, warm)


if __name__ == "__main__":
    sys.exit(main())
