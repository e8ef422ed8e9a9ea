"""Our sinks, data sources and results stores keep to their contracts (samplers and rules: in files of their own)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from model.data.base import Source
from model.data.config import DataConfig, SyntheticConfig
from model.data.sources import open_source
from model.sinks import CsvSink, History, Sink, read_csv, read_json
from sweep.blocks import WandbSettings
from sweep.remote import Store
from sweep.wandb_client import reset_client
from sweep.wandb_run import RunIdentity
from sweep.wandb_sink import WandbSink
from tests.contracts.sinks import Kept, SinkContract
from tests.contracts.sources import SourceContract
from tests.contracts.stores import StoreContract
from tests.offline import read_history, read_summary
from tests.test_layouts import tacquad, touch_and_go, ycb_slide
from tests.test_remote import BUCKET, s3  # noqa: F401  # a fixture
from tests.test_sources import write_images, write_video


class TestCsv(SinkContract):
    @pytest.fixture
    def sink(self, tmp_path: Path) -> Sink:
        return CsvSink(tmp_path)

    @pytest.fixture
    def kept(self, tmp_path: Path) -> Callable[[], Kept]:
        summary = tmp_path / "summary.json"
        return lambda: Kept(
            read_csv(tmp_path / "batch.csv"),
            read_csv(tmp_path / "epoch.csv"),
            read_json(summary) if summary.exists() else {},
        )


class TestHistory(SinkContract):
    @pytest.fixture
    def sink(self) -> Sink:
        return History()

    @pytest.fixture
    def kept(self, sink: History) -> Callable[[], Kept]:
        return lambda: Kept(
            [dict(row) for row in sink.batch],
            [dict(row) for row in sink.epoch],
            sink.summary,
        )


class TestWandbOffline(SinkContract):
    @pytest.fixture
    def sink(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sink]:
        monkeypatch.setenv("HOME", str(tmp_path))
        reset_client()  # it reads its environment once
        identity = RunIdentity("trial_1", "trial 1", "sweep", "tactile", None, tmp_path)
        yield WandbSink(identity, {"alpha": 0.3}, WandbSettings(mode="offline"))
        reset_client()

    @pytest.fixture
    def kept(self, tmp_path: Path) -> Callable[[], Kept]:
        def read() -> Kept:
            rows = read_history(tmp_path)
            batch = [row for row in rows if "batch/iteration" in row]
            summary = {
                name: value for name, value in read_summary(tmp_path)["summary"].items() if name.startswith("summary/")
            }
            return Kept(batch, [row for row in rows if "epoch" in row], summary)

        return read


class TestSources(SourceContract):
    @pytest.fixture(params=["synthetic", "frames", "videos", "tacquad", "touch_and_go", "ycb_slide"])
    def make_source(self, request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Source]:
        kind = request.param
        if kind == "synthetic":
            return lambda: open_source(DataConfig(synthetic=SyntheticConfig(sequences=3, frames=5)))
        if kind == "frames":
            for name in "ab":
                write_images(tmp_path / name, [0, 1, 4])
        elif kind == "videos":
            for name in "ab":
                write_video(tmp_path / f"{name}.avi", 5)
        else:
            {"tacquad": tacquad, "touch_and_go": touch_and_go, "ycb_slide": ycb_slide}[kind](tmp_path)
        return lambda: open_source(DataConfig(source=kind, root=tmp_path))


class TestS3(StoreContract):
    @pytest.fixture
    def store(self, s3: object, request: pytest.FixtureRequest) -> Store:  # noqa: F811
        return Store(f"s3://{BUCKET}/{request.node.name}")
