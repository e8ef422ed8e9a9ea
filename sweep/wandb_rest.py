"""The rest of an online run that its server did not get.

Its source are the trial's own files, which hold every row: wandb's service may have died before the run's end, and its
file on disk then lacks rows, too. Where the results folder has no such trial, that file is all there is.

`wandb sync` would send all rows of such a run once more, behind those that had arrived.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.configfile import load_yaml
from model.errors import UserError
from model.metrics import BATCH_STEP, EPOCH_STEP
from model.sinks import History, read_csv
from sweep.blocks import WandbSettings
from sweep.outcome import Outcome
from sweep.results import RUNS
from sweep.table_rows import read_table
from sweep.wandb_client import GRACE_S, bounded, reset_client, without_inherited_identity
from sweep.wandb_files import RunFile, read_head, whole_records

INIT_LIMIT_S, FINISH_LIMIT_S = 30.0, 300.0
EXIT_CODES = {Outcome.COMPLETE: 0, Outcome.PRUNED: 0, Outcome.DIVERGED: 1, Outcome.FAILED: 1}
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}  # JSON has no word for them

Row = Mapping[str, Any]


class NotEndedError(UserError):
    """The run's trial has not ended: it sends its rows itself when it goes on."""


@dataclass(frozen=True)
class Rest:
    """What a run consists of, of whatever source.

    Attributes:
        rows: history rows in order; of those that have neither batch/iteration nor epoch, the ones of a divergence.
        summary: what was put in the run's summary.
        exit_code: None where the source does not hold the run's end.
    """

    rows: Sequence[Row]
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None


def send_rest(part: RunFile, results: Path | None = None, last: bool = True) -> bool:
    """Send the rows of an online part that W&B does not hold, and the run's end.

    A row is held if its gradient update, or epoch, is not above the last one in the summary of the run's page. Pictures
    stay on disk.

    Args:
        part: an online part of the run.
        results: the results folder with the run's trial.
        last: of the run's parts; those behind it hold what its file lacks.

    Returns:
        Whether the run is complete at W&B now: False where its file is all there is, and breaks off.

    Raises:
        NotEndedError: its trial is still running, or was interrupted.
        UserError: the run is not there any more, or the server did not take it in time.
    """
    rest = (rest_of_trial(results, part.run_id) if results is not None and last else None) or rest_of_file(part)
    limit_s = INIT_LIMIT_S + FINISH_LIMIT_S + 2 * GRACE_S
    try:
        with tempfile.TemporaryDirectory(prefix="wandb-rest-", ignore_cleanup_errors=True) as scratch:
            bounded(lambda: _send(part, rest, scratch), limit_s)
    except Exception as error:
        raise UserError(" ".join(str(error).split())[:300] or type(error).__name__) from None
    finally:
        reset_client()
    return rest.exit_code is not None or not last


def rest_of_trial(results: Path, run_id: str) -> Rest | None:
    """The run as the files of its trial have it; None where the results folder has no such trial.

    Raises NotEndedError where the trial has not ended, and UserError where its files are damaged.
    """
    try:
        trial = _trial_of(results, run_id)
        folder = results / "trials" / (trial or "")
        if trial is None or not ((folder / "epoch.csv").is_file() or (folder / "batch.csv").is_file()):
            return None
        state, reason = _state_of(results, trial)
        if state is None or state is Outcome.RUNNING:
            raise NotEndedError("its trial has not ended")
        history = History(batch=list(read_csv(folder / "batch.csv")), epoch=list(read_csv(folder / "epoch.csv")))
        spec = load_yaml(results / "spec.yaml")
        settings = WandbSettings(log_every=(spec.get("wandb") or {}).get("log_every", 1))
        rows: list[Row] = [event.values for event in history.events() if settings.has_row(event)]
        summary: dict[str, Any] = {}
        with suppress(FileNotFoundError):
            summary = dict(json.loads((folder / "summary.json").read_text(encoding="utf-8")))
        if state is Outcome.DIVERGED:
            rows.append(dict.fromkeys(_metrics(spec), math.nan))
            summary["diverged"] = reason
        return Rest(rows, summary, EXIT_CODES[state])
    except UserError:
        raise
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(f"the files of its trial in {results} are damaged ({type(error).__name__}: {error})") from None


def _trial_of(results: Path, run_id: str) -> str | None:
    """The id of the run's trial: of an agent's run it is in runs.json, else the run's id ends with it."""
    trial = None
    with suppress(FileNotFoundError):
        trial = json.loads((results / RUNS).read_text(encoding="utf-8")).get(run_id)
    if trial is None:
        with suppress(FileNotFoundError):
            uid = json.loads((results / "provenance.json").read_text(encoding="utf-8")).get("uid")
            trial = run_id.removeprefix(f"{uid}-") if uid and run_id.startswith(f"{uid}-") else None
    return trial if isinstance(trial, str) and re.fullmatch(r"\w+", trial) else None


def _state_of(results: Path, trial: str) -> tuple[Outcome | None, str]:
    for name in ("trials.csv", "confirm.csv"):
        if row := read_table(results / name).get(trial):
            return Outcome(row["state"]), row["reason"] or "it diverged"
    return None, ""


def _metrics(spec: Row) -> list[str]:
    """What the sweep minimises."""
    return [metric["name"] for metric in spec.get("metrics") or [spec["metric"]]]


def rest_of_file(part: RunFile) -> Rest:
    """The run as W&B's file of this part has it."""
    rows: list[Row] = []
    summary: dict[str, Any] = {}
    code = None
    for record in whole_records(part.file):
        if record.get("type") == "history":
            rows.append({name: _value(x) for name, x in record["history"]["item"].items() if name[0] != "_"})
        elif record.get("type") == "exit":
            code = int(record["exit"].get("exit_code", 0))
        elif record.get("type") == "summary":
            values = record["summary"].get("update") or {}
            summary |= {n: _value(v) for n, v in values.items() if n.startswith("summary/") or n == "diverged"}
    return Rest(rows, summary, code)


def _send(part: RunFile, rest: Rest, scratch: str) -> None:
    import wandb

    head = read_head(part.file)
    settings = wandb.Settings(
        mode="online",
        resume="must",
        reinit="create_new",
        root_dir=scratch,
        symlink=False,
        silent=True,
        console="off",
        init_timeout=INIT_LIMIT_S,
        finish_timeout=FINISH_LIMIT_S,
        finish_timeout_raises=True,
        save_code=False,
        disable_git=True,
        x_save_requirements=False,
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
    )
    with without_inherited_identity():
        wandb.setup(wandb.Settings(silent=True))
        run = wandb.init(
            id=part.run_id, project=head.get("project") or None, entity=head.get("entity") or None, settings=settings
        )
    for row in rows_beyond(rest.rows, dict(run.summary)):
        run.log(row)
    run.summary.update(rest.summary)
    run.finish(exit_code=1 if rest.exit_code is None else rest.exit_code)


def rows_beyond(rows: Iterable[Row], there: Mapping[str, Any]) -> Iterator[Row]:
    """The rows that W&B does not hold.

    Args:
        rows: of the run.
        there: the summary of the run's page.
    """
    iteration, epoch = (int(there.get(name, -1)) for name in (BATCH_STEP, EPOCH_STEP))
    any_new = False
    for row in rows:
        metrics = {name: value for name, value in row.items() if name != EPOCH_STEP}  # W&B may add the axis
        if metrics and all(isinstance(value, float) and math.isnan(value) for value in metrics.values()):
            row, new = metrics, any_new or "diverged" not in there  # of a divergence: NaN after all that was sent
        else:  # pictures have neither
            new = row.get(BATCH_STEP, -1) > iteration or row.get(EPOCH_STEP, -1) > epoch
        if new:
            any_new = True
            yield row


def _value(value: Any) -> Any:
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value
