"""CSV files that hold every row exactly, whatever happens; the in-memory history; files written in one step."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model import metrics
from model.errors import UserError
from model.metrics import Level
from model.sinks import CsvSink, Event, History, read_csv, write_json, write_text

NUMBERS = st.floats(allow_nan=False) | st.integers(-(2**53), 2**53)
ROWS = st.lists(st.dictionaries(st.sampled_from(metrics.BATCH_NAMES), NUMBERS, min_size=1), max_size=5)


@pytest.fixture(scope="module")
def fresh_folder(tmp_path_factory):
    """Makes a new folder for each Hypothesis example."""
    numbers = count()
    base = tmp_path_factory.mktemp("sinks")
    return lambda: base / str(next(numbers))


def batch_row(iteration: int) -> dict[str, float]:
    return {"batch/iteration": iteration, "batch/loss_total": 1 / (iteration + 1)}


def logged(folder: Path, rows: list[dict[str, float]], **keep: int) -> None:
    sink = CsvSink(folder, **keep)
    for row in rows:
        sink.log(Event(Level.BATCH, row))
    sink.close(0)


@given(ROWS)
def test_rows_are_read_back_exactly(fresh_folder, rows):
    folder = fresh_folder()
    logged(folder, rows)
    read = read_csv(folder / "batch.csv")
    assert read == rows
    assert [[type(v) for v in row.values()] for row in read] == [
        [type(row[name]) for name in metrics.BATCH_NAMES if name in row] for row in rows
    ]


@given(ROWS, st.data())
def test_a_file_cut_anywhere_gives_its_whole_rows(fresh_folder, rows, data):
    folder = fresh_folder()
    logged(folder, rows)
    path = folder / "batch.csv"
    text = path.read_text()
    cut = data.draw(st.integers(0, len(text)))
    path.write_text(text[:cut])
    assert read_csv(path) == rows[: max(text[:cut].count("\n") - 1, 0)]


def test_headers_are_the_metric_names_in_full(tmp_path):
    CsvSink(tmp_path).close(0)
    assert (tmp_path / "batch.csv").read_text() == ",".join(metrics.BATCH_NAMES) + "\n"
    assert (tmp_path / "epoch.csv").read_text() == ",".join(metrics.EPOCH_COLUMNS) + "\n"


def test_a_metric_that_was_not_computed_is_an_empty_cell_and_absent_when_read(tmp_path):
    logged(tmp_path, [{"batch/iteration": 0}])
    assert read_csv(tmp_path / "batch.csv") == [{"batch/iteration": 0}]


def test_a_metric_that_is_not_in_the_table_is_a_fault_of_ours(tmp_path):
    sink = CsvSink(tmp_path)
    with pytest.raises(AssertionError, match="batch/los"):
        sink.log(Event(Level.BATCH, {"batch/los": 1.0}))
    sink.close(0)


def test_rows_are_on_disk_before_the_sink_is_closed(tmp_path):
    sink = CsvSink(tmp_path)
    sink.log(Event(Level.BATCH, batch_row(0)))
    assert read_csv(tmp_path / "batch.csv") == [batch_row(0)]
    sink.close(0)


def test_a_nan_row_is_kept(tmp_path):
    logged(tmp_path, [{"batch/loss_total": float("nan")}])
    [row] = read_csv(tmp_path / "batch.csv")
    assert row["batch/loss_total"] != row["batch/loss_total"]


def test_events_go_to_the_file_of_their_level(tmp_path):
    sink = CsvSink(tmp_path)
    sink.log(Event(Level.BATCH, batch_row(0)))
    sink.log(Event(Level.EPOCH, {"epoch": 0, "eval/pred_skill": 0.25}))
    sink.log(Event(Level.SUMMARY, {"summary/best_epoch": 0, "summary/best_loss": 1.5}))
    sink.close(0)
    assert read_csv(tmp_path / "batch.csv") == [batch_row(0)]
    assert read_csv(tmp_path / "epoch.csv") == [{"epoch": 0, "eval/pred_skill": 0.25}]
    assert json.loads((tmp_path / "summary.json").read_text()) == {"summary/best_epoch": 0, "summary/best_loss": 1.5}


# --- going on with a file ------------------------------------------------------------------------------------------


def test_kept_rows_stay_byte_for_byte_and_later_ones_are_cut(tmp_path):
    logged(tmp_path / "whole", [batch_row(i) for i in range(6)])
    logged(tmp_path / "parts", [batch_row(i) for i in range(4)])
    logged(tmp_path / "parts", [batch_row(i) for i in range(2, 6)], keep_batches=2)
    assert (tmp_path / "parts" / "batch.csv").read_bytes() == (tmp_path / "whole" / "batch.csv").read_bytes()


def test_a_half_written_last_row_is_not_kept(tmp_path):
    logged(tmp_path, [batch_row(0), batch_row(1)])
    path = tmp_path / "batch.csv"
    path.write_text(path.read_text()[:-5])
    logged(tmp_path, [batch_row(1)], keep_batches=1)
    assert read_csv(path) == [batch_row(0), batch_row(1)]


def test_keeping_no_row_starts_afresh(tmp_path):
    logged(tmp_path, [batch_row(0)])
    logged(tmp_path, [batch_row(7)])
    assert read_csv(tmp_path / "batch.csv") == [batch_row(7)]


def test_a_file_with_fewer_rows_than_the_checkpoint_knows_is_refused_and_left_as_it_is(tmp_path):
    logged(tmp_path, [batch_row(0)])
    before = (tmp_path / "batch.csv").read_bytes()
    with pytest.raises(UserError, match=r"batch\.csv: holds 1 rows, but the checkpoint was made after 3"):
        CsvSink(tmp_path, keep_batches=3)
    assert (tmp_path / "batch.csv").read_bytes() == before


def test_a_missing_file_that_should_hold_rows_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"epoch\.csv: holds 0 rows, but the checkpoint was made after 2"):
        CsvSink(tmp_path, keep_epochs=2)


def test_a_missing_file_has_no_rows(tmp_path):
    assert read_csv(tmp_path / "batch.csv") == []


def test_a_file_from_before_there_were_probes_is_gone_on_with(tmp_path):
    old = metrics.EPOCH_NAMES + metrics.EVAL_NAMES + metrics.OBJECTIVE_NAMES
    (tmp_path / "epoch.csv").write_text(",".join(old) + "\n" + ",".join(["0.5"] * len(old)) + "\n")
    sink = CsvSink(tmp_path, keep_epochs=1)
    sink.log(Event(Level.EPOCH, {"epoch": 1, "probe/linear_accuracy": 0.75}))
    sink.close(0)
    assert read_csv(tmp_path / "epoch.csv") == [dict.fromkeys(old, 0.5), {"epoch": 1, "probe/linear_accuracy": 0.75}]


# --- the others ----------------------------------------------------------------------------------------------------


def test_history_keeps_rows_by_level():
    history = History()
    history.log(Event(Level.BATCH, batch_row(0)))
    history.log(Event(Level.BATCH, batch_row(1)))
    history.log(Event(Level.EPOCH, {"epoch": 0}))
    history.log(Event(Level.SUMMARY, {"summary/best_epoch": 0}))
    history.close(0)
    assert history == History([batch_row(0), batch_row(1)], [{"epoch": 0}], {"summary/best_epoch": 0})


def test_an_epochs_row_is_given_out_after_those_of_its_updates_and_before_the_next_ones():
    history = History(
        [batch_row(place) | {"batch/epoch": place // 2} for place in range(5)], [{"epoch": 0}, {"epoch": 1}]
    )
    assert [event.values.get("epoch", event.values.get("batch/iteration")) for event in history.events()] == [
        *(0, 1, 0),
        *(2, 3, 1),
        4,  # of an epoch that did not end
    ]


def test_a_picture_is_a_file_that_a_later_one_of_its_name_replaces(tmp_path):
    sink = CsvSink(tmp_path)
    for shade in (0, 200):
        sink.picture("reconstructions", np.full((4, 6, 3), shade, np.uint8))
    sink.close(0)
    [path] = (tmp_path / "pictures").iterdir()
    assert path.name == "reconstructions.png"
    with Image.open(path) as image:
        assert (image.mode, image.size, image.getpixel((5, 3))) == ("RGB", (6, 4), (200, 200, 200))


def test_history_does_not_keep_pictures():
    history = History()
    history.picture("reconstructions", np.zeros((2, 2, 3), np.uint8))
    assert history == History()


def test_text_and_json_replace_the_old_file_and_leave_nothing_else(tmp_path):
    path = tmp_path / "new" / "content.json"
    write_text(path, "old")
    write_json(path, {"姓名": 1.5})
    assert json.loads(path.read_text(encoding="utf-8")) == {"姓名": 1.5}
    assert "姓名" in path.read_text(encoding="utf-8")
    assert list(path.parent.iterdir()) == [path]
