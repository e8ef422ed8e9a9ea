"""sweep/report/pictures.py: reconstructions on the page, from what trials left or from their checkpoints."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reporting import COMPLETE, PRUNED, Ending, sweep_folder, told

from model.config import TrainConfig
from sweep.report.__main__ import main
from sweep.report.data import read_results
from sweep.report.pictures import LARGE, PICTURE, pictures
from tests.tiny import tiny_config
from tests.trained import checkpoint, trained


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sweep whose trial 0001 is the best and 0000 the equal weights, without pictures and checkpoints."""
    return sweep_folder(tmp_path / "r", Ending(COMPLETE, (0.9,)), Ending(COMPLETE, (0.5,)), Ending(PRUNED, (0.7,)))


def leave_picture(folder: Path, trial: str, noise: bool = False) -> Path:
    path = folder / "trials" / trial / PICTURE
    path.parent.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (900, 3000, 3), dtype=np.uint8)
    (Image.fromarray(pixels) if noise else Image.new("RGB", (300, 90), "teal")).save(path)
    return path


def test_best_trial_and_equal_weights_are_shown_side_by_side(folder):
    leave_picture(folder, "0000")
    leave_picture(folder, "0001")
    best, equal = pictures(read_results(folder))
    assert (best.title, equal.title) == ("Trial 0001, best trial", "Trial 0000, equal weights")
    assert best.source.startswith("data:image/png;base64,")
    assert "Reconstructions" in told(folder)


def test_large_picture_is_packed_so_that_the_page_stays_small(folder):
    assert leave_picture(folder, "0001", noise=True).stat().st_size > LARGE
    source = pictures(read_results(folder))[0].source
    assert source.startswith("data:image/webp;base64,")
    assert len(source) < (folder / "trials" / "0001" / PICTURE).stat().st_size / 2


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n\x00\x00"])
def test_damaged_picture_is_a_sentence(folder, content):
    leave_picture(folder, "0001").write_bytes(content)
    picture = pictures(read_results(folder))[0]
    assert picture.source == ""
    assert "cannot be shown" in picture.text


def test_without_picture_and_checkpoint_a_sentence_says_so(folder):
    assert "there is no checkpoint either" in pictures(read_results(folder))[0].text


def test_without_a_best_trial_there_is_no_section(tmp_path):
    folder = sweep_folder(tmp_path / "r", Ending(PRUNED, (0.9,)))
    assert pictures(read_results(folder)) == []
    assert "Reconstructions" not in told(folder)


def test_missing_picture_is_drawn_from_the_checkpoint_once(folder, capsys):
    run = trained(TrainConfig.model_validate(tiny_config().model_dump() | {"pictures": 0}))
    checkpoint(run, folder / "trials" / "0001" / "checkpoint" / "last.pt")
    assert "makes one from its checkpoint" in pictures(read_results(folder))[0].text
    assert main([str(folder)]) == 0
    assert "drawing reconstructions of trial 0001 from its checkpoint" in capsys.readouterr().err
    drawn = folder / "pictures" / "0001.png"
    with Image.open(drawn) as image:
        assert min(image.size) > 100
    assert len(re.findall("data:image/png", (folder / "report.html").read_text(encoding="utf-8"))) >= 1
    made = drawn.stat().st_mtime_ns
    assert main([str(folder)]) == 0
    assert capsys.readouterr().err == ""
    assert drawn.stat().st_mtime_ns == made


@pytest.mark.parametrize("fault", ["damaged checkpoint", "data are gone"])
def test_picture_that_cannot_be_drawn_costs_a_line_and_not_the_page(folder, capsys, fault):
    path = folder / "trials" / "0001" / "checkpoint" / "last.pt"
    if fault == "damaged checkpoint":
        path.parent.mkdir()
        path.write_bytes(b"x")
    else:
        data = {"source": "frames", "root": str(folder / "gone"), "image_size": 16}
        checkpoint(trained(tiny_config()), path)
        content = tiny_config().model_dump(mode="json") | {"data": data}
        checkpoint(trained(tiny_config()), path, config=content)
    assert main([str(folder)]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("no picture of trial 0001: ")
    assert "Trial 0001 is the best" in (folder / "report.html").read_text(encoding="utf-8")
