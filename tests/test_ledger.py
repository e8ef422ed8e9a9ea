"""What the books of a trial say, and what is found where they disagree: pure, without a sweep."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from model.metrics import BATCH_NAMES, EPOCH_COLUMNS
from sweep.doctor.journal import StudyBook, read_journal, write_journal
from sweep.doctor.ledger import FolderBook, Kind, RunBook, TrialBooks, compare, notes, summary_of
from sweep.doctor.rebuild import Evidence, points_used, rebuilt
from sweep.doctor.rows import Rows, ranges, read_rows
from sweep.outcome import Outcome
from sweep.space import Space
from sweep.study import Record, SweepStudy
from tests.specs import ALPHA

SPACE = Space(ALPHA)


def batch_line(place: int) -> bytes:
    epoch = place // 2
    row = dict.fromkeys(BATCH_NAMES, "0.5") | {"batch/iteration": str(place), "batch/epoch": str(epoch)}
    row["batch/loss_total"] = str(1.0 - epoch / 10)
    return ",".join(row.values()).encode() + b"\n"


def epoch_line(place: int) -> bytes:
    row = dict.fromkeys(EPOCH_COLUMNS, "0.5") | {"epoch": str(place), "epoch/train_loss": str(1.0 - place / 10)}
    return ",".join(row.values()).encode() + b"\n"


def batch_file(*places: int) -> bytes:
    return ",".join(BATCH_NAMES).encode() + b"\n" + b"".join(map(batch_line, places))


def epoch_file(*places: int) -> bytes:
    return ",".join(EPOCH_COLUMNS).encode() + b"\n" + b"".join(map(epoch_line, places))


BATCH = read_rows("batch.csv", batch_file(*range(6)))
EPOCH = read_rows("epoch.csv", epoch_file(0, 1, 2))
WHOLE_RUN = RunBook(online=False, unsent=False, held=(5, 2), ends=(0,), summed_up=(0,))


def books(outcome: Outcome = Outcome.COMPLETE, evidence: Evidence | None = None, **changes: Any) -> TrialBooks:
    """A healthy trial of 3 epochs of 2 updates; `changes` are of its folder, or of the books."""
    of_folder = {name: changes.pop(name) for name in FolderBook.__dataclass_fields__ if name in changes}
    states = {"summary": "sound", "config": "sound", "last": "sound", "previous": "missing"}
    folder = FolderBook(**({"there": True, "batch": BATCH, "epoch": EPOCH, **states} | of_folder))
    record = Record(0, "0000", {"alpha": 0.5}, None, outcome, 0.5, 3, None, (0.5,))
    told = Evidence(outcome=outcome, steps={0: (0.5,), 1: (0.5,), 2: (0.5,)}) if evidence is None else evidence
    return TrialBooks(record, folder, told, ("m",), **({"run": WHOLE_RUN, "wants_run": True} | changes))


def kinds(trial: TrialBooks) -> list[Kind]:
    return [finding.kind for finding in compare(trial)]


# --- rows


@pytest.mark.parametrize("thorough", [True, False])
def test_a_sound_file_comes_back_as_it_was(thorough):
    data = batch_file(*range(4))
    rows = read_rows("batch.csv", data, thorough)
    assert (rows.faults, rows.whole, rows.missing()) == ((), 4, [])
    assert rows.text().encode() == data


@pytest.mark.parametrize("thorough", [True, False])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:-9], "half written"),
        (lambda data: data + b"\0" * 512, "zeros follow"),
        (lambda data: data[:-9] + b"\0" * 9, "half written"),
        (lambda data: b"", "empty"),
        (lambda data: b"\0" * 99, "zeros only"),
        (lambda data: b"\xff\xfe" + data, "first line"),
    ],
)
def test_what_a_power_loss_leaves_is_said_and_sound_rows_are_kept(damage, said, thorough):
    rows = read_rows("batch.csv", damage(batch_file(*range(4))), thorough)
    assert said in " ".join(rows.faults)
    again = read_rows("batch.csv", rows.text().encode())
    assert again.faults == ()
    assert dict(again.lines) == dict(rows.lines)


def test_files_of_two_trials_are_told_by_their_losses():
    (found,) = compare(books(batch=read_rows("batch.csv", batch_file(*range(6)).replace(b"0.8", b"0.7"))))
    assert "the mean loss_total of epoch 2 is 0.7 in batch.csv and 0.8 in epoch.csv" in str(found)
    assert "comes from another copy" in str(found)


def test_every_cut_of_a_file_leaves_the_whole_rows_before_it():
    data = epoch_file(0, 1, 2)
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    for cut in range(1, len(data)):
        rows = read_rows("epoch.csv", data[:cut])
        assert len(rows.lines) == max(sum(end <= cut for end in ends) - 1, 0), cut


def test_rows_in_disorder_twice_or_damaged_are_said_with_their_lines():
    rows = read_rows("batch.csv", batch_file(1, 0, 0, 2) + b"1,2,3\n" + batch_line(4))
    said = "; ".join(rows.faults)
    for words in ("wrong order", "1 row is there twice", "1 row is damaged (line 6)"):
        assert words in said
    assert rows.missing(6) == [3, 5]
    assert read_rows("batch.csv", rows.text(rows.whole).encode()).missing() == []


def test_rows_of_another_book_fill_a_gap_to_the_last_digit():
    whole = batch_file(0, 1, 2)
    rows = read_rows("batch.csv", batch_file(0, 2))
    found = {
        1: dict.fromkeys(BATCH_NAMES, 0.5) | {"batch/iteration": 1, "batch/epoch": 0, "batch/loss_total": 1.0},
        2: {"batch/iteration": 9},
    }
    assert rows.filled(found).lines[1].split(",")[:2] == whole.decode().splitlines()[2].split(",")[:2]
    assert rows.filled(found).lines[2] == rows.lines[2]


@pytest.mark.parametrize("places", [(0, 1, 99_999_999_999_999, 3), (0, 1, 2, 99_999_999_999_999), (0, 10**40)])
def test_a_damaged_digit_makes_no_gap_of_a_billion_rows(places):
    rows = read_rows("batch.csv", batch_file(*places))
    assert "1 row is damaged" in rows.faults[0]
    assert max(rows.lines) == max(place for place in places if place < 10)


def test_an_empty_cell_that_tells_the_epoch_is_no_traceback():
    head, *lines = batch_file(*range(6)).splitlines(keepends=True)
    column = BATCH_NAMES.index("batch/epoch")
    cells = [line.split(b",") for line in lines]
    emptied = [b",".join([*row[:column], b"", *row[column + 1 :]]) for row in cells]
    for left in (b"".join([head, *emptied]), b"".join([head, b"0.5\n" * 6])):
        list(compare(books(batch=read_rows("batch.csv", left, thorough=False))))


def test_places_are_named_as_ranges():
    assert ranges([3, 5, 6, 7, 9]) == "3, 5 to 7, 9"


# --- the books of a trial


def test_a_healthy_trial_has_no_finding():
    assert kinds(books()) == []
    assert list(notes(books())) == []


@pytest.mark.parametrize("outcome", [Outcome.PRUNED, Outcome.FAILED, Outcome.RUNNING])
def test_a_trial_without_an_end_of_its_own_is_healthy_too(outcome):
    trial = books(outcome, evidence=Evidence(outcome=outcome), run=WHOLE_RUN)
    assert kinds(trial) == []


@pytest.mark.parametrize(("held", "lacks"), [(4, None), (2, "its last row"), (-1, "its last 3 rows")])
def test_updates_that_the_user_keeps_from_wandb_are_not_missed_there(held, lacks):
    findings = list(compare(books(run=replace(WHOLE_RUN, held=(held, 2)), log_every=2)))
    assert [finding.what for finding in findings] == ([f"its W&B run lacks {lacks}"] if lacks else [])


def test_a_trial_under_way_is_a_note_and_no_finding():
    trial = books(Outcome.RUNNING, summary="missing", evidence=Evidence(), run=None, knows=(2, 1))
    assert kinds(trial) == []
    assert "--resume goes on with it (3 epochs done)" in next(notes(trial))


@pytest.mark.parametrize(
    ("changes", "kind", "mends"),
    [
        ({"batch": read_rows("batch.csv", batch_file(0, 1, 2)[:-3])}, Kind.ROWS, True),
        ({"epoch": read_rows("epoch.csv", epoch_file(0, 1))}, Kind.ROWS, False),
        ({"summary": "missing"}, Kind.SUMMARY, True),
        ({"summary": "damaged"}, Kind.SUMMARY, True),
        ({"config": "damaged"}, Kind.CONFIG, True),
        ({"last": "damaged"}, Kind.CHECKPOINT, True),
        ({"last": "damaged", "previous": "sound"}, Kind.CHECKPOINT, True),
        ({"run": None}, Kind.WANDB, True),
        ({"run": RunBook(False, False, (4, 2), (0,), (0,))}, Kind.WANDB, True),
        ({"run": RunBook(False, False, (5, 2), (1,), (1,))}, Kind.WANDB, True),
        ({"evidence": Evidence(outcome=Outcome.COMPLETE, steps={2: (0.7,)})}, Kind.SETTLE, False),
    ],
)
def test_each_disagreement_is_found_once_and_says_whether_it_can_be_mended(changes, kind, mends):
    (finding,) = compare(books(**changes))
    assert finding.kind is kind
    assert (finding.remedy is not None) == mends
    assert str(finding).startswith("trial 0000: ")


def test_rows_that_another_book_has_can_be_mended():
    lacks = read_rows("epoch.csv", epoch_file(0, 1))
    (finding,) = compare(books(epoch=lacks, recovered={"epoch.csv": {2: {}}}))
    assert "W&B" in (finding.remedy or "")


def test_a_gap_of_a_trial_under_way_is_cut_and_missing_rows_at_its_end_are_none():
    running = {"evidence": Evidence(), "summary": "missing", "run": None}
    assert kinds(books(Outcome.RUNNING, batch=read_rows("batch.csv", batch_file(0, 1)), **running)) == []
    (finding,) = compare(books(Outcome.RUNNING, batch=read_rows("batch.csv", batch_file(0, 1, 3)), **running))
    assert "up to the gap" in (finding.remedy or "")


def test_an_online_run_is_left_to_the_sync():
    trial = books(run=RunBook(online=True, unsent=True, held=(1, 0), ends=(), summed_up=()))
    assert kinds(trial) == []
    assert any("sweep.sync" in note for note in notes(trial))


def test_a_trial_that_ended_is_told_to_the_study_that_has_it_as_running():
    ended = Evidence(outcome=Outcome.COMPLETE, steps={2: (0.25,)})
    (finding,) = compare(books(Outcome.RUNNING, evidence=ended))
    assert finding.kind is Kind.SETTLE
    assert "complete (0.25)" in finding.what


def test_epochs_behind_a_checkpoint_that_the_study_missed_are_told():
    evidence = Evidence(steps={0: (0.5,), 1: (0.5,), 2: (0.5,)})
    trial = books(Outcome.RUNNING, evidence=evidence, summary="missing", run=None, knows=(4, 2), told=[0])
    (finding,) = compare(trial)
    assert "not told of epoch 1," in finding.what  # epoch 2 is trained again


def test_the_summary_is_the_trainers():
    rows = read_rows("epoch.csv", epoch_file(0, 1, 2))
    expected = {"summary/best_epoch": 2, "summary/best_loss": 0.8, "summary/total_time_seconds": 1.5}
    assert summary_of(rows, 1.5) == expected
    assert summary_of(Rows("epoch.csv", False, EPOCH_COLUMNS, {}), None) == {}


# --- the study's file


def a_study(folder: Path) -> Path:
    """A journal of 2 studies: a complete, a pruned, a diverged, a failed and a running trial; and one of the second."""
    study = SweepStudy(folder, "s", SPACE, sampler="random", first=[("equal-weights", {"alpha": 0.5})])
    ends = (Outcome.COMPLETE, Outcome.PRUNED, Outcome.DIVERGED, Outcome.FAILED)
    for number in range(5):
        study.next()
        for epoch in range(2):
            study.report(number, epoch, 1.0 + number - epoch / 3)
        if number < len(ends):
            study.finish(number, ends[number], f"reason {number}" if number else None, seconds=0.1 + number)
    second = SweepStudy(folder, "s.confirm", SPACE, sampler="random", prefix="c")
    second.next()
    second.report(0, 0, 2.0)
    second.finish(0, Outcome.COMPLETE)
    return folder / "study.journal"


def reopened(folder: Path) -> tuple[list[Record], dict[int, dict[int, float]], list[Record]]:
    first = SweepStudy(folder, "s", SPACE, sampler="random")
    return first.records(), first.intermediate_values(), SweepStudy(folder, "s.confirm", SPACE, prefix="c").records()


def evidence_of(folder: Path) -> dict[int, Evidence]:
    """What the other books would tell of the first study's trials."""
    records, steps, _ = reopened(folder)
    return {
        r.number: Evidence(
            r.values, r.preset, r.outcome, r.reason, r.seconds, {e: (v,) for e, v in steps[r.number].items()}
        )
        for r in records
    }


def test_a_sound_journal_is_read_as_optuna_reads_it(tmp_path: Path):
    journal = read_journal(a_study(tmp_path), ("s", "s.confirm"))
    assert (journal.fault, len(journal.studies["s"].trials), len(journal.studies["s.confirm"].trials)) == (None, 5, 1)


def test_a_journal_that_was_written_anew_tells_the_same_to_the_last_bit(tmp_path: Path):
    path = a_study(tmp_path)
    before = reopened(tmp_path)
    write_journal(path, read_journal(path, ("s", "s.confirm")).studies)
    assert reopened(tmp_path) == before
    assert [file.name for file in tmp_path.iterdir()] == ["study.journal"]


def test_a_lost_study_is_rebuilt_from_what_the_other_books_tell(tmp_path: Path):
    path = a_study(tmp_path)
    records, steps, _ = reopened(tmp_path)
    trials = rebuilt([], evidence_of(tmp_path), SPACE, [("equal-weights", {"alpha": 0.5})])
    path.unlink()
    write_journal(path, {"s": StudyBook(("minimize",), trials=trials)})
    assert reopened(tmp_path)[:2] == (records, steps)
    assert trials[0].user_attrs["preset"] == "equal-weights"
    assert trials[2].constraints  # diverged: the sampler keeps away


def test_every_single_damaged_line_of_a_journal_is_mended_without_loss(tmp_path: Path):
    path = a_study(tmp_path)
    before, evidence = reopened(tmp_path), evidence_of(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    for place in range(len(lines) - 1):
        damaged = b"\0" * (len(lines[place]) - 1) + b"\n"
        path.write_bytes(b"".join([*lines[:place], damaged, *lines[place + 1 :]]))
        journal = read_journal(path, ("s", "s.confirm"))
        assert (journal.fault, journal.cut) == (f"damaged in line {place + 1}", False)
        book = journal.studies["s"]
        trials = rebuilt(book.trials, evidence, SPACE, [("equal-weights", {"alpha": 0.5})])
        write_journal(path, {"s": StudyBook(("minimize",), trials=trials)})
        event = json.loads(lines[place])
        again = SweepStudy(tmp_path, "s", SPACE, sampler="random")
        assert again.records() == before[0], event
        assert again.intermediate_values() == before[1], event


def test_a_cut_journal_is_sound_up_to_the_last_whole_line(tmp_path: Path):
    path = a_study(tmp_path)
    data = path.read_bytes()
    last = data.rindex(b"\n", 0, -1) + 1
    for left in (data[:-5], data[:last] + b"\0" * 40, data + b"\0" * 40):
        path.write_bytes(left)
        journal = read_journal(path, ("s", "s.confirm"))
        assert journal.cut
        assert journal.sound_bytes == (len(data) if left.startswith(data) else last)


@pytest.mark.parametrize(
    "line", [b"[]", b"{}", b'{"op_code":99}', b'{"op_code":5,"trial_id":"x"}', b"\xff", b"[" * 9999]
)
def test_a_line_that_is_no_event_is_damage_and_not_a_traceback(tmp_path: Path, line: bytes):
    path = a_study(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:5], line + b"\n", *lines[5:]]))
    journal = read_journal(path, ("s", "s.confirm"))
    assert journal.fault == "damaged in line 6"
    assert len(journal.studies["s"].trials) == 5


def test_a_damaged_number_of_a_trial_makes_no_thousand_trials(tmp_path: Path):
    path = a_study(tmp_path)
    with path.open("a") as file:
        file.write('{"op_code": 8, "worker_id": "x", "trial_id": 99999999, "user_attr": {"a": 1}}\n')
    journal = read_journal(path, ("s", "s.confirm"))
    assert journal.cut
    assert [len(study.trials) for study in journal.studies.values()] == [5, 1]


def test_a_trial_of_which_only_the_number_is_known_is_drawn_again_as_it_was(tmp_path: Path):
    path = a_study(tmp_path)
    values = reopened(tmp_path)[0][4].values
    evidence = evidence_of(tmp_path)
    del evidence[4], evidence[1]
    trials = rebuilt([], {**evidence, 4: Evidence()}, SPACE)
    path.unlink()
    write_journal(path, {"s": StudyBook(("minimize",), trials=trials)})
    study = SweepStudy(tmp_path, "s", SPACE, sampler="random")
    assert {(s := study.next()).number: s.values for _ in range(2)}[4] == values
    assert study.next().number == 5


def test_a_rebuilt_quasi_random_search_goes_on_behind_the_points_it_used(tmp_path: Path):
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "j")))
    study = SweepStudy(tmp_path, "s", SPACE, sampler="qmc", seed=3)
    for _ in range(3):
        study.next()
    counted = study._study._storage.get_study_system_attrs(study._study._study_id)
    assert points_used(SPACE, 3, 8, 3) == counted
    assert optuna.create_study(storage=storage).trials == []
    assert all(trial.state == TrialState.RUNNING for trial in study._study.trials)
