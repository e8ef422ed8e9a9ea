"""`python -m sweep.sync RESULTS...` (scripts/sync.sh): upload the offline W&B runs of results folders.

    python -m sweep.sync results/alpha_beta results/*-trials

Of an online run whose server was gone before its end, the rest is sent, from the files of its trial where these are
there (sweep/wandb_rest.py). `wandb sync` does the work for offline ones. This adds what it lacks: the parts of a
resumed run go one after the other, in the order in which they began, also where two began in one second; a run that is
still written to, or whose trial has not ended, is left for later; and where `wandb sync` exits with 0 and marks a run
as synced whose rows never arrived, this calls it failed, and the next sync tries it again. Uploaded runs are marked by
wandb's own `.synced` files, so a repetition takes only the others.

A run of more than some ten thousand rows that was cut off amid its upload has the rows that had arrived twice after the
next one, as with `wandb sync` itself; its curves look the same.
"""

from __future__ import annotations

import argparse
import json
import os
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from model.errors import UserError
from sweep.wandb_files import BROKEN_STREAM, RunFile, run_files
from sweep.wandb_mode import DEFAULT_BASE_URL, resolve_mode, settings_files

AT_ONCE = 40  # parts for one `wandb sync`, which uploads 5 at a time
SERVER_LIMIT_S = 10.0  # for its answer to the first question
# wandb's own retries go on for hours, of each request; what failed here is tried again by the next sync
PATIENCE = {
    "WANDB__GRAPHQL_RETRY_MAX": "4",
    "WANDB__GRAPHQL_RETRY_WAIT_MAX_SECONDS": "10",
    "WANDB_HTTP_TIMEOUT": "20",
    "WANDB__FILE_STREAM_RETRY_MAX": "5",
    "WANDB__FILE_STREAM_RETRY_WAIT_MAX_SECONDS": "10",
    "WANDB__FILE_STREAM_TIMEOUT_SECONDS": "60",
    "WANDB__FILE_TRANSFER_RETRY_MAX": "5",
    "WANDB__FILE_TRANSFER_RETRY_WAIT_MAX_SECONDS": "10",
}
# what this process itself belongs to is no business of the runs that are uploaded
FOREIGN = ("WANDB_RUN", "WANDB_SWEEP", "WANDB_RESUME", "WANDB_NAME", "WANDB_MODE", "WANDB_SERVICE", "WANDB_PROJECT")
# in wandb's log: the file cannot be read further, what came before has arrived
UNREADABLE = "transactionlog: error getting next record"


class NotReadyError(UserError):
    """W&B's server does not answer, or says that it cannot."""


@dataclass
class Upload:
    """A run that has parts to upload.

    Attributes:
        parts: those that were not uploaded yet, in order.
        done: how many of them are uploaded.
        cut: the file of one could not be read to its end.
        last: the run's last part, uploaded or not.
        problem: what keeps the run from being complete at the server; None where nothing does.
        later: why the run is left for a later sync; None where it is not.
    """

    results: Path
    run_id: str
    parts: list[RunFile]
    last: RunFile
    done: int = 0
    problem: str | None = None
    later: str | None = None
    cut: bool = False


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 all is uploaded, 1 the server or a run failed, 2 bad input."""
    options = parser().parse_args(arguments)
    try:
        with ExitStack() as locks:
            return sync([locks.enter_context(_locked(folder)) for folder in _folders(options.results)])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, NotReadyError) else 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with what is left", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m sweep.sync`."""
    result = argparse.ArgumentParser(
        prog="python -m sweep.sync",
        description="Upload the offline W&B runs of results folders. Runs that were uploaded before are left out.",
        epilog="example: python -m sweep.sync results/alpha_beta",
    )
    result.add_argument("results", type=Path, nargs="+", metavar="RESULTS", help="results folder of a sweep")
    return result


def sync(folders: Sequence[Path]) -> int:
    """Upload what these results folders hold; says for each run what happened. Returns the exit code.

    Raises UserError where there are no credentials, NotReadyError where no server answers.
    """
    uploads, before, later = _waiting(folders)
    if uploads:
        environment = _environment()
        _check_server(environment.get("WANDB_BASE_URL") or DEFAULT_BASE_URL)
        _upload_all(uploads, environment)
    not_ended = [upload for upload in uploads if upload.later]
    for upload in [*later, *not_ended]:
        print(f"{_name(upload)}: left out, {upload.later}")
    failed = [upload for upload in uploads if upload.problem]
    counts = {
        "uploaded": len(uploads) - len(failed) - len(not_ended),
        "failed": len(failed),
        "uploaded before": before,
        "still being written": len(later),
        "not ended": len(not_ended),
    }
    print(", ".join(f"{count} {what}" for what, count in counts.items() if count) or "no offline runs to upload")
    if failed:
        print("the same command tries those that failed again", file=sys.stderr)
    return 1 if failed else 0


def _folders(given: Sequence[Path]) -> list[Path]:
    """The folders, each once. Raises UserError for one that is no results folder."""
    folders: dict[Path, Path] = {}
    for path in given:
        folder = path.expanduser()
        if not (folder / "wandb").is_dir():
            what = "has no folder wandb/ with W&B runs" if folder.is_dir() else "is no folder"
            raise UserError(f"{path} {what}; give the results folder of a sweep, such as results/alpha_beta")
        folders.setdefault(folder.resolve(), folder)
    return list(folders.values())


@contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    """Keeps a second sync away from a results folder: it would upload every row a second time."""
    lock = FileLock(folder / ".sync.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{folder}: another process uploads its runs; wait for it") from None
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written to ({error.strerror}), and W&B marks there what it uploaded; copy the "
            "folder, and sync the copy"
        ) from None
    try:
        yield folder
    finally:
        lock.release()


def _waiting(folders: Iterable[Path]) -> tuple[list[Upload], int, list[Upload]]:
    """Runs to upload, how many were uploaded before, and runs that are still written to."""
    uploads: list[Upload] = []
    later: list[Upload] = []
    before = 0
    for folder in folders:
        runs: dict[str, list[RunFile]] = {}
        for part in run_files(folder / "wandb"):
            runs.setdefault(part.run_id, []).append(part)
        for run_id, parts in runs.items():
            # a run that was killed before its first row leaves an empty file
            left = [part for part in _lacking(parts) if not part.marker.exists() and part.file.stat().st_size]
            if not left:
                before += any(not part.online for part in parts)
            elif parts[-1].is_written():  # an earlier part is not: the run went on in a later one
                writing = "it is still being written to (or was cut off a moment ago)"
                later.append(Upload(folder, run_id, left, parts[-1], later=writing))
            else:
                uploads.append(Upload(folder, run_id, left, parts[-1]))
    return uploads, before, later


def _lacking(parts: Sequence[RunFile]) -> Iterator[RunFile]:
    """The parts that W&B may not have: offline ones, and online ones that the server did not get to their end.

    An online part that was cut off is no matter where the run went on online: that part has sent what was missing.
    """
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        lacks = part.unsent.exists() or not part.ended
        if not part.online or (lacks and (following is None or not following.online)):
            yield part


def _environment() -> dict[str, str]:
    """The environment of `wandb sync`. Raises UserError where there are no credentials."""
    mode, reason = resolve_mode("online")
    if mode != "online":
        raise UserError(f"wandb: {reason}")
    settings = settings_files()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    # WANDB_DIR is changed for wandb's logs, and with it the place where wandb looks for a settings file
    if "base_url" in settings:
        environment.setdefault("WANDB_BASE_URL", settings["base_url"])
    if reason.endswith("wandb's settings file"):
        environment.setdefault("WANDB_API_KEY", settings["api_key"])
    return {**PATIENCE, **environment, "WANDB_ERROR_REPORTING": "false"}


def _check_server(base_url: str) -> None:
    """Raise NotReadyError where no W&B server answers: else every run would wait for it."""
    request = urllib.request.Request(
        f"{base_url.rstrip('/')}/graphql",
        data=json.dumps({"query": "query Viewer { viewer { id } }", "operationName": "Viewer"}).encode(),
        headers={"content-type": "application/json", "user-agent": "tactile-sweep"},
    )
    try:
        with urllib.request.urlopen(request, timeout=SERVER_LIMIT_S):
            return
    except urllib.error.HTTPError as error:
        if error.code < 500 and error.code != 429:
            return  # it answers; what it says without a key does not matter
        why = f"it answers HTTP {error.code}"
    except (OSError, ValueError) as error:
        if isinstance(getattr(error, "reason", None), ssl.SSLError):
            return  # wandb may know certificates that Python does not
        why = str(getattr(error, "reason", error))
    raise NotReadyError(
        f"wandb: {base_url} is not ready ({why}); nothing was uploaded. Try again later, or check WANDB_BASE_URL"
    )


def _upload_all(uploads: Sequence[Upload], environment: dict[str, str]) -> None:
    """Upload the first missing parts of all runs, then the second ones, ...: a part needs the rows before it."""
    for number in range(max(len(upload.parts) for upload in uploads)):
        open_ones = [upload for upload in uploads if upload.problem is None and upload.later is None]
        wave = [upload for upload in open_ones if len(upload.parts) > number]
        online = [upload for upload in wave if upload.parts[number].online]
        for upload in online:
            _upload_rest(upload)
            if upload.problem is not None or upload.done == len(upload.parts):
                _tell(upload)
        wave = [upload for upload in wave if upload not in online]
        whole = [upload for upload in wave if upload.parts[number].ended]
        groups = [whole[begin : begin + AT_ONCE] for begin in range(0, len(whole), AT_ONCE)]
        # a file that cannot be read to its end ends the whole `wandb sync`, and its error does not name it
        groups += [[upload] for upload in wave if not upload.parts[number].ended]
        for group in groups:
            _upload(group, environment)
            for upload in group:
                if upload.problem is not None or upload.done == len(upload.parts):
                    _tell(upload)


def _upload_rest(upload: Upload) -> None:
    """Send what W&B lacks of the next part, an online one; notes what went wrong."""
    from sweep.wandb_rest import NotEndedError, send_rest

    part = upload.parts[upload.done]
    try:
        complete = send_rest(part, upload.results, last=part is upload.last)
    except NotEndedError as error:
        upload.later = str(error)
        return
    except UserError as error:
        upload.problem = _brief(str(error))
        return
    if not complete:
        upload.problem = (
            f"it may be incomplete: {part.file} breaks off, and there is no trial of this run beside it; what the "
            f"file holds was sent. To leave it so: touch {part.marker}"
        )
        return
    part.unsent.unlink(missing_ok=True)
    part.marker.touch()
    upload.done += 1


def _tell(upload: Upload) -> None:
    if upload.problem is None:
        parts = f" ({upload.done} parts)" if upload.done > 1 else ""
        cut = ", as far as its files can be read: one is damaged, or was cut off" if upload.cut else ""
        print(f"{_name(upload)}: uploaded{parts}{cut}", flush=True)
    else:
        print(f"{_name(upload)}: failed: {upload.problem}", file=sys.stderr, flush=True)


def _name(upload: Upload) -> str:
    return f"{upload.results}: run {upload.run_id}"


def _upload(uploads: Sequence[Upload], environment: dict[str, str]) -> None:
    """Let `wandb sync` upload the next part of each of these runs; notes what went wrong."""
    parts = [upload.parts[upload.done] for upload in uploads]
    if not parts[0].readable:
        uploads[0].problem = f"{parts[0].file} is damaged: it is no file of W&B's; remove its folder, or restore it"
        return
    with tempfile.TemporaryDirectory(prefix="wandb-sync-") as scratch:
        command = [sys.executable, "-m", "wandb", "sync", *(str(part.file.absolute()) for part in parts)]
        done = subprocess.run(
            command,
            env={**environment, "WANDB_DIR": scratch},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        errors = list(_logged_errors(Path(scratch)))
    of_part = {part.file: [text for path, text in errors if path == part.file.resolve()] for part in parts}
    unnamed = [text for path, text in errors if path is None]
    unclear = [part.file for part in parts if not of_part[part.file] and not part.marker.exists()]
    if len(unclear) == len(unnamed):  # wandb does not name the file that it cannot read to its end
        of_part.update({file: [text] for file, text in zip(unclear, unnamed, strict=True)})
    for upload, part in zip(uploads, parts, strict=True):
        upload.problem = _problem(part, of_part[part.file], done.stdout)
        upload.done += upload.problem is None
        upload.cut = upload.cut or any(UNREADABLE in text for text in of_part[part.file])


def _logged_errors(scratch: Path) -> Iterator[tuple[Path | None, str]]:
    """(part, message) of each error in wandb's log: what wandb prints does not tell all of them."""
    for log in scratch.glob("wandb/logs/debug-sync*.log"):
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, TypeError, KeyError):
                entry = json.loads(line)
                if entry["level"].startswith("ERROR"):
                    text = f"{entry['msg']}: {entry['error']}" if "error" in entry else str(entry["msg"])
                    yield Path(entry["sync_path"]).resolve() if "sync_path" in entry else None, text


def _problem(part: RunFile, errors: Sequence[str], printed: str) -> str | None:
    """What keeps a part from being complete at the server; marks it as uploaded, or takes that back, where wandb errs.

    Args:
        errors: about this part, of wandb's log.
        printed: by wandb, of all parts.
    """
    broken = next((text for text in errors if text.startswith(BROKEN_STREAM)), None)
    if broken is not None:
        part.marker.unlink(missing_ok=True)
        return f"not all rows arrived ({_brief(broken)})"
    others = [text for text in errors if UNREADABLE not in text]
    if not part.marker.exists():
        if errors and not others:  # the run was ended at the server; sent again, it would have its rows twice
            part.marker.touch()
            return None
        # of several messages on one failure the longest says most
        said = (
            max(others, key=len)
            if others
            else next((line for line in reversed(printed.splitlines()) if line.strip()), "?")
        )
        return _brief(said)
    if others:
        return (
            f"its rows arrived, but not all of its files ({_brief(others[0])}); to send all of it again, delete the "
            f"run on its page and remove {part.marker}"
        )
    return None


def _brief(text: str) -> str:
    """In one line, not too long, and without the key."""
    brief = " ".join(text.split()).removeprefix("wandb: ").removeprefix("ERROR ")[:300]
    key = os.environ.get("WANDB_API_KEY")
    return brief.replace(key, "<the key>") if key else brief


if __name__ == "__main__":
    sys.exit(main())
