"""`python -m model.judge` on a run that really trained."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from tiny import tiny_config

from model.checkpoint import LAST, save_checkpoint
from model.judge import RANDOM, TRAINED, main, parser
from model.metrics import EVAL_NAMES, FEATURE_NAMES
from model.trainer import Trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder, and the row of its last epoch."""
    folder = tmp_path_factory.mktemp("run")
    trainer = Trainer(tiny_config(pictures=2))
    *_, last, _ = trainer.train()
    save_checkpoint(folder / LAST, trainer.state_dict())
    return folder, last.values


def test_a_run_is_judged_beside_random_weights_and_as_its_last_epoch_was(run, tmp_path):
    folder, row = run
    assert main([str(folder), "--label", "motion", "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "judge.json").read_text())
    assert content["label"] == "motion"
    for name in (TRAINED, RANDOM):
        assert set(content[name]) == {*EVAL_NAMES, *FEATURE_NAMES}
    assert {name: content[TRAINED][name] for name in EVAL_NAMES} == pytest.approx({n: row[n] for n in EVAL_NAMES})
    assert content[TRAINED]["eval/effective_rank"] == pytest.approx(row["eval/effective_rank"])
    assert content[TRAINED]["eval/reference_loss"] < content[RANDOM]["eval/reference_loss"]
    with Image.open(tmp_path / "judge.png") as picture:
        assert picture.format == "PNG"


def test_files_go_beside_the_run_whether_it_is_named_by_folder_or_checkpoint(run, capsys):
    folder, _ = run
    for name in (folder, folder / LAST):
        assert main([str(name)]) == 0
        assert (folder / "judge.json").exists()
        (folder / "judge.json").unlink()
        (folder / "judge.png").unlink()
    assert "no probe: give --label (indenter, motion, slip)" in capsys.readouterr().out


def test_the_table_shows_both_models(run, tmp_path, capsys):
    main([str(run[0]), "--label", "slip", "--out", str(tmp_path)])
    shown = capsys.readouterr().out
    assert all(text in shown for text in (TRAINED, RANDOM, "probe/attentive_balanced_accuracy", "eval/effective_rank"))


def test_other_data_can_be_judged_and_is_normalised_as_in_training(run, tmp_path):
    folder, row = run
    options = ["--set", "data.synthetic.seed=7", "--set", "pictures=0", "--out", str(tmp_path)]
    assert main([str(folder), *options]) == 0
    content = json.loads((tmp_path / "judge.json").read_text())
    assert content[TRAINED]["eval/reference_loss"] != row["eval/reference_loss"]
    assert not (tmp_path / "judge.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label", "depth_mm"], "is a measurement"),
        (["--label", "slipp"], "did you mean 'slip'?"),
        (["--set", "encoder.width=64"], "--set encoder: the model is trained already; change only"),
        (["--set", "data.image_size=32"], "the model is trained for 16"),
        (["--set", "data.rot=x"], "unknown key"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(run, tmp_path, capsys, options, message):
    assert main([str(run[0]), *options, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_checkpoint_is_refused(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "no such checkpoint" in capsys.readouterr().err


def test_the_command_explains_itself():
    text = parser().format_help()
    assert all(option in text for option in ("--label", "--out", "--set", "example:"))
