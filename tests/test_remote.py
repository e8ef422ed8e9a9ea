"""Results at a URL: whole sweeps whose files go to a real S3 API on loopback, over kills and onto other machines."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("moto", reason="the double of S3 is not installed: pip install -e '.[dev]'")
pytest.importorskip("s3fs", reason="pip install -e '.[s3]'")

from moto.server import ThreadedMotoServer

from model.errors import ConfigError
from sweep.mirror import STATE, Progress, TrialMirror
from sweep.outcome import Outcome
from sweep.remote import Store, cache_folder, checked_url, is_url
from sweep.remote import main as fetch_all
from sweep.remote_lock import LOCK, DriverLock
from sweep.run import main
from sweep.study import JOURNAL, Record
from sweep.sweep_mirror import SweepMirror
from tests.inline import Inline, inline_runner, looking_at_each_update, sweep
from tests.sweeping import TINY_TRAINER, tiny_content

pytestmark = pytest.mark.xdist_group("remote")  # they share the store, and the rows to expect
LIMIT_S = 240
BUCKET = "sweeps"
SERIAL: dict[str, Any] = {
    "resources": {"max_concurrent": 1},
    "run_cap": 3,
    "trainer": {**TINY_TRAINER, "epochs": 6},
}
Rows = dict[str, bytes]


@pytest.fixture(scope="module")
def s3() -> Iterator[ThreadedMotoServer]:
    """An S3 service on loopback, with a bucket; this process and its children find it by the environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "a-very-secret-key")
        patch.setenv("AWS_REGION", "us-east-1")
        import boto3

        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield server
    server.stop()


@pytest.fixture
def url(s3: ThreadedMotoServer, request: pytest.FixtureRequest) -> str:
    return f"s3://{BUCKET}/{request.node.name.replace('[', '-').strip(']')}"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the local copies of this test lie."""
    monkeypatch.setenv("TACTILE_SWEEP_RESULTS", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_spec(folder: Path, **changes: Any) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_content(**changes)), encoding="utf-8")
    return path


def at_epoch(trial: str, epochs: int, happens: Callable[[], object]) -> Inline:
    """An engine in which this happens when a trial has so many epochs, once."""
    waiting = [happens]

    def before_epoch(name: str, done: int) -> None:
        if (name, done) == (trial, epochs) and waiting:
            waiting.pop()()

    return Inline(before_epoch=before_epoch)


def wait_for(condition: Callable[[], bool], what: str, limit_s: float = LIMIT_S) -> None:
    give_up = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < give_up, f"waited {limit_s} s for {what}"
        time.sleep(0.1)


def rows_at(store: Store) -> Rows:
    names = [name for name in store.sizes("trials") if name.endswith(("batch.csv", "epoch.csv", "summary.json"))]
    found = store.read_all(names)
    return {name: _without_times(content) if name.endswith(".json") else content for name, content in found.items()}


def rows_in(results: Path) -> Rows:
    """The same of a folder."""
    kept = ("batch.csv", "epoch.csv", "summary.json")
    files = {
        p.relative_to(results).as_posix(): p.read_bytes() for name in kept for p in results.glob(f"trials/*/{name}")
    }
    return {name: _without_times(content) if name.endswith(".json") else content for name, content in files.items()}


def _without_times(summary: bytes) -> bytes:
    content = json.loads(summary)
    return json.dumps({name: value for name, value in content.items() if "time" not in name}).encode()


def states_at(store: Store) -> list[str]:
    text = (store.read("trials.csv") or b"").decode()
    return [row["state"] for row in csv.DictReader(io.StringIO(text))]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """The rows of the sweep SERIAL in a folder, where nothing disturbs it."""
    folder = tmp_path_factory.mktemp("expected")
    assert sweep(write_spec(folder, **SERIAL), folder / "results").code == 0
    return rows_in(folder / "results")


# --- whole sweeps -----------------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_a_sweep_to_s3_leaves_there_what_it_leaves_in_its_folder(
    tmp_path: Path, cache: Path, url: str, expected: Rows
) -> None:
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        # the place is the spec's here, an option's elsewhere
        code = main([str(write_spec(tmp_path, **SERIAL, results=url))])
    printed = out.getvalue() + err.getvalue()
    assert code == 0, printed
    store, folder = Store(url), cache_folder(url)
    there = store.sizes()
    here = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
        and not path.is_symlink()  # W&B's, to a log of its service
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }
    wanted = {name: size for name, size in here.items() if not name.startswith(("ray/", "logs/"))}
    assert {name: there.get(name) for name in wanted} == wanted
    assert {name for name in there if not name.rpartition("/")[2].startswith(".")} == set(wanted)
    assert len([name for name in there if name.endswith(".wandb")]) == 3
    assert LOCK not in there
    assert states_at(store) == ["complete"] * 3
    assert rows_at(store) == expected
    assert store.url in printed
    assert "a-very-secret-key" not in printed
    for name, content in store.read_all(n for n in there if not n.endswith((".pt", ".png"))).items():
        assert b"a-very-secret-key" not in content, name


def test_a_killed_sweep_goes_on_on_another_machine_to_the_same_rows(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, expected: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, store = write_spec(tmp_path, **SERIAL), Store(url)
    monkeypatch.setattr("sweep.sweep_mirror.LEAST_PAUSE_S", 0.1)  # its trials take half a second
    monkeypatch.setenv("TACTILE_SWEEP_RESULTS", str(tmp_path / "first"))
    said, says = os.pipe()

    def wait_for_the_end() -> None:
        """Once the first trial's end is in the journal there."""
        journal = cache_folder(url) / JOURNAL
        wait_for(lambda: Store(url).read(JOURNAL) == journal.read_bytes(), "the journal")
        os.write(says, b"x")
        signal.pause()

    if (driver := os.fork()) == 0:
        try:
            run_inline_at(spec, url, engine=at_epoch("0001", 2, wait_for_the_end))
        finally:
            os._exit(1)
    os.close(says)
    assert os.read(said, 1), "it came to the second trial's second epoch"
    assert run_inline_at(spec, url, "--resume") == 2
    assert f"process {driver} on " in capsys.readouterr().err
    os.kill(driver, signal.SIGKILL)
    os.waitpid(driver, 0)
    os.close(said)
    shutil.rmtree(tmp_path / "first")
    monkeypatch.setenv("TACTILE_SWEEP_RESULTS", str(tmp_path / "second"))
    assert run_inline_at(spec, url, "--resume") == 0
    assert "took over" in capsys.readouterr().out
    assert rows_at(store) == expected
    assert states_at(store) == ["complete"] * 3
    assert (cache_folder(url) / "report.html").exists()


def test_a_store_that_is_gone_for_a_while_stops_no_trial_and_gets_all_of_it_by_resume(
    tmp_path: Path,
    cache: Path,
    s3: ThreadedMotoServer,
    expected: Rows,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url, spec = f"s3://{BUCKET}/gone", write_spec(tmp_path, **SERIAL)
    with Relay(int(s3.get_host_and_port()[1])) as relay, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{relay.port}")
        assert run_inline_at(spec, url, engine=at_epoch("0000", 2, relay.shut)) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert printed.count("the store does not answer. Trials go on; their files are kept") == 1, printed
        assert "--resume sends them" in printed, printed
        relay.open = True
        assert len([name for name in Store(url).sizes("trials") if name.endswith("summary.json")]) < 3
        Store(url).remove([LOCK])  # its process lives on, in which this test is; of one that has ended nobody waits
        assert run_inline_at(spec, url, "--resume") == 0
    store = Store(url)  # not through the relay
    assert rows_at(store) == expected
    assert store.read(JOURNAL) == (cache_folder(url) / JOURNAL).read_bytes()


def test_an_interrupted_sweep_leaves_its_checkpoint_at_the_store_and_goes_on_elsewhere(
    tmp_path: Path, cache: Path, url: str, expected: Rows
) -> None:
    spec, store = write_spec(tmp_path, **SERIAL), Store(url)
    ask = at_epoch("0000", 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with looking_at_each_update():
        assert run_inline_at(spec, url, engine=ask) == 130
    assert "trials/0000/checkpoint/last.pt" in store.sizes()
    assert "trials/0000/summary.json" not in store.sizes()
    assert store.read(LOCK) is None
    shutil.rmtree(cache)
    assert run_inline_at(spec, url, "--resume") == 0
    assert rows_at(store) == expected


def run_inline_at(spec: Path, url: str, *options: str, engine: Inline | None = None) -> int:
    with inline_runner(engine):
        return main([str(spec), "--results", url, *options])


class Relay:
    """A port on loopback that leads to another one while it is `open`; `silent`: it takes all and answers nothing."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.open, self.silent = True, False
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._pairs: list[socket.socket] = []

    def shut(self) -> None:
        """Break all connections, and take no new ones."""
        self.open = False
        for end in self._pairs:
            with suppress(OSError):  # it is closed already
                end.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Relay:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shut()
        self._server.close()
        for end in self._pairs:
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            if not self.open:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:  # the service has ended, and somebody still asks for it
                near.close()
                continue
            self._pairs += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while (content := source.recv(65536)) and self.open:
                if not self.silent:
                    sink.sendall(content)
        except OSError:
            pass
        for end in (source, sink):
            end.close()


# --- URLs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["results/a", "/nfs/results", "C:", "a:b", "~/x"])
def test_a_path_is_no_url(place: str) -> None:
    assert not is_url(place)


@pytest.mark.parametrize(
    ("place", "url"), [("s3://b", "s3://b"), ("s3://b//a/ b/", "s3://b/a/ b"), ("gs://b/x", "gs://b/x")]
)
def test_urls_have_one_form(place: str, url: str) -> None:
    assert is_url(place)
    assert checked_url(place) == url


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("s4://b/x", "is no store that is known here; use s3://bucket/folder or gs://bucket/folder"),
        ("https://b/x", "is no store that is known here"),
        ("file:///tmp/x", "give a folder as a path"),
        ("s3:/b/x", "must be s3://BUCKET or s3://BUCKET/FOLDER"),
        ("s3://", "must be s3://BUCKET"),
        ("s3://b/../c", "without '..'"),
        ("s3://key:secret@b/x", "credentials do not belong in it"),
        ("s3://b/x?X-Amz-Signature=secret", "credentials do not belong in it"),
    ],
)
def test_a_url_that_is_none_is_refused_before_anything_starts_and_no_secret_is_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, words: str
) -> None:
    assert main([str(write_spec(tmp_path)), "--results", place]) == 2
    by_option = capsys.readouterr().err
    assert main([str(write_spec(tmp_path, results=place))]) == 2
    by_spec = capsys.readouterr().err
    for error in (by_option, by_spec):
        assert words in " ".join(error.split())
        assert "results" in error
        assert "secret" not in error
        assert "Traceback" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.yaml"]


def test_a_missing_package_is_named_with_the_extra_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as Python itself marks a module that must not be imported
    with pytest.raises(ConfigError, match=r"s3:// needs s3fs, .* pip install 'tactile-sweep\[s3\]'"):
        Store("s3://bucket/x")


def test_population_based_training_needs_a_shared_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = {"pbt": {"every_epochs": 1}}
    assert main([str(write_spec(tmp_path, method="random", search=search)), "--results", "s3://b/x"]) == 2
    assert "give one with --results DIR" in " ".join(capsys.readouterr().err.split())


# --- stores that refuse -----------------------------------------------------------------------------------------------


def test_a_bucket_that_is_not_there_is_an_error_before_anything_starts(
    s3: ThreadedMotoServer, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(write_spec(tmp_path)), "--results", "s3://no-such-bucket/x"]) == 2
    error = capsys.readouterr().err
    assert "s3://no-such-bucket/x" in error
    assert "there is no such bucket" in error
    assert not cache.exists()


def test_a_store_that_does_not_answer_is_an_error_before_anything_starts(
    s3: ThreadedMotoServer,
    tmp_path: Path,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
    assert main([str(write_spec(tmp_path)), "--results", f"s3://{BUCKET}/x"]) == 2
    assert "the store does not answer" in capsys.readouterr().err
    assert not cache.exists()


def test_without_credentials_it_says_which_are_looked_for(
    s3: ThreadedMotoServer,
    tmp_path: Path,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    assert main([str(write_spec(tmp_path)), "--results", f"s3://{BUCKET}/x"]) == 2
    assert "AWS_PROFILE" in capsys.readouterr().err


def test_nothing_to_resume_at_a_url_is_an_error_and_a_dry_run_leaves_nothing_there(
    tmp_path: Path, cache: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = str(write_spec(tmp_path))
    assert main([spec, "--results", url, "--resume"]) == 2
    assert "holds no sweep" in capsys.readouterr().err
    assert main([spec, "--results", url, "--dry-run", "--no-measure"]) == 0
    assert f"copied to {url}" in capsys.readouterr().out
    assert Store(url).sizes() == {}


def test_a_sweep_that_could_not_start_takes_back_what_it_sent_and_nothing_of_others(url: str, cache: Path) -> None:
    store = Store(url)
    store.write("notes.txt", b"of somebody else")
    store.write("thesis/data.bin", b"of somebody else")
    mirror = SweepMirror(url, print)
    with mirror.opened(resume=False, dry_run=False):
        mirror.folder.mkdir(parents=True)
        (mirror.folder / "spec.yaml").write_text("name: x")
        (mirror.folder / JOURNAL).write_text("1\n")
        with mirror.running():
            assert {"spec.yaml", JOURNAL} <= set(store.sizes())
        mirror.discard()
    assert set(store.sizes()) == {"notes.txt", "thesis/data.bin"}


def test_a_store_that_falls_silent_does_not_hold_a_stopped_sweep(
    url: str, cache: Path, s3: ThreadedMotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("sweep.remote.READ_S", 100_000)  # who waits for the client's own limit never ends
    monkeypatch.setattr("sweep.sweep_mirror.STOP_LIMIT_S", 0.5)
    with Relay(int(s3.get_host_and_port()[1])) as relay:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{relay.port}")
        mirror = SweepMirror(url, said.append)
        with mirror.opened(resume=False, dry_run=False):
            mirror.folder.mkdir(parents=True)
            (mirror.folder / "spec.yaml").write_text("name: x")
            with mirror.running():
                relay.silent = True
                (mirror.folder / JOURNAL).write_text("1\n")
                mirror.hurry = True
    assert len(said) == 1
    assert "the store does not answer" in said[0]
    assert "--resume sends them" in said[0]


def test_no_object_leads_out_of_the_folder_that_it_is_fetched_into(url: str, tmp_path: Path) -> None:
    import boto3

    boto3.client("s3").put_object(Bucket=BUCKET, Key=f"{url.rpartition('/')[2]}/a/../../../escaped", Body=b"x")
    store = Store(url)
    store.write("fine/file", b"content")
    assert fetch_all([url, str(tmp_path / "a/b/c")]) == 0
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()] == [
        "a/b/c/fine/file"
    ]


# --- who drives -------------------------------------------------------------------------------------------------------


def test_a_second_driver_is_told_who_has_the_url_and_a_released_one_is_free(url: str) -> None:
    first, second = DriverLock(Store(url)), DriverLock(Store(url))
    assert first.acquire() is None
    with pytest.raises(ConfigError, match=rf"process {os.getpid()} on .* can be taken over in"):
        second.acquire()
    assert first.beat()
    first.release()
    assert second.acquire() is None
    assert Store(url).read(LOCK) is not None


def test_the_lock_of_a_dead_process_of_this_machine_is_free_at_once(url: str) -> None:
    if (driver := os.fork()) == 0:
        try:
            DriverLock(Store(url)).acquire()
        finally:
            os._exit(0)
    os.waitpid(driver, 0)
    assert "which ended without closing it" in (DriverLock(Store(url)).acquire() or "")


def test_a_driver_of_another_machine_that_gave_no_sign_of_life_is_taken_for_dead(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(url)
    lost = DriverLock(store)
    lost.acquire()
    content = json.loads(store.read(LOCK) or b"")
    store.write(LOCK, json.dumps(content | {"host": "elsewhere", "machine": "of another boot"}).encode())
    with pytest.raises(ConfigError, match="on elsewhere"):
        DriverLock(store).acquire()
    monkeypatch.setattr("sweep.remote_lock.STALE_S", 0.0)  # any age is too old
    assert "on elsewhere" in (DriverLock(store).acquire() or "")
    assert not lost.beat()  # it finds that out


def test_a_lock_that_was_removed_was_taken_over_by_nobody(url: str) -> None:
    lock, store = DriverLock(Store(url)), Store(url)
    lock.acquire()
    store.remove([LOCK])
    assert lock.beat()
    assert store.read(LOCK) is not None


# --- a trial's files --------------------------------------------------------------------------------------------------


def trial_files(results: Path, rows: int, text: str = "config") -> None:
    folder = results / "trials/0000"
    (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(text)
    (folder / "batch.csv").write_text("".join(f"{row}\n" for row in range(rows)))
    (folder / "checkpoint/last.pt").write_text(f"after {rows}")


def mirror_of(url: str, results: Path) -> TrialMirror:
    return TrialMirror(url, results, "0000", "uid-0000")


def sent(mirror: TrialMirror, update: int, ended: bool = False) -> None:
    mirror.saved(update, ended)
    assert mirror.settle(LIMIT_S)


def test_a_trial_that_is_opened_elsewhere_gets_its_files_and_keeps_newer_ones(url: str, tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    trial_files(here, 5)
    sent(mirror_of(url, here), 5)
    mirror_of(url, elsewhere).fetch(lambda text: text == "config")
    assert (elsewhere / "trials/0000/checkpoint/last.pt").read_text() == "after 5"
    trial_files(elsewhere, 9)
    later = mirror_of(url, elsewhere)
    later.fetch(lambda text: True)
    assert (elsewhere / "trials/0000/batch.csv").read_text().count("\n") == 9  # not older ones in their place
    sent(later, 9, ended=True)
    mirror_of(url, here).fetch(lambda text: True)
    assert (here / "trials/0000/checkpoint/last.pt").read_text() == "after 9"
    assert Progress.here(here / "trials/0000") == Progress(9, ended=True)


def test_rows_go_before_their_checkpoint_so_a_cut_leaves_no_checkpoint_without_rows(url: str, tmp_path: Path) -> None:
    trial_files(tmp_path, 5)
    store = Store(url)
    sent(mirror_of(url, tmp_path), 5)
    trial_files(tmp_path, 9)
    refused = tmp_path / "trials/0000" / os.fsdecode(b"zz\xff")  # comes after the rows; no store takes such a name
    refused.write_text("x")
    mirror = mirror_of(url, tmp_path)
    mirror.saved(9)
    assert not mirror.settle(LIMIT_S)
    assert (store.read("trials/0000/batch.csv") or b"").count(b"\n") == 9
    assert store.read("trials/0000/checkpoint/last.pt") == b"after 5"
    assert Progress.parse(store.read(f"trials/0000/{STATE}")) == Progress(5)
    refused.unlink()
    sent(mirror_of(url, tmp_path), 9)
    assert store.read("trials/0000/checkpoint/last.pt") == b"after 9"


def test_files_of_another_trial_of_that_number_are_removed_not_taken(url: str, tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    trial_files(here, 5, "another config")
    sent(mirror_of(url, here), 5)
    mirror_of(url, elsewhere).fetch(lambda text: text == "config")
    assert not (elsewhere / "trials/0000/batch.csv").exists()
    assert not [name for name in Store(url).sizes("trials/0000") if name.endswith((".csv", ".pt", STATE))]


def test_a_worker_that_comes_late_sends_nothing_any_more(url: str, tmp_path: Path) -> None:
    late, now = tmp_path / "late", tmp_path / "now"
    trial_files(late, 5)
    first = mirror_of(url, late)
    first.fetch(lambda text: True)
    sent(first, 5)
    second = mirror_of(url, now)
    second.fetch(lambda text: True)
    trial_files(late, 7)
    sent(first, 7)
    assert Store(url).read("trials/0000/checkpoint/last.pt") == b"after 5"
    trial_files(now, 6)
    sent(second, 6)
    assert Store(url).read("trials/0000/checkpoint/last.pt") == b"after 6"


def test_the_journal_waits_for_the_files_of_a_trial_that_ended(
    url: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("sweep.sweep_mirror.LEAST_PAUSE_S", 0.1)
    mirror, store = SweepMirror(url, said.append), Store(url)
    with mirror.opened(resume=False, dry_run=False):
        mirror.folder.mkdir(parents=True)
        (mirror.folder / JOURNAL).write_text("0000 runs\n")
        with mirror.running():
            assert store.read(JOURNAL) == b"0000 runs\n"
            mirror.ended(record("0000", Outcome.PRUNED))
            (mirror.folder / JOURNAL).write_text("0000 runs\n0000 ended\nhalf a li")
            for text in (b"one", b"another"):  # so that the look that sent the first one has ended
                (mirror.folder / "trials.csv").write_bytes(text)
                wait_for(lambda text=text: store.read("trials.csv") == text, "the table")  # type: ignore[misc]
            assert store.read(JOURNAL) == b"0000 runs\n"
            trial_files(mirror.folder, 5)
            sent(mirror_of(url, mirror.folder), 5, ended=True)
            wait_for(lambda: store.read(JOURNAL) == b"0000 runs\n0000 ended\n", "the journal")
    assert said == []
    assert store.read(LOCK) is None


def test_a_copy_that_is_behind_is_brought_up_and_one_of_another_course_is_set_aside(url: str, cache: Path) -> None:
    said: list[str] = []
    store = Store(url)
    store.write(JOURNAL, b"1\n2\n3\n")
    store.write("spec.yaml", b"theirs")
    folder = cache_folder(url)
    for ours, course in ((b"1\n2\n", 1), (b"1\n2\n3\n4\n", 2), (b"1\nX\n", 3)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / JOURNAL).write_bytes(ours)
        with SweepMirror(url, said.append).opened(resume=True, dry_run=False):
            kept = ours if course == 2 else b"1\n2\n3\n"
            assert (folder / JOURNAL).read_bytes() == kept
    assert (folder.with_name(f"{folder.name}.old-1") / JOURNAL).read_bytes() == b"1\nX\n"
    assert len(said) == 1


def record(trial: str, outcome: Outcome) -> Record:
    return Record(int(trial), trial, {}, None, outcome, 1.0, 1, None)
