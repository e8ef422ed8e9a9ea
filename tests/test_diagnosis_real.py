"""Every rule of the diagnosis on a real curve: the trainer is made to misbehave; remedies that are applied mend it."""

import itertools
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
import yaml
from tiny import tiny_config

from model.config import TrainConfig
from model.configfile import load_yaml
from model.mae import JointTactileMAE
from model.metrics import Level
from model.trainer import NonFiniteLossError, Trainer
from sweep.diagnosis import Finding, diagnose
from sweep.diagnosis_apply import apply_changes
from sweep.diagnosis_input import Run
from sweep.diagnosis_live import LiveDiagnosis
from sweep.diagnosis_verdict import NextStep, Verdict, verdict
from sweep.limits import Rule, Severity

INFO, WARNING, CRITICAL = Severity

HEALTHY = {"epochs": 6, "base_lr": 0.01, "alpha": 0.6, "seed": 2}
OSCILLATING = {
    "epochs": 10,
    "base_lr": 10.0,
    "min_lr": 0.3,  # nearly constant: the peak is 0.3125
    "warmup_epochs": 0,
    "clip_grad": None,
    "betas": (0.0, 0.5),
    "seed": 1,
}


def trained(config: TrainConfig, damage: Callable[[JointTactileMAE], Any] = lambda model: None) -> Run:
    """Train to the end, or to where it diverges; `damage` is done to the model before."""
    trainer = Trainer(config)
    damage(trainer.model)
    epochs, batches = [], []
    try:
        for event in trainer.train():
            rows = {Level.EPOCH: epochs, Level.BATCH: batches}.get(event.level)
            if rows is not None:
                rows.append(event.values)
    except NonFiniteLossError:
        pass
    return Run("run", epochs, batches, config)


@lru_cache(maxsize=1)
def oscillating() -> Run:
    return trained(tiny_config(**OSCILLATING))


def found(rule: Rule, run: Run) -> Finding:
    """The finding of a rule, which must fire."""
    findings = {finding.rule: finding for finding in run.findings()}
    assert rule in findings, f"only these fire: {[*findings]}"
    return findings[rule]


def applied(run: Run, tmp_path) -> TrainConfig:
    """The config that --apply writes, as a later command reads it."""
    apply_changes(run, run.findings(), tmp_path / "next.yaml")
    return TrainConfig.model_validate(load_yaml(tmp_path / "next.yaml"))


def judged(run: Run) -> Verdict:
    return verdict(run.epochs, run.batches, run.config)


def test_a_healthy_run_fires_nothing_above_info_and_passes_the_quick_test():
    run = trained(tiny_config(**HEALTHY))
    assert {finding.severity for finding in run.findings()} <= {INFO}
    assert judged(run) == Verdict(True, [], NextStep.FULL_RUN)


@pytest.mark.parametrize(("alpha", "side"), [(0.95, "lower alpha"), (0.05, "raise alpha")])
def test_a_lopsided_alpha_gives_a_critical_static_share_and_the_weights_that_balance(alpha, side):
    run = trained(tiny_config(alpha=alpha, epochs=4))
    finding = found(Rule.STATIC_SHARE, run)
    assert finding.severity is CRITICAL
    assert finding.remedy.startswith(side)
    static, dynamic = run.epochs[-1]["epoch/loss_static"], run.epochs[-1]["epoch/loss_dynamic"]
    assert finding.changes["alpha"] == pytest.approx(dynamic / (static + dynamic))
    assert finding.changes["alpha"] * static == pytest.approx(finding.changes["beta"] * dynamic)
    assert judged(run).next_step in (NextStep.CHANGE_WEIGHTS, NextStep.BALANCED_WEIGHTS, NextStep.MEND)


def test_the_weights_that_are_applied_bring_a_lopsided_run_into_balance(tmp_path):
    run = trained(tiny_config(alpha=0.95, epochs=3, base_lr=0.01))
    config = applied(run, tmp_path)
    assert config.alpha < 0.7
    again = {finding.rule: finding.severity for finding in trained(config).findings()}
    assert again.get(Rule.STATIC_SHARE, INFO) is INFO


def test_the_rate_that_is_applied_lets_losses_fall_that_stood_still(tmp_path):
    run = trained(tiny_config(alpha=0.6, epochs=4, base_lr=2.5e-3))
    assert found(Rule.NOT_FALLING, run).changes == {"base_lr": pytest.approx(7.5e-3)}
    assert Rule.NOT_FALLING not in {finding.rule for finding in trained(applied(run, tmp_path)).findings()}


def test_alpha_near_one_makes_the_static_loss_fall_first_so_the_ratio_is_low_and_more_alpha_is_not_advised():
    finding = found(Rule.RATIO_LOW, trained(tiny_config(alpha=0.95, epochs=4)))
    assert finding.severity is WARNING
    assert finding.changes == {}
    assert "makes up for it already" in finding.remedy


def test_a_static_head_that_does_not_learn_makes_the_ratio_high():
    def damage(model):
        torch.nn.init.normal_(model.static_head.weight, std=0.4, generator=torch.Generator().manual_seed(0))
        model.static_head.requires_grad_(False)

    finding = found(Rule.RATIO_HIGH, trained(tiny_config(epochs=3, base_lr=0.01), damage))
    assert finding.value > 1.2
    assert finding.remedy.startswith("the dynamic task is too easy: raise beta")
    assert finding.changes["beta"] > 0.5


def test_a_decoder_that_does_not_learn_is_seen_as_losses_that_do_not_fall():
    def damage(model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("decoder" not in name and "head" not in name and "embed" not in name)

    run = trained(tiny_config(epochs=4, base_lr=0.01, alpha=0.6), damage)
    finding = found(Rule.NOT_FALLING, run)
    assert "loss_recon" in finding.remedy
    assert not judged(run).passed


def test_a_dynamic_head_that_does_not_learn_stalls_the_dynamic_losses_and_not_the_static_one():
    run = trained(tiny_config(epochs=4, base_lr=0.01, alpha=0.6), freeze_dynamic_decoding)
    finding = found(Rule.NOT_FALLING, run)
    assert "loss_static" not in finding.remedy
    assert "loss_pred" in finding.remedy


def freeze_dynamic_decoding(model):
    torch.nn.init.zeros_(model.dynamic_head.weight)  # it always predicts the mean
    model.dynamic_head.requires_grad_(False)


def test_a_learning_rate_of_nearly_nothing_is_seen_as_losses_that_do_not_fall():
    run = trained(tiny_config(base_lr=1e-12, epochs=3))
    finding = found(Rule.NOT_FALLING, run)
    assert finding.severity is WARNING
    assert finding.changes == {"base_lr": pytest.approx(3e-12)}
    assert all(name in finding.remedy for name in ("train_loss", "loss_static", "loss_recon", "loss_pred"))
    assert judged(run).next_step is NextStep.MEND


def test_a_huge_learning_rate_makes_the_loss_oscillate_and_jump_and_no_rule_asks_for_a_higher_one():
    findings = {finding.rule: finding for finding in oscillating().findings()}
    assert {Rule.OSCILLATES, Rule.JUMPS} <= findings.keys()
    assert findings[Rule.OSCILLATES].value > 2
    rates = {f.changes["base_lr"] for f in findings.values() if "base_lr" in f.changes}
    assert [*rates] == pytest.approx([10 / 3], rel=1e-5)
    assert findings[Rule.OSCILLATES].changes["min_lr"] == pytest.approx(0.1)  # else above the new peak


def test_rates_that_are_applied_one_after_the_other_end_the_oscillation(tmp_path):
    run = oscillating()
    for _ in range(3):
        run = trained(applied(run, tmp_path))
        if Rule.OSCILLATES not in {finding.rule for finding in run.findings()}:
            return
    raise AssertionError(f"it still oscillates at base_lr = {run.config.base_lr}")


def test_weights_that_change_the_task_midway_make_the_ratio_unstable():
    """A static head that is broken for an epoch: the ratio leaps, and comes back."""
    config = tiny_config(epochs=6, base_lr=0.01, alpha=0.6)
    trainer = Trainer(config)
    epochs, batches = [], []
    for event in trainer.train():
        if event.level is Level.BATCH:
            batches.append(event.values)
        elif event.level is Level.EPOCH:
            epochs.append(event.values)
            if len(epochs) == 3:
                with torch.no_grad():
                    trainer.model.static_head.bias += 2.0
    finding = found(Rule.RATIO_UNSTABLE, Run("run", epochs, batches, config))
    assert finding.value > 0.3
    assert "lower base_lr" in finding.remedy


def test_a_run_that_became_nan_before_its_first_epoch_ended_is_told_to_lower_the_rate_and_to_clip():
    run = trained(tiny_config(base_lr=1e30, clip_grad=None))
    assert run.epochs == []
    [finding] = run.findings()
    assert (finding.rule, finding.severity, finding.epoch) == (Rule.NOT_FINITE, CRITICAL, 0)
    assert finding.changes == {"base_lr": pytest.approx(1e29), "clip_grad": 1.0}
    assert "first seen: batch/" in finding.remedy
    assert not judged(run).passed


def test_nan_pixels_in_a_later_epoch_are_found_there():
    def damage(model):
        calls = []

        def break_pixels(module, inputs):
            calls.append(module.training)
            if sum(calls) == 9 and module.training:  # the third update of the second epoch
                inputs[0][0, 0, 0, 0] = float("nan")

        model.register_forward_pre_hook(break_pixels)

    finding = found(Rule.NOT_FINITE, trained(tiny_config(epochs=3), damage))
    assert (finding.severity, finding.epoch) == (CRITICAL, 1)


def test_an_encoder_that_does_not_see_its_input_has_collapsed_features():
    def damage(model):
        torch.nn.init.zeros_(model.embed.project.weight)
        model.embed.project.weight.requires_grad_(False)

    config = tiny_config(epochs=2, base_lr=0.01, data={"eval_fraction": 0.5, "eval_clips": 32})
    assert found(Rule.COLLAPSE, trained(config, damage)).severity is CRITICAL


def test_the_work_of_the_rules_does_not_grow_with_the_epochs_behind_them():
    run = trained(tiny_config(epochs=1))
    live = LiveDiagnosis(tiny_config(epochs=50))

    def calls_of(epoch: int) -> int:
        """Function calls of an epoch of a thousand updates: counted, since times depend on the machine."""
        calls = itertools.count()
        sys.setprofile(lambda *_: next(calls))
        try:
            for update in range(1000):
                live.add_batch(dict(run.batches[update % len(run.batches)]) | {"batch/epoch": epoch})
            live.add_epoch(dict(run.epochs[0]) | {"epoch": epoch})
            live.news()
        finally:
            sys.setprofile(None)
        return next(calls)

    first, second, *_, last = (calls_of(epoch) for epoch in range(8))
    assert last < 1.2 * second
    assert max(first, last) < 200 * 1000  # an update's forward and backward pass makes thousands


def test_a_config_that_was_applied_tells_what_changed_and_trains(tmp_path):
    run = trained(tiny_config(base_lr=1e-12, epochs=2))
    applied(run, tmp_path)
    text = (tmp_path / "next.yaml").read_text()
    assert "# base_lr: 1e-12 -> 3e-12" in text
    assert diagnose(trained(TrainConfig.model_validate(yaml.safe_load(text))).epochs)
