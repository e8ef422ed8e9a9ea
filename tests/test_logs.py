"""What Ray and its workers print goes to RESULTS/logs; tests/test_cluster.py has workers that print."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sweep.logs import Logs

# a driver in which a C++ library, Ray's logger and the driver itself say something
DRIVER = """
import contextlib, logging, os, sys
from pathlib import Path
from sweep.logs import kept

logger = logging.getLogger("ray.tune")
logger.addHandler(logging.StreamHandler())
logging.getLogger("ray.train").addHandler(logger.handlers[0])  # one handler of two loggers
for session in ("first", "second"):
    with kept(Path(sys.argv[1]), verbose=len(sys.argv) > 2) as logs:
        logs.follow(None)
        with contextlib.suppress(OSError):  # C++ does not look either
            os.write(2, f"NOISE of C++, {session}\\n".encode())
        logger.error(f"NOISE of a logger, {session}")
        print(f"our own word, {session}", file=sys.stderr)
        logging.getLogger(f"made_in_{session}").addHandler(logging.StreamHandler())
logger.error("a logger afterwards")
logging.getLogger("made_in_first").error("another one afterwards")
os.write(2, b"C++ afterwards\\n")
"""


def drive(results: Path, *options: str) -> str:
    arguments = [sys.executable, "-c", DRIVER, str(results), *options]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr


@pytest.mark.process
def test_what_libraries_of_the_driver_print_is_in_a_file_and_our_own_words_come_through(tmp_path: Path) -> None:
    lines = drive(tmp_path).splitlines()
    assert lines[:2] == ["our own word, first", "our own word, second"]
    assert lines[2:] == ["a logger afterwards", "another one afterwards", "C++ afterwards"]
    kept = (tmp_path / "logs/driver.log").read_text().splitlines()
    assert kept == [f"NOISE of {who}, {session}" for session in ("first", "second") for who in ("C++", "a logger")]


@pytest.mark.process
def test_verbose_lets_all_of_it_through(tmp_path: Path) -> None:
    assert drive(tmp_path, "verbose").count("NOISE") == 4
    assert not (tmp_path / "logs/driver.log").exists()


@pytest.mark.process
def test_a_folder_that_takes_no_logs_fails_nothing(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    assert drive(tmp_path).count("our own word") == 2


@pytest.mark.process
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no file here that is always full")
def test_a_full_disk_under_the_log_fails_nothing_and_leaves_every_logger_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/driver.log").symlink_to("/dev/full")
    lines = drive(tmp_path).splitlines()
    assert lines[:2] == ["our own word, first", "our own word, second"]
    assert lines[2:] == ["a logger afterwards", "another one afterwards", "C++ afterwards"]


def test_rays_logs_are_a_link_while_it_runs_and_copies_of_their_ends_afterwards(tmp_path: Path) -> None:
    theirs = tmp_path / "session/logs"
    theirs.mkdir(parents=True)
    (theirs / "worker-1.out").write_text("printed\n")
    (theirs / "worker-2.out").write_text("")
    (theirs / "raylet.out").write_bytes(b"old" + bytes(1_000_000))
    (theirs / "debug_state.txt").write_text("long")
    logs = Logs(tmp_path / "results")
    logs.follow(theirs)
    assert (tmp_path / "results/logs/ray/worker-1.out").read_text() == "printed\n"
    logs.keep()
    (copies,) = (tmp_path / "results/logs").iterdir()
    assert not copies.is_symlink()
    assert {file.name: file.stat().st_size for file in copies.iterdir()} == {"worker-1.out": 8, "raylet.out": 1_000_000}


def test_what_other_jobs_of_a_cluster_printed_is_not_copied(tmp_path: Path) -> None:
    theirs = tmp_path / "session/logs"
    theirs.mkdir(parents=True)
    ours = {"worker-ab-02000000-7.out", "worker-ab-02000000-7.err", "python-core-driver-02000000ffff_9.log"}
    others = {"worker-cd-01000000-6.out", "python-core-driver-01000000ffff_8.log", "python-core-worker-cd_6.log"}
    for name in ours | others | {"raylet.out", "gcs_server.out"}:
        (theirs / name).write_text("printed\n")
    logs = Logs(tmp_path / "results")
    logs.follow(theirs, job="02000000")
    logs.keep()
    (copies,) = (tmp_path / "results/logs").iterdir()
    assert {file.name for file in copies.iterdir()} == ours


def test_the_link_of_a_driver_that_was_killed_is_replaced(tmp_path: Path) -> None:
    for name in ("gone", "here"):
        logs = Logs(tmp_path)
        logs.follow(tmp_path / name)
    assert (tmp_path / "logs/ray").readlink() == tmp_path / "here"
