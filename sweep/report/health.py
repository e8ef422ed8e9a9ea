"""The diagnosis for the page: what the rules see in the best trial, and which of them fire where in the space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model.config import TrainConfig
from model.errors import UserError
from sweep.diagnosis import Finding, diagnose
from sweep.limits import Severity
from sweep.report.data import SweepResults, TrialResult
from sweep.sweep_diagnosis import DiagnosedTrial, FiredRule, fired_rules

MAX_BYTES = 24_000_000  # of all batch.csv that are read for it: parsing more takes longer than the rest of the page


@dataclass(frozen=True)
class Health:
    """What the diagnosis says.

    Attributes:
        trial: the trial that `findings` are of, the one that is the answer; None where there is none.
        what: it is, in words.
        fired: over all trials.
        judged: trials with rows, which were looked at.
        notes: what was left out.
    """

    trial: TrialResult | None
    what: str
    findings: list[Finding]
    fired: list[FiredRule]
    judged: int
    notes: list[str]

    @property
    def caution(self) -> str:
        """What the answer must not keep silent about; empty where nothing is critical."""
        critical = [found.rule.value for found in self.findings if found.severity is Severity.CRITICAL]
        if self.trial is None or not critical:
            return ""
        return f" Mind its diagnosis, though: {', '.join(critical)} is critical in trial {self.trial.name}."


def health(results: SweepResults) -> Health:
    """The diagnosis of the trial that is the answer, and of the sweep."""
    notes: list[str] = []
    subject, what = results.answered or (None, "")
    all_updates = sum(_size(results, trial) for trial in results.trials) <= MAX_BYTES
    if not all_updates:
        notes.append("Over the sweep, rows of epochs alone were judged: those of updates are too many to read here.")
    diagnosed, failed, of_subject = [], [], []
    for trial in results.trials:
        updates = results.batches(trial) if all_updates or trial is subject else ()
        if not trial.epochs and not updates:  # one that diverges in its first epoch has updates alone
            continue
        values = trial.record.final_values or trial.record.values
        try:
            found = diagnose(trial.epochs, updates)
            if trial is subject:
                of_subject = diagnose(trial.epochs, updates, _config(results, trial))
        except (ArithmeticError, LookupError, TypeError, ValueError):  # rows of another version, or damaged ones
            failed.append(trial.name)
            continue
        diagnosed.append(DiagnosedTrial(trial.name, values, found))
    if failed:
        shown = ", ".join(failed[:10]) + (", ..." if len(failed) > 10 else "")
        notes.append(f"Trial {shown}: the rows cannot be judged, since they lack what the rules need.")
    return Health(subject, what, of_subject, _fired(diagnosed), len(diagnosed), notes)


def _size(results: SweepResults, trial: TrialResult) -> int:
    """Bytes of a trial's rows of updates."""
    try:
        return (results.folder / "trials" / trial.name / "batch.csv").stat().st_size
    except OSError:
        return 0


def _fired(diagnosed: Sequence[DiagnosedTrial]) -> list[FiredRule]:
    return fired_rules(diagnosed) if diagnosed else []


def _config(results: SweepResults, trial: TrialResult) -> TrainConfig | None:
    """What the trial was trained with, for remedies with numbers; None where the spec as it was read cannot tell."""
    values = trial.record.final_values or trial.record.values
    try:
        return results.spec.space.to_config(results.spec.trainer, values)
    except (UserError, LookupError, TypeError):
        return None
