"""sweep/report/lenient.py: folders of another version, or damaged, are reported with what they tell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from reporting import COMPLETE, PRUNED, Ending, report, sweep_folder, told
from specs import make

from model.errors import UserError
from sweep.report.data import read_results
from sweep.report.page import write_report

ENDINGS = [Ending(COMPLETE, (2.0, 1.0)), Ending(COMPLETE, (0.8, 0.75)), Ending(PRUNED, (0.5,), "stopped early")]
BEST = "Trial 0001 is the best of the 2 trials that trained to the end"


def changed(folder: Path, **changes: object) -> None:
    """Change keys of spec.yaml; None takes one away."""
    path = folder / "spec.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8")) | changes
    kept = {key: value for key, value in content.items() if value is not None}
    path.write_text(yaml.safe_dump(kept, allow_unicode=True), encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "left_out"),
    [
        ({"horizon": 3}, "horizon"),
        ({"trainer": {"epochs": 8, "lr_decay": "cosine"}}, "trainer.lr_decay"),
        ({"search": {"sampler": "hyperopt", "seed": 3}}, "search.sampler"),
        ({"objective": {"loss": "reference", "smoothness": 2}}, "objective.smoothness"),
        ({"early_terminate": {"type": "bandit"}}, "early_terminate.type"),
        ({"run_cap": -1}, "run_cap"),
        ({"name": 7}, "name"),
    ],
)
def test_what_this_version_does_not_take_of_a_spec_is_left_out_and_named(tmp_path, changes, left_out):
    folder = sweep_folder(tmp_path / "r", *ENDINGS)
    changed(folder, **changes)
    words = told(folder)
    assert f"Left out: {left_out}" in words
    assert f"{folder / 'spec.yaml'}: " in words
    assert BEST in words
    assert "with alpha = 0.75" in words


@pytest.mark.parametrize("text", ["", "[1, 2]", "name: [", "parameters: {alpha: splendid}\n", "\x00\xff"])
def test_spec_that_tells_nothing_is_replaced_by_the_parameters_that_were_tried(tmp_path, text):
    folder = sweep_folder(tmp_path / "r", *ENDINGS)
    (folder / "spec.yaml").write_text(text, encoding="latin-1")
    page = report(folder)
    assert BEST in page.words
    assert "with alpha = 0.75" in page.words
    assert str(folder / "spec.yaml") in page.words
    assert "objective/value / alpha" in page.plots


def test_table_without_a_spec_is_enough_for_a_report(tmp_path):
    folder = sweep_folder(tmp_path / "r", *ENDINGS)
    (folder / "spec.yaml").unlink()
    assert BEST in told(folder)


def test_metric_of_a_spec_that_is_no_longer_valid_is_still_the_one_that_counts(tmp_path):
    spec = make(metric={"name": "eval/static_skill", "goal": "maximize"})
    folder = sweep_folder(tmp_path / "r", Ending(COMPLETE, (0.1,)), Ending(COMPLETE, (0.3,)), spec=spec)
    changed(folder, parameters={"alpha": {"between": [0, 1]}})
    assert "Its eval/static_skill is 0.3." in told(folder)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trial,state,alpha\n0000,splendid,0.5\n", "trial 0000 has no state that is known here"),
        ("trial,alpha\n0000,0.5\n", "trial 0000 has no state that is known here"),
        ("trial,state\nx,complete\n,complete\n", "row 2, 3 names no trial"),
        ("state\ncomplete\n", "row 2 names no trial"),
        ("trial,state\n\x00\xff,\n", "row 2 names no trial"),
    ],
)
def test_rows_of_a_table_that_cannot_be_used_are_named_and_the_rest_is_reported(tmp_path, text, expected):
    folder = sweep_folder(tmp_path / "r")
    (folder / "trials.csv").write_text(text, encoding="latin-1")
    assert expected in told(folder)


def test_table_with_fewer_and_other_columns_is_reported(tmp_path):
    folder = sweep_folder(tmp_path / "r")
    table = (
        "trial,state,epochs,alpha,objective/value,mood\n0000,complete,eight,0.5,0.9,\n0001,complete,8,0.7,0.6,=1+1\n"
    )
    (folder / "trials.csv").write_text(table + "0002,complete,8\n0003,complete,8,0.6,0.7,x,y,z\n", encoding="utf-8")
    words = told(folder)
    assert "Trial 0001 is the best of the 4 trials" in words
    assert "Its objective/value is 0.6" in words


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"sessions": {}},
        {"sessions": [3, None]},
        {"sessions": [{"command": 7, "git": "abc", "packages": []}]},
        {"sessions": [{"command": [1, None], "git": {}, "packages": {"torch": None}}]},
    ],
)
def test_provenance_of_another_shape_costs_nothing_but_itself(tmp_path, content):
    folder = sweep_folder(tmp_path / "r", *ENDINGS)
    (folder / "provenance.json").write_text(json.dumps(content), encoding="utf-8")
    words = told(folder)
    assert BEST in words
    assert "Provenance" in words


def test_confirmation_of_another_version_is_named_and_the_search_reported(tmp_path):
    spec = make(confirm={"top_k": 1, "seeds": [1, 2, 3]})
    folder = sweep_folder(tmp_path / "r", *ENDINGS, spec=spec)
    (folder / "confirm.json").write_text('{"winner": "0001"}', encoding="utf-8")
    words = told(folder)
    assert f"{folder / 'confirm.json'}: cannot be read" in words
    assert BEST in words


def test_spec_that_fits_is_read_without_a_note(tmp_path):
    results = read_results(sweep_folder(tmp_path / "r", *ENDINGS))
    assert results.notes == []


def test_folder_that_holds_neither_spec_nor_table_is_refused(tmp_path):
    (tmp_path / "trials" / "0000").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no sweep"):
        write_report(tmp_path)
