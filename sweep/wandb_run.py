"""A run of Weights & Biases: who it is, and how wandb is asked to begin or go on with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import ConfigError
from model.metrics import BATCH_STEP, EPOCH_STEP
from sweep.wandb_client import without_inherited_identity
from sweep.wandb_mode import Mode

PICTURE_STEP = "pictures/epoch"  # not `epoch`: a row that has it is an epoch's row
# W&B's step axes; a name that is spelt out is not caught by the patterns
STEP_AXES = {
    "batch/*": BATCH_STEP,
    "epoch/*": EPOCH_STEP,
    "eval/*": EPOCH_STEP,
    "objective/*": EPOCH_STEP,
    "probe/*": EPOCH_STEP,
    "pictures/*": PICTURE_STEP,
}

_FORBIDDEN = ":;,#?/'\\%"  # in ids and project names, by wandb or its web addresses


@dataclass(frozen=True)
class RunIdentity:
    """Which W&B run the rows belong to.

    Args:
        id: unique in the project; a resumed trial gives the same id again.
        name: what the web page shows.
        group: runs of one sweep share it.
        project, entity: where the run goes; the account's default entity if None.
        folder: gets a folder `wandb/` with the run's files.
        job_type, tags: shown and filtered by on the web page.
        sweep_id: the W&B sweep whose agent started this trial; None for trials of our own sweeps.

    Raises:
        ConfigError: an id or project that W&B does not take.
    """

    id: str
    name: str
    group: str
    project: str
    entity: str | None
    folder: Path
    job_type: str = "trial"
    tags: tuple[str, ...] = ()
    sweep_id: str | None = None

    def __post_init__(self) -> None:
        for what, text in (("run id", self.id), ("project", self.project)):
            if not text or text != text.strip() or len(text) > 128 or set(text) & set(_FORBIDDEN):
                raise ConfigError(
                    f"W&B {what} {text!r}: must have 1-128 characters, none of {_FORBIDDEN} and no blanks at its ends"
                )


def started_run(
    identity: RunIdentity,
    mode: Mode,
    config: dict[str, Any],
    *,
    limits_s: tuple[float, float],
    on_stop: Callable[[], None],
    system_metrics: bool = False,
) -> Any:
    """wandb's run, begun or gone on with, and its step axes. Raises what wandb raises, of its server too.

    Args:
        config: shown as the run's config.
        limits_s: how long wandb itself waits for its server: in init, in finish.
        on_stop: is called where the run is stopped on its web page.
        system_metrics: of this process, its children and its GPUs.
    """
    import wandb

    identity.folder.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(
        run_id=identity.id,
        run_name=identity.name,
        run_group=identity.group,
        run_job_type=identity.job_type,
        run_tags=identity.tags,
        project=identity.project,
        entity=identity.entity,
        sweep_id=identity.sweep_id,
        sagemaker_disable=True,  # it would replace the run id
        root_dir=str(identity.folder),
        use_dot_wandb=False,
        symlink=False,
        mode=mode,
        resume="allow",
        reinit="create_new",  # never hands back a run of this process that was not finished
        init_timeout=limits_s[0],
        finish_timeout=limits_s[1],
        finish_timeout_raises=True,
        stop_fn=on_stop,
        silent=True,
        console="off",
        save_code=False,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        label_disable=True,
        x_save_requirements=False,  # 50 of the 60 ms of an init; provenance.json has the versions
        x_disable_stats=not system_metrics,
        x_stats_pid=os.getpid(),
        x_stats_track_process_tree=True,
        x_stats_gpu_device_ids=own_gpus(),
        x_disable_meta=True,
        x_disable_machine_info=not system_metrics,
    )
    with without_inherited_identity():
        wandb.setup(wandb.Settings(silent=True, sagemaker_disable=True))  # wandb asks nothing when silent
        run = wandb.init(config=config, settings=settings)
    for axis in dict.fromkeys(STEP_AXES.values()):
        run.define_metric(axis)
    for pattern, axis in STEP_AXES.items():
        run.define_metric(pattern, step_metric=axis)
    return run


def own_gpus() -> tuple[int, ...] | None:
    """The machine's numbers of the GPUs that this process sees: others are other trials'.

    None for all of them: nothing hides any, or they are named by UUID, which wandb does not take.
    """
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return tuple(map(int, names)) if all(name.strip().isdecimal() for name in names) else None
