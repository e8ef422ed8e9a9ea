"""Findings of a trial under way: when each is told, that none is told twice, and that W&B gets an alert."""

import pytest
import yaml
from offline import records_of, run_files
from test_diagnosis import falling, joint_row, with_values
from tiny import tiny_config
from wandb_double import WandbDouble

from model.sinks import read_json, write_json
from sweep.diagnosis_live import LiveDiagnosis
from sweep.diagnosis_told import TOLD, read_told
from sweep.limits import Rule, Severity
from sweep.run import main as sweep_command
from sweep.single import main as trial_by_hand
from sweep.trial import TrialRun
from sweep.trial_job import TrialJob
from sweep.wandb_client import reset_client
from tests.inline import inline_runner
from tests.sweeping import tiny_content as sweep_content

INFO, WARNING, CRITICAL = Severity
LOPSIDED = {"alpha": 0.95, "epochs": 3, "base_lr": 0.01}
SHARE = "epoch/actual_static_contribution"


def told(rows, epochs=None, known=None, **changes):
    """(epoch, rule, severity) of what is told while these epochs end one after the other."""
    live = LiveDiagnosis(tiny_config(epochs=epochs or len(rows), **changes), known)
    news = []
    for row in rows:
        live.add_epoch(row)
        news += [(row["epoch"], found.rule, found.severity) for found in live.news()]
    return news


# --- when


def test_a_rule_is_told_at_its_first_firing_and_again_only_where_its_severity_rises():
    rows = with_values(SHARE, [0.5, 0.62, 0.63, 0.66, 0.66, 0.72, 0.5])
    expected = [(1, INFO), (3, WARNING), (5, CRITICAL)]
    assert told(rows) == [(epoch, Rule.STATIC_SHARE, severity) for epoch, severity in expected]


def test_the_first_epoch_tells_nothing_of_the_balance_since_it_belongs_to_the_warm_up():
    rows = with_values(SHARE, [0.9, 0.5, 0.5])
    assert told(rows) == []
    assert told(rows[:1]) == [(0, Rule.STATIC_SHARE, CRITICAL)]  # it is the only one


@pytest.mark.parametrize(("epochs", "warmup", "told_at"), [(12, 1, 4), (12, 8, 8), (3, 1, 2)])
def test_losses_that_stand_still_are_told_after_five_epochs_and_the_warm_up_or_at_the_end(epochs, warmup, told_at):
    rows = [joint_row(epoch) for epoch in range(epochs)]
    assert told(rows, warmup_epochs=warmup) == [(told_at, Rule.NOT_FALLING, WARNING)]


def test_what_an_earlier_part_told_is_not_told_again():
    rows = with_values(SHARE, [0.5, 0.66, 0.72])
    assert told(rows, known={Rule.STATIC_SHARE: CRITICAL}) == []
    assert told(rows, known={Rule.STATIC_SHARE: WARNING}) == [(2, Rule.STATIC_SHARE, CRITICAL)]


def test_a_jump_within_the_first_epoch_is_told_at_its_end():
    live = LiveDiagnosis(tiny_config(epochs=9))
    for loss in [1.0] * 9 + [5.0]:
        live.add_batch({"batch/epoch": 0, "batch/loss_dynamic": loss})
    live.add_epoch(falling(1)[0])
    assert [found.rule for found in live.news()] == [Rule.JUMPS]
    assert live.news() == []


# --- a trial


def job(results, trial="0000", alerts=True, mode="offline", **changes):
    return TrialJob(
        trial=trial,
        sweep="s",
        sweep_uid="u",
        results=results,
        config=tiny_config(**changes),
        values={},
        project="p",
        wandb={"mode": mode, "alerts": alerts},
    )


def trained(given):
    """Every report of a trial that trains to its end."""
    run = TrialRun(given)
    reports = []
    while not reports or not (reports[-1].finished or reports[-1].diverged):
        reports.append(run.run_epoch())
    return reports


def rules(findings):
    return [(text.partition(" in epoch")[0].rstrip("0123456789.()limt ").strip(), level) for text, level in findings]


def alerts_of(results):
    """(title, level) of the alerts in W&B's offline files."""
    records = [record for file in run_files(results) for record in records_of(file)]
    return [(r["alert"]["title"], r["alert"]["level"]) for r in records if r["type"] == "alert"]


def test_a_trial_reports_each_finding_once_and_an_offline_run_keeps_an_alert_of_it(tmp_path):
    reports = trained(job(tmp_path, **LOPSIDED))
    findings = [found for report in reports for found in report.findings]
    assert ("static share", "critical") in rules(findings)
    assert len({*rules(findings)}) == len(findings)
    assert reports[0].findings == ()
    severe = [level for _, level in findings if level != "info"]
    assert [level for _, level in alerts_of(tmp_path)] == [
        {"critical": "ERROR", "warning": "WARN"}[level] for level in severe
    ]
    assert ("trial 0000: static share (critical)", "ERROR") in alerts_of(tmp_path)


def test_mere_information_is_reported_and_sends_no_alert(tmp_path):
    reports = trained(job(tmp_path, **LOPSIDED | {"alpha": 0.7}))
    assert [found for report in reports for _, found in report.findings] == ["info"]
    assert alerts_of(tmp_path) == []


def test_a_trial_that_diverges_says_so_before_its_record_is_closed(tmp_path):
    [report] = trained(job(tmp_path, base_lr=1e30, clip_grad=None))
    assert rules(report.findings) == [("NaN / Inf", "critical")]
    assert alerts_of(tmp_path) == [("trial 0000: NaN / Inf (critical)", "ERROR")]


def test_a_trial_that_goes_on_in_another_process_tells_nothing_twice(tmp_path):
    given = job(tmp_path, **LOPSIDED)
    first = TrialRun(given)
    before = [found for _ in range(2) for found in first.run_epoch().findings]
    assert ("static share", "critical") in rules(before)
    first._let_go()  # as a kill leaves it: without a checkpoint of these epochs
    for sink in first._sinks:
        sink.close(1)
    after = [found for report in trained(given) for found in report.findings]
    assert ("static share", "critical") not in rules(after)
    assert sum(title.startswith("trial 0000: static share") for title, _ in alerts_of(tmp_path)) == 1


def test_alerts_can_be_switched_off_and_the_findings_are_still_reported(tmp_path):
    reports = trained(job(tmp_path, alerts=False, **LOPSIDED))
    assert any(report.findings for report in reports)
    assert alerts_of(tmp_path) == []


@pytest.mark.parametrize(
    "content",
    ["", "[1]", '{"static share": 3, "gone": "info"}', '{"static share": "dire"}', '{"static share": ["info"]}'],
)
def test_a_damaged_note_of_what_was_told_is_no_error(tmp_path, content):
    (tmp_path / TOLD).write_text(content)
    assert read_told(tmp_path) == {}


def test_a_note_of_what_was_told_keeps_what_can_be_read(tmp_path):
    write_json(tmp_path / TOLD, {"static share": "warning", "a rule of a later version": "warning"})
    assert read_told(tmp_path) == {Rule.STATIC_SHARE: WARNING}


def test_the_server_gets_each_alert_once_also_of_a_trial_that_is_resumed(tmp_path, monkeypatch):
    reset_client()  # which knows the environment of the tests before
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with WandbDouble() as double:
        monkeypatch.setenv("WANDB_BASE_URL", double.url)
        given = job(tmp_path, mode="online", **LOPSIDED)
        first = TrialRun(given, should_stop=lambda: first.epochs >= 2)
        while not (report := first.run_epoch()).interrupted:
            first._look_clock._last = 0.0  # asked at every update
            assert not report.finished
        trained(given)
        titles = [title for run, title, _, _ in double.alerts if run == "u-0000"]
        assert "trial 0000: static share (critical)" in titles
        assert len({*titles}) == len(titles)
        severe = {rule for rule, level in read_json(given.folder / TOLD).items() if level != "info"}
        assert {title.removeprefix("trial 0000: ").rpartition(" (")[0] for title in titles} == severe
        assert "NotifyScriptableRunAlert" not in double.unknown


# --- the commands


def said_by(command, folder, capsys, *options):
    """The lines that a command prints about a sweep of one lopsided trial."""
    content = sweep_content(run_cap=1, search={"presets": [{"alpha": 0.95, "base_lr": 0.01}]})
    content["parameters"]["alpha"]["max"] = 0.96
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
    with inline_runner():
        assert command([str(folder / "tiny.yaml"), *options, "--results", str(folder / "r")]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_trial_by_hand_says_what_is_found_in_it(tmp_path, capsys):
    lines = said_by(trial_by_hand, tmp_path, capsys, "--alpha=0.95", "--base_lr=0.01")
    assert sum(line.startswith("critical: static share 0.9") for line in lines) == 1
    assert ("trial 0000: static share (critical)", "ERROR") in alerts_of(tmp_path / "r")


def test_a_sweep_says_what_is_found_in_its_trials(tmp_path, capsys):
    lines = said_by(sweep_command, tmp_path, capsys)
    assert sum(line.startswith("critical: trial 0000: static share 0.9") for line in lines) == 1
    assert ("trial 0000: static share (critical)", "ERROR") in alerts_of(tmp_path / "r")
