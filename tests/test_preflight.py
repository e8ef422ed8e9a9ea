"""What is asked of nodes and of the disk before the first trial; tests/test_cluster.py asks real nodes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from model.config import TrainConfig
from model.data.config import SourceConfig
from model.trainer import Trainer
from sweep import preflight, preflight_node, room
from sweep.cluster import Cluster, Node
from sweep.preflight import check, differences
from sweep.preflight_node import Answer, Question, look, mark_of
from sweep.results import ResultsFolder
from sweep.room import checkpoint_bytes, faults_of_room
from tests.sweeping import tiny_spec
from tests.tiny import tiny_config

NOTHING = Question(token=None, sources=(), files=(), wandb_mode="offline")
HERE = look(NOTHING)


def told(there: Answer, question: Question = NOTHING, here: Answer = HERE) -> list[str]:
    return list(differences(question, here, there))


def versions(**changes: str | None) -> Answer:
    return replace(HERE, versions={**HERE.versions, **changes})


def test_a_node_like_the_driver_has_no_fault() -> None:
    assert told(HERE) == []


@pytest.mark.parametrize(
    ("package", "ours", "theirs", "agree"),
    [
        ("torch", "2.15.0+cu130", "2.15.0+cpu", True),
        ("torch", "2.15.0", "2.15.1", False),
        ("torch", "2.15.0", None, False),
        ("ray", "2.60.0", "2.60.1", False),
        ("wandb", "0.31.0", "0.31.4", True),
        ("wandb", "0.31.0", "0.32.0", False),
        ("optuna", "5.0.0", "5.1.0", False),
    ],
)
def test_what_computes_must_be_of_the_same_release_and_the_rest_of_the_same_minor_version(
    package: str, ours: str, theirs: str | None, agree: bool
) -> None:
    found = told(versions(**{package: theirs}), here=versions(**{package: ours}))
    assert (found == []) is agree
    if not agree:
        assert found == [
            f"{package} is {theirs or 'not installed'} there and {ours} here; "
            "install the same on all nodes, or use one container image"
        ]


def test_another_python_and_another_state_of_this_program_are_told() -> None:
    assert told(replace(HERE, python="3.99.1"))[0].startswith("Python is 3.99.1 there and 3.")
    assert told(replace(HERE, python=HERE.python + "9")) == []
    assert told(replace(HERE, digest="0" * 12))[0].startswith("this program is of another state there (000000000000)")


def test_a_node_that_cannot_write_to_the_store_is_told_before_its_trials_lose_their_files() -> None:
    question = replace(NOTHING, store="s3://")  # refused without a network
    there = look(question, "node")
    assert there.store is not None
    assert told(there, question)[0].startswith(there.store)
    assert told(look(question), question) == []  # the driver has looked already


def frames(root: Path, count: int) -> SourceConfig:
    (root / "s").mkdir(parents=True)
    for index in range(count):
        (root / f"s/{index:03d}.png").touch()
    return SourceConfig(source="frames", root=root)


def test_data_of_another_size_and_missing_files_are_told(tmp_path: Path) -> None:
    question = replace(NOTHING, sources=(frames(tmp_path / "a", 6),), files=(tmp_path / "labels.csv",))
    (tmp_path / "labels.csv").touch()
    here = look(question)
    (tmp_path / "labels.csv").unlink()
    (tmp_path / "a/s/007.png").touch()
    found = told(look(question), question, here)
    assert found[0].startswith(f"{tmp_path / 'a'} has 7 files of data there and 6 here")
    assert found[1].startswith(f"{tmp_path / 'labels.csv'} is not there")


def test_data_that_cannot_be_read_there_is_told_with_why(tmp_path: Path) -> None:
    question = replace(NOTHING, sources=(frames(tmp_path / "a", 6),))
    here = look(question)
    (tmp_path / "a").rename(tmp_path / "b")
    (found,) = told(look(question), question, here)
    assert found.startswith("the data cannot be read there: ")
    assert str(tmp_path / "a") in found


def test_a_folder_is_shared_where_each_side_reads_what_the_other_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight_node, "SEEN_S", 0.0)
    token = tmp_path / ".preflight-1"
    question = replace(NOTHING, token=token)
    assert "a file that the driver wrote is not there" in told(look(question, "n1"), question)[0]
    token.write_text(token.name)
    assert told(look(question, "n1"), question) == []
    assert mark_of(token, "n1").read_text() == "n1"
    gone = replace(question, token=tmp_path / "no/.preflight-1")
    assert "there is no such folder" in told(look(gone, "n1"), gone)[0]


# --- room on the disk


def test_the_size_of_a_checkpoint_is_estimated(tmp_path: Path) -> None:
    from model.checkpoint import save_checkpoint
    from model.data.clips import load_clips

    config = tiny_config(encoder={"width": 64, "depth": 3}, decoder={"width": 64, "depth": 2})
    trainer = Trainer(config, load_clips(config.data))
    for _ in trainer.run_epoch():
        pass
    save_checkpoint(tmp_path / "last.pt", trainer.state_dict())
    assert checkpoint_bytes(config) == pytest.approx((tmp_path / "last.pt").stat().st_size, rel=0.25)


def test_the_size_of_a_named_encoder_is_known_without_its_weights() -> None:
    config = TrainConfig.model_validate({"encoder": {"name": "vit_base_patch16_224"}, "data": {"image_size": 224}})
    assert checkpoint_bytes(config) == pytest.approx(86e6 * 4 * 3, rel=0.1)  # 86 million weights


def test_too_little_room_is_an_error_and_little_room_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: Usage)
    assert faults_of_room(10, tmp_path, num_trials=4, concurrent=2) == (None, None)
    error, note = faults_of_room(200, tmp_path, num_trials=4, concurrent=2)
    assert note is None
    assert error is not None
    assert "2 trials at a time need 1.2e-06 GB" in error
    error, note = faults_of_room(100, tmp_path, num_trials=40, concurrent=2)
    assert error is None
    assert note is not None
    assert "the checkpoints of 40 trials come to" in note


def test_on_this_machine_alone_only_the_disk_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(preflight, "_answers", lambda *arguments: asked.append(arguments) or {})
    folder, warnings = ResultsFolder(tmp_path), list[str]()
    nodes = (Node("n1", "here", {"CPU": 2.0}), Node("n2", "small", {"CPU": 0.5}))
    for address in (None, "head:6379"):
        check(tiny_spec(), folder, Cluster(nodes, address), num_trials=4, concurrent=2, warn=warnings.append)
    assert len(asked) == 1
    assert [node.name for node in asked[0][0]] == ["here"]  # type: ignore[index]  # the small one has no room
    assert (warnings, list(tmp_path.iterdir())) == ([], [])
