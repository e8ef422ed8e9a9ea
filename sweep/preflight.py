"""Before the first trial: is every node that may run one ready for it, and is there room on the disk?

Each node of a cluster is asked by a task that runs there (sweep/preflight_node.py); all that is wrong is told at once.
A Ray of our own is this machine, of which only the disk is looked at.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from model.errors import ConfigError
from sweep.cluster import Cluster, Node, fits
from sweep.preflight_node import Answer, Question, holds, look, mark_of
from sweep.results import ResultsFolder
from sweep.room import checkpoint_bytes, faults_of_room
from sweep.spec import SweepSpec

ANSWER_S = 300.0  # of all nodes: where a Ray job brings its own environment, it is made in this time
LOOK_EVERY_S = 0.5
# Trials must come out alike on every node, and what the driver and a node send each other must fit: the same release of
# these (a build for another CUDA is the same release), and of Python and the others the same major and minor version.
SAME_RELEASE = ("ray", "torch", "timm", "numpy")
INSTALL = "install the same on all nodes, or use one container image"


def check(
    spec: SweepSpec,
    folder: ResultsFolder,
    cluster: Cluster,
    *,
    num_trials: int,
    concurrent: int,
    warn: Callable[[str], None],
    remote: str | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Ask the nodes that may run a trial, and look at the disk.

    Args:
        num_trials: trials to come.
        concurrent: of them at a time.
        warn: takes a line about what is no error.
        remote: URL that all nodes must be able to write to; without it they must see the results folder.
        stopped: the user does not want to wait any longer.

    Raises:
        ConfigError: some node, or the disk, is not fit for the sweep; a line for each fault.
    """
    size = checkpoint_bytes(spec.space.to_config(spec.trainer, {}))
    fault, note = faults_of_room(size, folder.path, num_trials, concurrent)
    faults = [fault] if fault else []
    if note:
        warn(note)
    if cluster.address is not None:
        nodes = [node for node in cluster.nodes if fits(spec.resources, node.resources)]
        with _token(folder.path if remote is None else None) as token:
            faults += _faults_of_nodes(nodes, _question(spec, token, remote), warn, stopped)
    if faults:
        raise ConfigError("\n  ".join(["the sweep cannot run as it is:", *faults]))


def _question(spec: SweepSpec, token: Path | None, remote: str | None) -> Question:
    config = spec.space.to_config(spec.trainer, {})
    parts = config.data.parts or (config.data,)
    files = [part.labels for part in parts if part.labels is not None]
    if isinstance(config.encoder.pretrained, Path):
        files.append(config.encoder.pretrained)
    return Question(
        token=token,
        sources=tuple(part for part in parts if part.source != "synthetic"),
        files=tuple(files),
        wandb_mode=spec.wandb.mode,
        store=remote,
    )


@contextmanager
def _token(folder: Path | None) -> Iterator[Path | None]:
    """A file in the results folder that holds its own name; it and what nodes leave beside it are removed."""
    if folder is None:
        yield None
        return
    token = folder / f".preflight-{secrets.token_hex(4)}"
    try:
        token.write_text(token.name, encoding="utf-8")
        yield token
    finally:
        for file in folder.glob(f"{token.name}*"):
            with suppress(OSError):
                file.unlink()


def _faults_of_nodes(
    nodes: Sequence[Node], question: Question, warn: Callable[[str], None], stopped: Callable[[], bool]
) -> list[str]:
    answers = _answers(nodes, question, stopped)
    if not answers:
        return []
    here, names = look(question), {node.id: node.name for node in nodes}
    faults = []
    for node, answer in answers.items():
        if isinstance(answer, str):
            faults.append(f"node {names[node]}: {answer}")
            continue
        found = list(differences(question, here, answer))
        token = question.token
        if token is not None and answer.shares is None and not holds(mark_of(token, node), node):
            found.append(_not_shared(token, "a file that was written there is not seen here"))
        faults += [f"node {names[node]}: {fault}" for fault in found]
        if answer.wandb != here.wandb:
            warn(
                f"node {names[node]}: W&B is {answer.wandb} there and {here.wandb} here, and so are the trials that "
                "run there; WANDB_ variables and credentials are those of the node's own processes"
            )
    return faults


def _answers(nodes: Sequence[Node], question: Question, stopped: Callable[[], bool]) -> dict[str, Answer | str]:
    """Id of a node -> what it answers, or why it does not. Empty where the user stopped it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ask = ray.remote(num_cpus=0, max_retries=0)(look)  # no CPU: others' work may have them all
    asked = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        asked[node.id] = ask.options(scheduling_strategy=there).remote(question, node.id)
    waiting, give_up = list(asked.values()), time.monotonic() + ANSWER_S
    while waiting and time.monotonic() < give_up:
        if stopped():
            return {}
        _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=LOOK_EVERY_S)
    late = f"no answer in {ANSWER_S:.0f} s; see 'ray status' and the node's own logs"
    return {name: late if answer in waiting else _answer(answer) for name, answer in asked.items()}


def _answer(reference: Any) -> Answer | str:
    import ray

    try:
        answer: Answer = ray.get(reference)
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        missing = [line for line in lines if re.match(r"(ModuleNotFound|Import|Attribute)Error", line)]
        if missing:
            return f"this program is not installed there, or another state of it is ({missing[-1]}); {INSTALL}"
        return f"it could not be asked ({lines[-1] if lines else type(error).__name__})"
    return answer


def differences(question: Question, here: Answer, there: Answer) -> Iterator[str]:
    """In what a node is not as the driver needs it: a line for each."""
    if question.token is not None and there.shares is not None:
        yield _not_shared(question.token, there.shares)
    if there.store is not None:
        yield f"{there.store}; trials there could not send their files (the node's own processes need the credentials)"
    if _minor(here.python) != _minor(there.python):
        yield f"Python is {there.python} there and {here.python} here; {INSTALL}"
    for package, version in here.versions.items():
        other = there.versions[package]
        if not _agree(package, version, other):
            yield f"{package} is {other or 'not installed'} there and {version or 'not installed'} here; {INSTALL}"
    if here.digest != there.digest:
        yield f"this program is of another state there ({there.digest}) than here ({here.digest}); {INSTALL}"
    for source, ours, theirs in zip(question.sources, here.units, there.units, strict=True):
        if isinstance(theirs, str):
            yield f"the data cannot be read there: {theirs}"
        elif ours != theirs:
            yield f"{source.root} has {theirs} files of data there and {ours} here; give a folder that all nodes share"
    yield from (f"{file} is not there; put it where all nodes see it" for file in there.missing)


def _agree(package: str, ours: str | None, theirs: str | None) -> bool:
    if ours is None or theirs is None:
        return ours == theirs
    form = _release if package in SAME_RELEASE else _minor
    return form(ours) == form(theirs)


def _release(version: str) -> str:
    return version.partition("+")[0]


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _not_shared(token: Path, why: str) -> str:
    return (
        f"the results folder {token.parent} is not the same there as here ({why}); give a folder on a file system that "
        "all nodes share, with --results"
    )
