"""What a node tells of itself before the first trial; the driver asks itself the same, and compares."""

from __future__ import annotations

import hashlib
import platform
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from model.data.config import SourceConfig
from model.errors import UserError
from sweep.remote import Store
from sweep.wandb_mode import RequestedMode, resolve_mode

PACKAGES = ("ray", "torch", "timm", "numpy", "pydantic", "optuna", "wandb")
SEEN_S = 15.0  # how long a file may take to be seen elsewhere: network file systems keep what they know of a folder
LOOK_EVERY_S = 0.2


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        token: a file of the driver's in the results folder, that holds its own name; None where nothing is shared.
        sources: the frames that are read from files.
        files: other files that trials read.
        wandb_mode: of the spec.
        store: URL that trials send their files to.
    """

    token: Path | None
    sources: tuple[SourceConfig, ...]
    files: tuple[Path, ...]
    wandb_mode: RequestedMode
    store: str | None = None


@dataclass(frozen=True)
class Answer:
    """What a node is like.

    Attributes:
        python, digest: version, and a digest of this program's own source files.
        versions: package -> version; None where it is not installed.
        shares: None, or why the results folder is not the driver's.
        units: of each source the number of its files, or why it cannot be used.
        missing: files that are not there.
        wandb: the mode that the spec's comes to there.
        store: None, or why the results cannot be sent from there.
    """

    python: str
    digest: str
    versions: dict[str, str | None]
    shares: str | None
    units: tuple[int | str, ...]
    missing: tuple[Path, ...]
    wandb: str
    store: str | None = None


def look(question: Question, name: str = "") -> Answer:
    """Answer for the machine this runs on.

    Args:
        name: of this node, where it is to leave a file beside the driver's token.
    """
    return Answer(
        python=platform.python_version(),
        digest=digest_of_sources(),
        versions={package: _version(package) for package in PACKAGES},
        shares=_shares(question.token, name) if question.token is not None and name else None,
        units=tuple(_units(source) for source in question.sources),
        missing=tuple(file for file in question.files if not file.is_file()),
        wandb=resolve_mode(question.wandb_mode)[0],
        store=_store(question.store) if question.store is not None and name else None,
    )


def mark_of(token: Path, name: str) -> Path:
    """The file that the node `name` leaves for the driver."""
    return token.with_name(f"{token.name}.{name}")


def holds(file: Path, text: str) -> bool:
    """Whether a file that another machine wrote comes to hold this text, in SEEN_S."""
    give_up = time.monotonic() + SEEN_S
    while True:
        try:
            if file.read_text(encoding="utf-8") == text:
                return True
        except OSError:
            pass
        if time.monotonic() > give_up:
            return False
        time.sleep(LOOK_EVERY_S)


def digest_of_sources() -> str:
    """Of all source files of model/ and sweep/, as they are imported here."""
    top, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    for file in sorted(path for package in ("model", "sweep") for path in (top / package).rglob("*.py")):
        digest.update(file.relative_to(top).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def _shares(token: Path, name: str) -> str | None:
    if not token.parent.is_dir():
        return "there is no such folder"
    if not holds(token, token.name):
        return "a file that the driver wrote is not there"
    try:
        mark_of(token, name).write_text(name, encoding="utf-8")
    except OSError as error:
        return f"it cannot be written there ({error.strerror or error})"
    return None


def _store(url: str) -> str | None:
    try:
        Store(url).check()
    except UserError as error:
        return str(error)
    return None


def _units(source: SourceConfig) -> int | str:
    from model.data.sources import open_source

    try:
        return open_source(source).num_units
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{source.root}: {error.strerror or error}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
