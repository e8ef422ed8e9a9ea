"""python -m sweep.diagnose: on runs trained here, on results folders of several runs, and on damaged ones."""

import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny import tiny_content

from model.config import TrainConfig
from model.configfile import load_yaml
from model.errors import UserError
from model.train import main as train
from sweep.diagnose import main
from sweep.diagnosis import Finding
from sweep.diagnosis_apply import apply_changes, merged_changes
from sweep.diagnosis_input import load_run
from sweep.limits import Rule, Severity

ROOT = Path(__file__).resolve().parents[1]
HEALTHY = {"epochs": 6, "base_lr": 0.01, "alpha": 0.6, "seed": 2}
LOPSIDED = {"alpha": 0.95, "epochs": 3}
STILL = {"base_lr": 1e-12, "alpha": 0.55, "min_lr": 1e-14}
EXPLODING = {"base_lr": 1e30, "clip_grad": None}


def trained(folder, **changes):
    """Train a tiny run into a folder by the plain command."""
    folder.mkdir(parents=True)
    config = folder / "given.yaml"
    config.write_text(yaml.safe_dump(tiny_content(**changes)))
    train([str(config), "--out", str(folder)])
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A results folder: trials 0000 healthy, 0001 lopsided, 0002 exploded, 0003 not trained yet."""
    folder = tmp_path_factory.mktemp("results")
    for number, changes in enumerate((HEALTHY, LOPSIDED, EXPLODING)):
        trained(folder / "trials" / f"{number:04}", **changes)
    (folder / "trials" / "0003").mkdir()
    return folder


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs the command in a wide terminal; returns (exit code, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "300")

    def call(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def line_with(text, printed):
    """The cells of the printed table's row that holds a text."""
    line = next(line for line in printed.splitlines() if text in line)
    return [cell.strip() for cell in re.split(r"│|\s{2,}", line) if cell.strip()]


def test_a_healthy_run_exits_with_0_and_passes_the_quick_test(results, run):
    code, out, _ = run(results / "trials" / "0000")
    assert code == 0
    assert "quick test: passed; next: run the full training" in out


def test_a_lopsided_run_exits_with_1_and_shows_value_limit_epoch_and_remedy(results, run):
    code, out, _ = run(results / "trials" / "0001")
    share = load_run(results / "trials" / "0001").epochs[-1]["epoch/actual_static_contribution"]
    assert code == 1
    severity, rule, value, limit, epoch, remedy = line_with("static share", out)
    assert (severity, rule, value, limit, epoch) == ("critical", "static share", f"{share:.4g}", "0.7", "2")
    assert remedy.startswith("lower alpha or raise beta")
    assert "quick test: not passed" in out


def test_an_exploded_run_is_diagnosed_from_its_batches_alone(results, run):
    code, out, _ = run(results / "trials" / "0002")
    assert code == 1
    assert line_with("NaN / Inf", out)[:3] == ["critical", "NaN / Inf", "nan"]


def test_a_results_folder_gets_a_line_per_trial_and_the_number_of_times_each_rule_fires(results, run):
    code, out, _ = run(results)
    assert code == 1
    trials = {number: line_with(number, out) for number in ("0000", "0001", "0002", "0003")}
    assert [cells[1] for cells in trials.values()] == ["info", "critical", "critical", "-"]
    assert "static share (critical)" in trials["0001"][-1]
    assert trials["0003"][-1] == "nothing was trained yet"
    rules = out[out.index("of 4 trials") :]
    assert line_with("NaN / Inf", rules) == ["NaN / Inf", "1", "-", "-"]


def test_a_results_folder_of_healthy_trials_exits_with_0(results, run, tmp_path):
    shutil.copytree(results / "trials" / "0000", tmp_path / "trials" / "0000")
    assert run(tmp_path)[0] == 0


def test_a_damaged_trial_is_named_and_the_others_are_still_told(results, run, tmp_path):
    shutil.copytree(results, tmp_path / "copy")
    damaged = tmp_path / "copy" / "trials" / "0000" / "epoch.csv"
    damaged.write_text(damaged.read_text().replace("0", "zero", 1))
    code, out, _ = run(tmp_path / "copy")
    assert code == 2
    assert line_with("0000", out)[1] == "damaged"
    assert "static share (critical)" in line_with("0001", out)[-1]


def test_applied_changes_make_a_config_that_trains_and_cures_the_finding(results, run, tmp_path):
    out = tmp_path / "deep" / "next.yaml"
    code, printed, _ = run(results / "trials" / "0001", "--apply", out)
    assert code == 1
    assert f"{out}: alpha: 0.95 -> " in printed
    old, new = (load_yaml(path) for path in (results / "trials" / "0001" / "config.yaml", out))
    assert {key for key in old if old[key] != new[key]} == {"alpha", "beta"}
    assert train([str(out), "--out", str(tmp_path / "again")]) == 0
    rules = {f.rule: f.severity for f in load_run(tmp_path / "again").findings()}
    assert rules.get(Rule.STATIC_SHARE, Severity.INFO) is Severity.INFO


def test_applying_to_a_run_that_stands_still_raises_the_rate_and_keeps_the_rest(run, tmp_path):
    trained(tmp_path / "still", **STILL)
    run(tmp_path / "still", "--apply", tmp_path / "next.yaml")
    new = TrainConfig.model_validate(load_yaml(tmp_path / "next.yaml"))
    assert (new.base_lr, new.min_lr) == (pytest.approx(3e-12), 1e-14)


def test_applying_without_any_change_writes_the_config_as_it_was_and_says_so(results, run, tmp_path):
    folder = tmp_path / "trial"
    shutil.copytree(results / "trials" / "0000", folder)
    first = (folder / "epoch.csv").read_text().splitlines(keepends=True)[:2]
    (folder / "epoch.csv").write_text("".join(first))  # one epoch: no finding
    code, out, _ = run(folder, "--apply", tmp_path / "next.yaml")
    assert code == 0
    assert "no finding carries a change" in out
    assert load_yaml(tmp_path / "next.yaml") == load_yaml(folder / "config.yaml")


def finding(rule, severity, changes):
    return Finding(rule, severity, 1.0, 0.0, 0, "", changes)


def test_of_conflicting_changes_the_more_severe_wins_whole_and_the_conflict_is_told():
    lower = finding(Rule.NOT_FINITE, Severity.CRITICAL, {"base_lr": 0.5})
    higher = finding(Rule.NOT_FALLING, Severity.WARNING, {"base_lr": 2.0, "min_lr": 0.1})
    weights = finding(Rule.STATIC_SHARE, Severity.INFO, {"alpha": 0.3, "beta": 0.7})
    changes, conflicts = merged_changes([weights, higher, lower])
    assert changes == {"base_lr": 0.5, "alpha": 0.3, "beta": 0.7}
    assert conflicts == ["base_lr = 2 of loss does not fall (warning) gives way to 0.5 of NaN / Inf (critical)"]


def test_of_equally_severe_changes_the_first_wins_and_equal_changes_are_no_conflict():
    first, second = (finding(rule, Severity.WARNING, {"base_lr": 0.5}) for rule in (Rule.JUMPS, Rule.OSCILLATES))
    assert merged_changes([first, second]) == ({"base_lr": 0.5}, [])
    other = finding(Rule.NOT_FALLING, Severity.WARNING, {"base_lr": 2.0})
    assert merged_changes([first, other])[0] == {"base_lr": 0.5}


def test_a_conflict_is_told_when_changes_are_applied(results, tmp_path):
    findings = [
        finding(Rule.NOT_FINITE, Severity.CRITICAL, {"base_lr": 0.5}),
        finding(Rule.NOT_FALLING, Severity.WARNING, {"base_lr": 2.0}),
    ]
    lines = apply_changes(load_run(results / "trials" / "0000"), findings, tmp_path / "next.yaml")
    assert lines[0].startswith("conflict: base_lr = 2 of loss does not fall (warning) gives way to 0.5")


def test_a_change_that_no_config_allows_is_refused_and_nothing_is_written(results, tmp_path):
    findings = [finding(Rule.NOT_FALLING, Severity.WARNING, {"base_lr": math.inf})]
    with pytest.raises(UserError, match="base_lr = inf"):
        apply_changes(load_run(results / "trials" / "0000"), findings, tmp_path / "next.yaml")
    assert not (tmp_path / "next.yaml").exists()


# --- bad input ---


def refused(run, *arguments):
    """The error of a call that must exit with 2 and print nothing else."""
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    return err


def test_a_folder_that_is_none_says_what_to_give(run, tmp_path):
    assert "is no folder and no file; give the folder of a trial" in refused(run, tmp_path / "nowhere")


def test_a_folder_without_rows_says_what_to_give(run, tmp_path):
    assert "--out folder of model.train" in refused(run, tmp_path)


def test_an_empty_trials_folder_is_refused(run, tmp_path):
    (tmp_path / "trials").mkdir()
    assert "holds no trial yet" in refused(run, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch,epoch/train_loss\n0,much\n", "must be a number or empty"),
        ("epoch,epoch/train_loss\n0,1.0,2.0\n", "must be a number or empty"),
        ("epoch/train_loss\n1.0\n", "line 2 is damaged (it has no whole number as epoch)"),
        ("epoch,epoch/train_loss\nnan,1.0\n", "line 2 is damaged (it has no whole number as epoch)"),
    ],
)
def test_a_damaged_table_is_named_with_what_is_wrong(run, tmp_path, text, message):
    (tmp_path / "epoch.csv").write_text(text)
    err = refused(run, tmp_path)
    assert str(tmp_path / "epoch.csv") in err
    assert message in err


def test_a_table_that_is_no_text_is_named(run, tmp_path):
    (tmp_path / "batch.csv").write_bytes(b"\xff\xfe\x00\n\x81\n")
    assert "batch.csv: damaged" in refused(run, tmp_path)


def test_a_damaged_config_is_named_with_its_key(results, run, tmp_path):
    shutil.copytree(results / "trials" / "0000", tmp_path / "trial")
    (tmp_path / "trial" / "config.yaml").write_text("alpha: -1\n")
    assert "alpha = -1" in refused(run, tmp_path / "trial")


def test_a_run_without_config_is_diagnosed_but_nothing_can_be_applied(results, run, tmp_path):
    shutil.copytree(results / "trials" / "0001", tmp_path / "trial")
    (tmp_path / "trial" / "config.yaml").unlink()
    code, out, _ = run(tmp_path / "trial")
    assert code == 1
    assert "without config.yaml" in out
    code, _, err = run(tmp_path / "trial", "--apply", tmp_path / "next.yaml")
    assert code == 2
    assert "has no config of ours" in err


def test_the_record_of_the_run_is_never_overwritten(results, run):
    own = results / "trials" / "0001" / "config.yaml"
    before = own.read_text()
    code, _, err = run(results / "trials" / "0001", "--apply", own)
    assert code == 2
    assert "is the record of this run" in err
    assert own.read_text() == before


def test_changes_cannot_be_applied_to_a_whole_sweep(results, run, tmp_path):
    assert "is a sweep; give one trial" in refused(run, results, "--apply", tmp_path / "next.yaml")


def test_a_place_that_cannot_be_written_is_named(results, run, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run(results / "trials" / "0001", "--apply", tmp_path / "file" / "next.yaml")
    assert code == 2
    assert "give a file that you may write to" in err


# --- the process ---


@pytest.mark.process
def test_the_command_runs_by_itself_and_needs_none_of_the_heavy_libraries(results):
    code = (
        "import sys; from sweep.diagnose import main; code = main(sys.argv[1:]);"
        "print([m for m in ('torch', 'ray', 'wandb', 'optuna', 'plotly') if m in sys.modules], code)"
    )
    command = [sys.executable, "-c", code, str(results / "trials" / "0001")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[] 1", done.stderr


@pytest.mark.process
def test_the_module_is_a_command_with_an_example_in_its_help():
    command = [sys.executable, "-m", "sweep.diagnose", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "python -m sweep.diagnose results/" in done.stdout
