"""The table of metrics in model/README.md is that of model/metrics.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from model import metrics
from model.errors import ConfigError
from model.metric_table import BEGIN, END, inserted, main, table

README = Path(__file__).parents[1] / "model" / "README.md"


def test_the_table_in_the_trainers_page_is_up_to_date(capsys):
    assert main(["--check", str(README)]) == 0, capsys.readouterr().out


def test_every_metric_has_a_row_with_its_formula_and_every_group_its_number():
    rows = [line for line in table().splitlines() if line.startswith("| `")]
    assert len(rows) == len(metrics.ALL)
    for row, metric in zip(rows, metrics.ALL, strict=True):
        assert row.startswith(f"| `{metric.name}`")
        assert metric.formula
        assert row.replace("\\|", "").count("|") == 5, "four cells"
    for heading in ("**Batch** (16)", "**Epoch** (11)", "**Summary** (3)"):
        assert heading in table()


def test_a_stale_table_is_told_with_the_command_that_mends_it(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{BEGIN}\n| of yesterday |\n{END}\nafter\n", encoding="utf-8")
    assert main(["--check", str(page)]) == 1
    assert f"python -m model.metric_table --write {page}" in capsys.readouterr().out
    assert "of yesterday" in page.read_text(encoding="utf-8"), "a check changes nothing"
    assert main(["--write", str(page)]) == 0
    written = page.read_text(encoding="utf-8")
    assert written.startswith(f"before\n\n{BEGIN}")
    assert written.endswith(f"{END}\nafter\n")
    assert "`batch/loss_ratio`" in written
    assert "of yesterday" not in written
    assert main(["--check", str(page)]) == 0
    assert main(["--write", str(page)]) == 0
    assert page.read_text(encoding="utf-8") == written


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_document_without_one_pair_of_markers_is_refused(text):
    with pytest.raises(ConfigError, match=r"page\.md: must hold these two lines once"):
        inserted(text, "page.md")


def test_a_file_that_is_not_there_is_an_error_in_one_line(tmp_path, capsys):
    assert main(["--write", str(tmp_path / "none.md")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_without_a_file_the_table_is_printed(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out == table()
