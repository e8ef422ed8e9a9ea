"""Results on an object store, s3://bucket/prefix or gs://bucket/prefix: reading and writing there, by fsspec.

    python -m sweep.remote s3://bucket/prefix FOLDER        # fetch all of a sweep's results

The store's own client finds the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID, a role of the machine; for gs Google's
application default credentials), and AWS_ENDPOINT_URL leads to other services that speak S3. Nothing of that is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import util
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import platformdirs

from model.errors import ConfigError, UserError

EXTRAS = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs")}  # scheme -> what it needs, and our extra that installs it
CACHE_VARIABLE = "TACTILE_SWEEP_RESULTS"  # environment variable: where local copies go
CONNECT_S, READ_S = 5, 60  # a store that takes longer counts as gone; what is to be sent waits for its return
ATTEMPTS = 2  # of the clients; sweep/mirror.py repeats with longer and longer pauses
PROBE = ".probe"  # begin of an object's name that is written, read and removed before a sweep


class StoreError(UserError):
    """The store cannot be used: it is gone, refuses, or lacks the bucket.

    Attributes:
        brief: why, in a few words that are the same each time.
    """

    def __init__(self, message: str, brief: str = "it does not take files") -> None:
        super().__init__(message)
        self.brief = brief


def is_url(place: str) -> bool:
    """Whether a results place is a URL, not a path."""
    return re.match(r"[A-Za-z][\w+.-]*:/", place) is not None


def checked_url(place: str) -> str:
    """A URL of a place for results, without a slash at its end.

    Raises:
        ConfigError: another kind of store, no bucket, or credentials in it (which the message does not repeat).
    """
    scheme, _, rest = place.partition(":")
    if "@" in rest or "?" in rest or "#" in rest:  # of a bucket or folder none of these is needed
        raise ConfigError(
            f"a URL is {scheme}://BUCKET/FOLDER, without '@', '?' or '#'; credentials do not belong in it: "
            "give them to the store's client (AWS_PROFILE, AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, ...)"
        )
    if scheme == "file":
        raise ConfigError(f"{place!r}; give a folder as a path, without file:")
    if scheme not in EXTRAS:
        known = " or ".join(f"{known}://bucket/folder" for known in EXTRAS)
        raise ConfigError(f"{place!r} is no store that is known here; use {known}, or a folder")
    parts = urlsplit(place)
    folders = [part for part in parts.path.split("/") if part]
    if not rest.startswith("//") or not parts.netloc or {".", ".."} & set(folders):
        raise ConfigError(f"{place!r}; must be {scheme}://BUCKET or {scheme}://BUCKET/FOLDER, without '..'")
    return "/".join((f"{scheme}://{parts.netloc}", *folders))


def cache_folder(url: str) -> Path:
    """The local copy of the results at a URL: below $TACTILE_SWEEP_RESULTS, else in the user's cache folder.

    A sweep works in it. All nodes use the path that the driver has.
    """
    given = os.environ.get(CACHE_VARIABLE)
    base = Path(given).expanduser().absolute() if given else platformdirs.user_cache_path("tactile-sweep") / "results"
    readable = re.sub(r"[^\w.-]+", "-", url.partition("://")[2])[-60:].strip("-.")
    return base / f"{readable}-{hashlib.blake2b(url.encode(), digest_size=4).hexdigest()}"


class Store:
    """A folder on an object store. Names are relative to it, with slashes. An object is there whole or not at all.

    Args:
        url: checked and brought into one form; see `checked_url`.

    Raises:
        ConfigError: the URL is none, or the package for its scheme is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            self.url = checked_url(url)
        except ConfigError as error:
            raise ConfigError(f"results: {error}") from None
        scheme = self.url.partition(":")[0]
        package, extra = EXTRAS[scheme]
        if util.find_spec(package) is None:
            raise ConfigError(
                f"results: {scheme}:// needs {package}, which is not installed; pip install 'tactile-sweep[{extra}]'"
            )
        self._root = self.url.partition("://")[2]
        self._fs = _file_system(scheme)

    def check(self) -> None:
        """Write, read and remove a small object. Raises StoreError where one of them fails: before anything starts."""
        content = os.urandom(8).hex().encode()
        probe = f"{PROBE}-{os.urandom(4).hex()}"  # others may look at the same place now
        self.write(probe, content)
        found = self.read(probe)
        self.remove([probe])
        if found != content:
            raise StoreError(f"results: {self.url}: what was written there is read back as something else")

    def read(self, name: str) -> bytes | None:
        """An object's content; None where there is none. Raises StoreError."""
        with self._explained(f"read {name}"):
            try:
                return bytes(self._fs.cat_file(self._path(name)))
            except FileNotFoundError:
                return None

    def read_all(self, names: Iterable[str]) -> dict[str, bytes]:
        """The content of those of these objects that are there. Raises StoreError."""
        paths = {self._path(name): name for name in names}
        if not paths:
            return {}
        with self._explained("read"):
            found = self._fs.cat(list(paths), on_error="return")
            for fault in found.values():
                if isinstance(fault, Exception) and not isinstance(fault, FileNotFoundError):
                    raise fault
        return {paths[path]: content for path, content in found.items() if isinstance(content, bytes)}

    def write(self, name: str, content: bytes) -> None:
        """Make or replace an object. Raises StoreError."""
        with self._explained(f"write {name}"):
            self._fs.pipe_file(self._path(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Make an object; False where there is one, also one made just now. Raises StoreError."""
        with self._explained(f"write {name}"):
            try:
                self._fs.pipe_file(self._path(name), content, mode="create")
            except FileExistsError:
                return False
        return True

    def send(self, file: Path, name: str) -> None:
        """Make or replace an object with a file's content; the file must not change meanwhile. Raises StoreError."""
        with self._explained(f"write {name}"):
            self._fs.put_file(str(file), self._path(name))

    def fetch(self, name: str, file: Path) -> None:
        """Bring an object here; `file` holds the old or the new content, never a part. Raises StoreError."""
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        try:
            with self._explained(f"read {name}"):
                self._fs.get_file(self._path(name), str(scratch))
            scratch.replace(file)
        finally:
            scratch.unlink(missing_ok=True)

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Names and bytes of all objects below a folder. Raises StoreError."""
        top = self._path(folder) if folder else self._root
        with self._explained("list what is there"):
            found = self._fs.find(top, detail=True)
        sizes = {path[len(self._root) + 1 :]: int(info["size"]) for path, info in found.items()}
        # an object may have any name; none may lead out of the folder that it is fetched into
        return {name: size for name, size in sizes.items() if not {"", ".", ".."} & set(name.split("/"))}

    def folders(self, folder: str) -> list[str]:
        """Names of the folders in a folder. Raises StoreError."""
        with self._explained("list what is there"):
            try:
                found = self._fs.ls(self._path(folder), detail=True)
            except FileNotFoundError:
                return []
        return [info["name"].rstrip("/").rpartition("/")[2] for info in found if info["type"] == "directory"]

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects, also ones that are not there. Raises StoreError."""
        for name in names:
            with self._explained(f"remove {name}"), suppress(FileNotFoundError):
                self._fs.rm_file(self._path(name))

    def age_s(self, name: str) -> float | None:
        """Seconds since an object was written, by the store's clock; None where there is none. Raises StoreError."""
        with self._explained(f"read {name}"):
            try:
                then = self._fs.modified(self._path(name))
            except FileNotFoundError:
                return None
            probe = self._path(f"{PROBE}-{os.urandom(4).hex()}")
            self._fs.pipe_file(probe, b"now")
            now = self._fs.modified(probe)
            self._fs.rm_file(probe)
        return float((now - then).total_seconds())

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each client raises errors of its own, network libraries' among them
            reason = _reason(error)
            brief = reason.partition(" (")[0].partition(":")[0]
            raise StoreError(f"results: {self.url}: cannot {what}: {reason}", brief) from None


def _file_system(scheme: str) -> Any:
    import fsspec  # type: ignore[import-untyped]

    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme == "s3":
        retries = {"max_attempts": ATTEMPTS, "mode": "standard"}
        options["config_kwargs"] = {"connect_timeout": CONNECT_S, "read_timeout": READ_S, "retries": retries}
    # of a connection that breaks the clients and their tasks print tracebacks, beside the error that is raised
    for name in ("asyncio", "gcsfs"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    fs = fsspec.filesystem(scheme, **options)
    fs.retries = ATTEMPTS
    return fs


def _reason(error: Exception) -> str:
    """One line for the user: the usual faults in plain words, others in those of the client."""
    name, text = type(error).__name__, " ".join(str(error).split())[:200]
    if isinstance(error, PermissionError) or name in ("NoCredentialsError", "PartialCredentialsError"):
        return (
            f"access is refused ({text or name}); give the client credentials that may read, write and list there "
            "(AWS_PROFILE or AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS)"
        )
    if isinstance(error, FileNotFoundError):
        return "there is no such bucket; make it, or correct the URL"
    if isinstance(error, OSError) and "bucket name" in text.lower():
        return f"that is no name of a bucket ({text})"
    if any(word in name for word in ("Connect", "Timeout", "Endpoint", "Connection")):
        return f"the store does not answer ({text or name})"
    return f"{name}: {text}" if text else name


def main(arguments: list[str] | None = None) -> int:
    """`python -m sweep.remote URL FOLDER`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m sweep.remote",
        description="Fetch the results of a sweep from an object store; what is here already with its size is kept.",
        epilog="example: python -m sweep.remote s3://bucket/sweeps/alpha_beta results/alpha_beta",
    )
    parser.add_argument("url", help="such as s3://bucket/sweeps/alpha_beta")
    parser.add_argument("folder", type=Path, help="where to; made if absent")
    options = parser.parse_args(arguments)
    try:
        store = Store(options.url)
        sizes = store.sizes()
        if not sizes:
            raise ConfigError(f"{store.url} holds nothing")
        wanted = [name for name in sorted(sizes) if not name.rpartition("/")[2].startswith(".")]
        for name in wanted:
            file = options.folder / name
            if not file.is_file() or file.stat().st_size != sizes[name]:
                store.fetch(name, file)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(wanted)} files of {store.url} are in {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
