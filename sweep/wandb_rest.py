"""The rest of an online run that its server did not get: what its file on disk holds beyond what W&B's page shows.

`wandb sync` would send all rows of such a run once more, behind those that had arrived.
"""

from __future__ import annotations

import math
import tempfile
from typing import Any

from model.errors import UserError
from model.metrics import BATCH_STEP, EPOCH_STEP
from sweep.wandb_client import GRACE_S, bounded, reset_client, without_inherited_identity
from sweep.wandb_files import RunFile, read_head, whole_records

INIT_LIMIT_S, FINISH_LIMIT_S = 30.0, 300.0
OF_THE_SINK = ("diverged", "rows_left_out")  # in the summary, beside the trainer's own
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}  # JSON has no word for them


def send_rest(part: RunFile) -> int:
    """Send the rows of an online part that W&B does not hold, and the run's end; returns how many rows went.

    A row is held if its gradient update, or epoch, is not above the last one in the summary of the run's page. Pictures
    stay on disk.

    Raises:
        UserError: the run is not there any more, or the server did not take it in INIT_LIMIT_S + FINISH_LIMIT_S.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="wandb-rest-", ignore_cleanup_errors=True) as scratch:
            return bounded(lambda: _send(part, scratch), INIT_LIMIT_S + FINISH_LIMIT_S + 2 * GRACE_S)
    except Exception as error:
        raise UserError(" ".join(str(error).split())[:300] or type(error).__name__) from None
    finally:
        reset_client()


def _send(part: RunFile, scratch: str) -> int:
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
    iteration, epoch = (int(run.summary.get(name, -1)) for name in (BATCH_STEP, EPOCH_STEP))
    sent = 0
    summary: dict[str, Any] = {}
    code = 1
    for record in whole_records(part.file):
        if record.get("type") == "history":
            row = {name: _value(value) for name, value in record["history"]["item"].items() if name[0] != "_"}
            if row.get(BATCH_STEP, -1) > iteration or row.get(EPOCH_STEP, -1) > epoch:
                run.log(row)
                sent += 1
        elif record.get("type") == "exit":
            code = int(record["exit"].get("exit_code", 0))
        elif record.get("type") == "summary":
            values = record["summary"].get("update") or {}
            summary |= {
                n: v for n, v in values.items() if n.startswith("summary/") or n in ("diverged", "rows_left_out")
            }
    run.summary.update(summary)
    run.finish(exit_code=code)
    return sent


def _value(value: Any) -> Any:
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value
