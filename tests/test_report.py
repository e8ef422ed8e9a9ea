"""sweep/report/: the page about results folders that the sweep's own writers made here."""

from __future__ import annotations

import html
import json
import math
import re
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reporting import (
    COMPLETE,
    DIVERGED,
    FAILED,
    HOSTILE,
    PRESETS,
    PRUNED,
    RUNNING,
    UPDATES,
    Ending,
    Page,
    report,
    sweep_folder,
    told,
)
from specs import ALPHA, make

from sweep.report.__main__ import main
from sweep.report.data import read_results
from sweep.report.figures import MAX_POINTS, number, thin
from sweep.report.page import MAX_ROWS, write_report


def test_answer_names_the_best_trial_its_parameters_its_parts_and_the_gain_without_calling_it_proof(tmp_path):
    endings = [Ending(COMPLETE, (2.0, 1.0)), Ending(COMPLETE, (0.8, 0.75)), Ending(PRUNED, (0.5,), "stopped early")]
    words = told(sweep_folder(tmp_path / "r", *endings))
    assert "Trial 0001 is the best of the 2 trials that trained to the end, with alpha = 0.75." in words
    assert "Its objective/value is 0.75 (loss 0.375, imbalance 0.125, instability 0.0625)." in words
    assert "better by 0.25 (25.0%) than the equal-weights preset (trial 0000: 1)." in words
    assert "One seed each is no proof" in words
    assert "static_skill 0.25 it is better than predicting the mean frame" in words
    assert "pred_skill -3 it is not better than copying frame 3" in words
    assert "2 complete" in words
    assert "1 pruned" in words


@pytest.mark.parametrize(
    ("endings", "presets", "expected"),
    [
        (
            [(COMPLETE, 0.5), (COMPLETE, 0.7)],
            PRESETS,
            "It is the equal-weights preset itself: the search found nothing",
        ),
        ([(PRUNED, 0.5), (COMPLETE, 0.7)], PRESETS, "The equal-weights preset (trial 0000) is pruned, so no gain"),
        ([(COMPLETE, 0.5), (COMPLETE, 0.7)], (), "no equal-weights preset among the trials, so no gain"),
        ([(COMPLETE, 0.5)], (), "Trial 0000 is the only trial that trained to the end"),
        ([(COMPLETE, 0.0), (COMPLETE, -1.0)], PRESETS, "better by 1 than the equal-weights preset (trial 0000: 0)"),
    ],
)
def test_answer_states_a_gain_only_where_there_is_one_to_state(tmp_path, endings, presets, expected):
    made = [Ending(outcome, (value,)) for outcome, value in endings]
    assert expected in told(sweep_folder(tmp_path / "r", *made, presets=presets))


def test_highest_value_wins_where_the_metric_is_maximised(tmp_path):
    spec = make(metric={"name": "eval/static_skill", "goal": "maximize"})
    endings = [Ending(COMPLETE, (0.1,)), Ending(COMPLETE, (0.3,)), Ending(COMPLETE, (0.2,))]
    page = report(sweep_folder(tmp_path / "r", *endings, spec=spec))
    assert "Trial 0001 is the best of the 3 trials" in page.words
    assert "better by 0.2 (200.0%)" in page.words
    assert page.plots["eval/static_skill / trial"][0]["best complete so far"]["y"] == [0.1, 0.3, 0.3, 0.3]


def test_sweep_without_a_finished_trial_tells_the_best_value_until_now_and_that_it_does_not_compare(tmp_path):
    endings = [Ending(RUNNING, (0.9, 0.8)), Ending(PRUNED, (0.7,), "stopped early"), Ending(RUNNING)]
    page = report(sweep_folder(tmp_path / "r", *endings))
    assert "No trial has trained to its end, so there is no best one." in page.words
    assert "until now is objective/value 0.7, of trial 0001 after 1 epoch (pruned)" in page.words
    assert "1 of 16 planned trials have ended." in page.words
    assert "--resume" in page.words
    assert "2 not ended" in page.words


def test_sweep_whose_trials_all_failed_says_why(tmp_path):
    page = report(sweep_folder(tmp_path / "r", *[Ending(FAILED, reason="CUDA out of memory")] * 2))
    assert "Reasons: CUDA out of memory (2 x)." in page.words
    assert page.plots["objective/value / trial"][0]["without a value"]["x"] == [0, 1]


def test_sweep_without_trials_says_so(tmp_path):
    page = report(sweep_folder(tmp_path / "r"))
    assert "No trial has left anything yet." in page.words
    assert not page.plots


def test_sweep_that_has_only_a_spec_is_reported(tmp_path):
    folder = sweep_folder(tmp_path / "r", Ending(COMPLETE, (0.5,)))
    for path in folder.iterdir():
        if path.name != "spec.yaml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    words = told(folder)
    assert "No trial has left anything yet." in words
    assert "no provenance.json" in words


def test_trial_that_is_not_in_the_table_yet_is_shown_as_not_ended(tmp_path):
    folder = sweep_folder(tmp_path / "r", Ending(COMPLETE, (0.5,)), Ending(RUNNING, (0.9,)))
    rows = (folder / "trials.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "trials.csv").write_text("".join(rows[:2]), encoding="utf-8")
    trial = read_results(folder).trials[1]
    assert (trial.name, trial.record.outcome, trial.record.value) == ("0001", RUNNING, 0.9)
    assert "1 not ended" in told(folder)


def test_diverged_trial_has_no_value_however_good_it_was_before(tmp_path):
    endings = [Ending(COMPLETE, (0.5,)), Ending(DIVERGED, (0.1, math.nan), "loss is NaN")]
    folder = sweep_folder(tmp_path / "r", *endings)
    assert read_results(folder).trials[1].record.value is None
    page = report(folder)
    assert "loss is NaN" in page.words
    assert page.plots["objective/value / trial"][0]["without a value"]["x"] == [1]


def test_missing_trial_folder_is_named_and_its_row_still_shown(tmp_path):
    folder = sweep_folder(tmp_path / "r", Ending(COMPLETE, (0.5,)), Ending(COMPLETE, (0.4,)))
    shutil.rmtree(folder / "trials" / "0001")
    page = report(folder)
    assert "trial 0001: epoch.csv is missing or holds no epoch" in page.words
    assert "Trial 0001 is the best" in page.words
    assert page.plots["batch/loss_total / update (batch/iteration)"][0]["0001 best"]["x"] == []


def test_half_written_csv_gives_its_whole_rows(tmp_path):
    folder = sweep_folder(tmp_path / "r", Ending(RUNNING, (0.9, 0.8)))
    for name in ("epoch.csv", "batch.csv"):
        path = folder / "trials" / "0000" / name
        path.write_text(path.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    page = report(folder)
    trial = read_results(folder).trials[0]
    assert (trial.record.epochs, trial.record.value) == (1, 0.9)
    assert (
        len(page.plots["batch/loss_total / update (batch/iteration)"][0]["0000 equal-weights"]["x"]) == 2 * UPDATES - 1
    )


@pytest.mark.parametrize("name", ["trials/0000/epoch.csv", "trials/0000/batch.csv", "provenance.json"])
def test_unreadable_file_is_named_and_the_rest_reported(tmp_path, name):
    folder = sweep_folder(tmp_path / "r", Ending(COMPLETE, (0.5,)))
    (folder / name).write_bytes(b"batch/epoch,epoch\nx\xff,y\n")
    page = report(folder)
    assert "Not readable or missing" in page.words
    assert str(folder / name) in page.words
    assert "Trial 0000 is the only trial" in page.words


def test_history_marks_each_state_and_its_running_best_is_of_complete_trials_only(tmp_path):
    values = [(COMPLETE, 0.9), (PRUNED, 0.2), (COMPLETE, 0.7), (COMPLETE, 0.8), (RUNNING, 0.1)]
    page = report(sweep_folder(tmp_path / "r", *[Ending(outcome, (value,)) for outcome, value in values]))
    traces, _ = page.plots["objective/value / trial"]
    assert (traces["complete"]["x"], traces["complete"]["y"]) == ([0, 2, 3], [0.9, 0.7, 0.8])
    assert traces["pruned"]["marker"]["symbol"] == "circle-open"
    assert traces["not ended"]["x"] == [4]
    steps = traces["best complete so far"]
    assert (steps["x"], steps["y"]) == ([0, 2, 3, 4], [0.9, 0.7, 0.7, 0.7])


def test_slices_have_a_log_axis_for_log_ranges_and_a_place_per_choice(tmp_path):
    parameters = ALPHA | {
        "base_lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2},
        "batch_size": {"values": [32, 8, 16]},
    }
    endings = [Ending(COMPLETE, (0.5,)), Ending(COMPLETE, (0.6,))]
    plots = report(sweep_folder(tmp_path / "r", *endings, spec=make(parameters=parameters))).plots
    assert plots["objective/value / alpha"][1]["xaxis"]["type"] == "linear"
    assert plots["objective/value / base_lr"][1]["xaxis"]["type"] == "log"
    traces, layout = plots["objective/value / batch_size"]
    assert layout["xaxis"]["categoryarray"] == ["32", "8", "16"]
    assert set(traces["complete"]["x"]) | set(traces["best"]["x"]) <= {"32", "8", "16"}


def test_curves_of_the_core_triangle_are_of_the_best_trial_and_the_presets_and_thinned_out(tmp_path):
    endings = [Ending(COMPLETE, (0.9,)), Ending(PRUNED, (0.8,)), Ending(COMPLETE, (0.5,)), Ending(COMPLETE, (0.6,))]
    plots = report(sweep_folder(tmp_path / "r", *endings, updates=1200)).plots
    for metric in ("batch/loss_total", "batch/loss_ratio", "batch/static_contribution"):
        traces, layout = plots[f"{metric} / update (batch/iteration)"]
        named = {name: trace for name, trace in traces.items() if name != "other trials"}
        assert set(named) == {"0002 best", "0000 equal-weights", "0001 balanced-weights"}
        assert all(len(t["x"]) == MAX_POINTS and (t["x"][0], t["x"][-1]) == (0, 1199) for t in named.values())
    assert layout["shapes"][0]["y0"] == 0.5  # the target


def test_reference_loss_has_all_trials_with_gaps_between_and_the_best_on_top(tmp_path):
    folder = sweep_folder(tmp_path / "r", Ending(COMPLETE, (1.0, 0.8)), Ending(PRUNED, (2.0,)))
    traces, _ = report(folder).plots["eval/reference_loss / epoch"]
    assert traces["all trials"]["y"] == [0.5, 0.4, None, 1.0, None]
    assert traces["0000 best"]["y"] == [0.5, 0.4]


def test_table_has_complete_trials_first_and_numbers_right_aligned_with_4_digits(tmp_path):
    endings = [Ending(PRUNED, (0.1,)), Ending(COMPLETE, (0.7,)), Ending(COMPLETE, (0.123456,)), Ending(FAILED)]
    page = report(sweep_folder(tmp_path / "r", *endings))
    body = page.html[page.html.index("<tbody>") : page.html.index("</tbody>")]
    assert re.findall(r"<tr[^>]*><td>(\d+)", body) == ["0002", "0001", "0000", "0003"]
    assert '<td class="n">0.1235' in body
    assert '<td class="n">0.7000' in body


def test_table_is_cut_to_the_best_rows_and_says_so(tmp_path):
    folder = sweep_folder(tmp_path / "r", spec=make(run_cap=300))
    rows = "".join(f"{n:04d},complete,8,0.5,{300 - n}.0\n" for n in range(250))
    (folder / "trials.csv").write_text("trial,state,epochs,alpha,objective/value\n" + rows, encoding="utf-8")
    page = report(folder)
    body = page.html[page.html.index("<tbody>") : page.html.index("</tbody>")]
    shown = re.findall(r"<tr[^>]*><td>(\d+)", body)
    assert (len(shown), shown[0], shown[-1]) == (MAX_ROWS, "0249", "0050")
    assert "the best 200 of 250 are shown" in page.words


def test_hostile_texts_are_shown_and_never_run(tmp_path):
    spec = make(description=HOSTILE)
    folder = sweep_folder(tmp_path / "r", Ending(COMPLETE, (0.5,)), Ending(FAILED, reason=HOSTILE), spec=spec)
    session = {"command": [HOSTILE], "host": HOSTILE, "packages": {HOSTILE: HOSTILE}}
    (folder / "provenance.json").write_text(json.dumps({"sessions": [session]}), encoding="utf-8")
    page = report(folder)
    assert page.words.count("window.hacked") >= 4
    assert not any("window.hacked = 1</script>" in script for script in page.scripts)
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert all("window.hacked" not in script or "newPlot" in script for script in page.scripts)
    hover = page.plots["objective/value / trial"][0]["without a value"]["hovertext"][0]
    assert "&lt;/script&gt;" in hover  # plotly takes simple HTML there


def test_page_is_one_file_that_loads_nothing(tmp_path):
    page = Page(write_report(sweep_folder(tmp_path / "r", Ending(COMPLETE, (0.5,)))))
    places = [attrs.get("src") or attrs.get("href") or "" for _, attrs in page.tags if {"src", "href"} & attrs.keys()]
    assert [place for place in places if not place.startswith(("#", "data:"))] == []
    assert "link" not in {tag for tag, _ in page.tags}
    assert any("default-src 'none'" in (attrs.get("content") or "") for _, attrs in page.tags)
    assert page.html.count("* plotly.js v") == 1  # plotly.js is there, once
    assert len(page.html) < 6_000_000


def test_report_leaves_the_rest_of_the_folder_as_it_was(tmp_path):
    folder = sweep_folder(tmp_path / "r", Ending(COMPLETE, (0.5,)), Ending(RUNNING, (0.6,)))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    made = write_report(folder)
    assert made == folder / "report.html"
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path != made} == before


def test_command_writes_the_page_and_prints_where(tmp_path, capsys):
    folder = sweep_folder(tmp_path / "r", Ending(COMPLETE, (0.5,)))
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")


@pytest.mark.parametrize(
    ("text", "longer"), [("alpha: 0.5\nepochs: 8\n", " --set epochs=80"), ("alpha: 0.5\nepo", ""), (None, None)]
)
def test_page_has_the_command_that_trains_the_best_config_longer(tmp_path, text, longer):
    folder = sweep_folder(tmp_path / "my r", Ending(COMPLETE, (0.5,)))
    (folder / "best.yaml").unlink(missing_ok=True)
    if text is not None:
        (folder / "best.yaml").write_text(text, encoding="utf-8")
    page = html.unescape(write_report(folder).read_text(encoding="utf-8"))
    found = re.search(r"train the best config longer: <code>(.*)</code>", page)
    assert (found and found[1]) == (None if text is None else f"python -m model.train '{folder}/best.yaml'{longer}")


@pytest.mark.parametrize(("name", "expected"), [("", "holds no sweep"), ("absent", "is no folder")])
def test_command_refuses_a_folder_without_a_sweep_and_says_what_to_give(tmp_path, capsys, name, expected):
    assert main([str(tmp_path / name)]) == 2
    message = capsys.readouterr().err
    assert expected in message
    assert "give the results folder of a sweep" in message
    assert not list(tmp_path.iterdir())


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "example: python -m sweep.report results/alpha_beta" in capsys.readouterr().out


@given(st.integers(0, 2000), st.integers(2, 600))
def test_thinned_rows_keep_order_both_ends_and_the_limit(count, limit):
    rows = [{"batch/iteration": float(n)} for n in range(count)]
    kept = [row["batch/iteration"] for row in thin(rows, limit)]
    assert len(kept) == min(count, limit)
    assert kept == sorted(set(kept))
    assert not count or (kept[0], kept[-1]) == (0, count - 1)


@given(st.floats(-1e300, 1e300), st.booleans())
def test_number_is_the_value_to_4_digits(value, padded):
    assert float(number(value, padded)) == pytest.approx(value, rel=5.1e-4)
