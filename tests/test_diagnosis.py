"""sweep/diagnosis.py: every rule on a real curve that shows it, and on rows made here at the edge of each limit."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_config

from model.batches import Batches
from model.data.clips import load_clips
from model.features import held_out_rank
from model.mae import JointTactileMAE
from sweep.diagnosis import MOVEMENT, balancing_weights, diagnose, ratio_fluctuation
from sweep.diagnosis_verdict import NextStep, verdict
from sweep.limits import LIMITS, Rule, Severity

INFO, WARNING, CRITICAL = Severity


def joint_row(epoch, static=0.85, dynamic=1.0, alpha=0.5, beta=0.5):
    """An epoch row as the trainer makes it."""
    weighted = alpha * static, beta * dynamic
    total = sum(weighted)
    return {
        "epoch": epoch,
        "epoch/train_loss": total,
        "epoch/loss_static": static,
        "epoch/loss_dynamic": dynamic,
        "epoch/loss_ratio": static / dynamic,
        "epoch/weighted_static": weighted[0],
        "epoch/weighted_dynamic": weighted[1],
        "epoch/actual_static_contribution": weighted[0] / total,
        "epoch/actual_dynamic_contribution": weighted[1] / total,
    }


def falling(count=5):
    """Epoch rows of a healthy, balanced run."""
    return [joint_row(epoch, 0.85 * 0.8**epoch, 0.8**epoch) for epoch in range(count)]


def with_values(name, values, rows=None):
    """Rows of a healthy run whose metric `name` takes these values."""
    return [row | {name: value} for row, value in zip(rows or falling(len(values)), values, strict=True)]


def batch_rows(losses, epoch=0, **more):
    """Batch rows of one epoch with this dynamic loss."""
    return [{"batch/epoch": epoch, "batch/iteration": i, "batch/loss_dynamic": x} | more for i, x in enumerate(losses)]


def found(rule, epochs, batches=(), config=None):
    """The finding of a rule, or None."""
    return next((finding for finding in diagnose(epochs, batches, config) if finding.rule is rule), None)


def fired(*histories):
    """The names of the rules that fire."""
    return {finding.rule for finding in diagnose(*histories)}


# --- the edge of each limit ---


LEVELS = [limit for limit in LIMITS if limit.rule in (Rule.RATIO_HIGH, Rule.RATIO_LOW, Rule.STATIC_SHARE)]


@pytest.mark.parametrize("limit", LEVELS, ids=lambda limit: f"{limit.rule}-{limit.severity}-{limit.value}")
def test_a_level_fires_just_outside_its_limit_and_not_on_it(limit):
    name = "epoch/actual_static_contribution" if limit.rule is Rule.STATIC_SHARE else "epoch/loss_ratio"
    outside = math.nextafter(limit.value, math.inf if limit.side == "above" else -math.inf)
    finding = found(limit.rule, with_values(name, [outside]))
    assert (finding.severity, finding.limit, finding.value) == (limit.severity, limit.value, outside)
    milder = found(limit.rule, with_values(name, [limit.value]))
    assert milder is None or milder.severity.rank < limit.severity.rank


def test_every_rule_and_limit_of_the_table_has_an_origin_in_the_text_but_for_the_collapse_of_features():
    assert {limit.rule for limit in LIMITS} == set(Rule)
    assert {limit.rule for limit in LIMITS if "section" not in limit.origin} == {Rule.COLLAPSE}


@pytest.mark.parametrize(("last", "fires"), [(0.981, True), (0.979, False), (1.3, True)])
def test_a_loss_falls_when_it_loses_two_percent_from_the_first_to_the_last_epoch(last, fires):
    rows = with_values("epoch/train_loss", [1.0, 0.7, last])
    assert (Rule.NOT_FALLING in fired(rows)) is fires


@pytest.mark.parametrize(("highest", "fires"), [(1.16, False), (1.17, False), (1.37, True)])
def test_the_ratio_is_unstable_where_it_fluctuates_by_more_than_30_percent_of_its_mean(highest, fires):
    rows = with_values("epoch/loss_ratio", [9.0, 1.0, highest, 1.0])  # the first epoch is not settled
    assert ratio_fluctuation(rows) == pytest.approx((highest - 1) / ((highest + 2) / 3))
    assert (Rule.RATIO_UNSTABLE in fired(rows)) is fires


@pytest.mark.parametrize(
    ("losses", "turns"),
    [
        ([1, 0.8, 0.9, 0.7, 0.6], None),  # one bump
        ([1, 0.8, 0.9, 0.7, 0.8], 3),
        ([1, 0.8, 0.9, 0.7, 0.8, 0.6], 4),
        ([1, 0.8, 0.805, 0.8, 0.805, 0.8], None),  # a plateau's noise
        ([1, 0.9, 0.8, 0.7, 0.6], None),
    ],
)
def test_the_loss_oscillates_from_three_turns_in_a_row_on_and_noise_is_no_turn(losses, turns):
    finding = found(Rule.OSCILLATES, with_values("epoch/train_loss", losses))
    assert (finding and finding.value) == turns


@pytest.mark.parametrize(("last", "fires"), [(2.0, False), (2.01, True)])
def test_an_epoch_jumps_above_twice_the_running_median(last, fires):
    assert (Rule.JUMPS in fired(with_values("epoch/train_loss", [1.0, 1.0, 1.0, last]))) is fires


@pytest.mark.parametrize(("count", "last", "fires"), [(8, 2.0, False), (8, 2.01, True), (7, 9.0, False)])
def test_a_batch_jumps_above_twice_the_median_of_at_least_eight_before_it(count, last, fires):
    finding = found(Rule.JUMPS, falling(), batch_rows([1.0] * count + [last]))
    assert (finding is not None) is fires
    assert finding is None or finding.remedy.startswith("batch/loss_dynamic was 2.01 times")


def test_an_alternating_baseline_does_not_jump_when_the_modes_change():
    static = {"batch/loss_static": 0.3, "batch/loss_total": 0.3, "batch/mode": 0, "batch/epoch": 0}
    dynamic = {"batch/loss_dynamic": 1.0, "batch/loss_total": 1.0, "batch/mode": 1, "batch/epoch": 0}
    assert diagnose([], [static, dynamic] * 20) == []


def test_infinity_in_any_metric_is_found_and_the_nan_of_an_objective_is_not():
    assert found(Rule.NOT_FINITE, [*falling(2), joint_row(2) | {"eval/loss_pred": math.inf}]).epoch == 2
    assert Rule.NOT_FINITE not in fired([row | {"objective/value": math.nan} for row in falling(2)])


MANY_CLIPS = tiny_config(data={"eval_fraction": 0.5, "eval_clips": 32})


@pytest.mark.parametrize(
    ("rank", "severity"), [(2.0, None), (1.9, WARNING), (1.2, WARNING), (1.1, CRITICAL), (0, CRITICAL)]
)
def test_features_that_differ_in_hardly_any_direction_are_a_collapse(rank, severity):
    finding = found(Rule.COLLAPSE, with_values("eval/effective_rank", [20.0, rank]), config=MANY_CLIPS)
    assert (finding and finding.severity) == severity
    assert finding is None or finding.changes == {"base_lr": 0.01}


def test_features_that_have_recovered_by_the_last_epoch_are_no_collapse():
    assert found(Rule.COLLAPSE, with_values("eval/effective_rank", [0.0, 1.0, 9.0])) is None


def test_the_rank_of_very_few_clips_is_no_sign_of_a_collapse():
    rows = with_values("eval/effective_rank", [1.0, 1.0])
    assert found(Rule.COLLAPSE, rows, config=tiny_config(data={"eval_clips": 31})) is None
    assert found(Rule.COLLAPSE, rows, config=MANY_CLIPS).severity is CRITICAL


def test_an_encoder_that_does_not_see_its_input_has_a_collapsed_rank_and_a_healthy_one_has_not():
    config = MANY_CLIPS
    clips = load_clips(config.data)
    batches = Batches(config, clips, torch.device("cpu"))
    model = JointTactileMAE(config)
    for severity in (None, CRITICAL):
        rank = held_out_rank(model, batches.held_out, len(clips.held_out))
        finding = found(Rule.COLLAPSE, [joint_row(0) | {"eval/effective_rank": rank}], config=config)
        assert (finding and finding.severity) == severity
        torch.nn.init.zeros_(model.embed.project.weight)  # a broken start: every clip is the same


# --- which epoch, which severity, which remedy ---


def test_a_rule_reports_once_at_its_highest_severity_for_the_last_epoch_that_reached_it():
    finding = found(Rule.RATIO_HIGH, with_values("epoch/loss_ratio", [1.0, 1.3, 2.1, 2.2, 1.6]))
    assert (finding.severity, finding.epoch, finding.value) == (CRITICAL, 3, 2.2)


def test_findings_are_ordered_by_severity_then_epoch():
    rows = with_values("epoch/loss_ratio", [1.0, 1.3, 1.0, 1.0, 1.0])
    rows = with_values("epoch/actual_static_contribution", [0.5, 0.5, 0.5, 0.8, 0.5], rows)
    rows = with_values("epoch/train_loss", [1.0, 1.0, 1.0, 1.0, 1.0], rows)
    assert [(f.severity, f.epoch) for f in diagnose(rows)] == [(CRITICAL, 3), (WARNING, 4), (INFO, 1)]


def test_balance_is_judged_by_settled_epochs_and_by_the_first_one_while_it_is_alone():
    rows = with_values("epoch/actual_static_contribution", [0.9, 0.5, 0.5])
    assert found(Rule.STATIC_SHARE, rows) is None
    assert found(Rule.STATIC_SHARE, rows[:1]).severity is CRITICAL


def test_a_balance_that_was_mended_five_epochs_ago_is_no_finding():
    shares = [0.5, 0.9, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert found(Rule.STATIC_SHARE, with_values("epoch/actual_static_contribution", shares)) is None
    assert found(Rule.STATIC_SHARE, with_values("epoch/actual_static_contribution", shares[:-1])).epoch == 1


@pytest.mark.parametrize(("alpha", "named"), [(0.5, True), (0.54, True), (0.6, False)])
def test_the_texts_move_of_the_weights_is_named_only_from_about_equal_weights(alpha, named):
    rows = [joint_row(epoch, 3.0 * 0.8**epoch, 0.8**epoch, alpha, 1 - alpha) for epoch in range(3)]
    weights = {"batch/alpha": alpha, "batch/beta": 1 - alpha}
    for finding in (
        found(Rule.STATIC_SHARE, rows, config=tiny_config(alpha=alpha)),
        found(Rule.STATIC_SHARE, rows, batch_rows([1.0], **weights)),
    ):
        assert ("alpha 0.5 -> 0.3, beta 0.5 -> 0.7" in finding.remedy) is named


def test_a_high_ratio_raises_beta_to_what_balances_the_share():
    rows = [joint_row(epoch, 1.6 * 0.8**epoch, 0.8**epoch) for epoch in range(3)]
    assert found(Rule.RATIO_HIGH, rows).changes == pytest.approx({"alpha": 1 / 2.6, "beta": 1.6 / 2.6})


@pytest.mark.parametrize(
    ("recon", "pred", "remedy", "changes"),
    [
        (1.0, 0.5, "mask ratio", {}),
        (0.5, 1.0, "temporal modelling", {}),
        (1.0, 1.0, "raise base_lr", {"base_lr": 0.09}),
        (1.0, 1.5, "unstable: lower base_lr", {"base_lr": 0.01}),
    ],
)
def test_which_losses_stall_decides_the_remedy(recon, pred, remedy, changes):
    batches = [
        {"batch/epoch": epoch, "batch/loss_recon": last_recon, "batch/loss_pred": last_pred}
        for epoch, last_recon, last_pred in ((0, 1.0, 1.0), (1, 0.8, 0.8), (2, recon, pred))
    ]
    finding = found(Rule.NOT_FALLING, falling(3), batches, tiny_config())
    assert remedy in finding.remedy
    assert finding.changes == changes


def test_a_loss_of_weight_zero_need_not_fall():
    rows = [joint_row(epoch, 0.8**epoch, 1.0, alpha=1.0, beta=0.0) for epoch in range(3)]
    assert found(Rule.NOT_FALLING, rows) is None


def test_without_a_config_remedies_of_the_rate_are_in_words_only():
    assert found(Rule.OSCILLATES, with_values("epoch/train_loss", [1, 0.8, 0.9, 0.7, 0.8])).changes == {}


def test_rows_without_a_ratio_or_share_as_those_of_modes_0_and_1_work():
    rows = [{"epoch": e, "epoch/train_loss": 0.8**e, "epoch/loss_static": 0.8**e} for e in range(4)]
    assert diagnose(rows) == []
    assert verdict(rows).passed


@pytest.mark.parametrize("rows", [[], [joint_row(0)]])
def test_no_epoch_or_one_has_no_finding_and_no_passed_quick_test(rows):
    assert diagnose(rows) == []
    assert not verdict(rows).passed
    assert "2 epochs" in verdict(rows).reasons[0]


# --- the quick test ---


@pytest.mark.parametrize(
    ("static", "alpha", "step"),
    [
        (0.85, 0.5, NextStep.FULL_RUN),
        (0.55, 0.5, NextStep.BALANCED_WEIGHTS),  # share 0.35; with alpha 0.75 it is 0.62
        (0.85, 0.3, NextStep.BALANCED_WEIGHTS),
        (1.90, 0.5, NextStep.CHANGE_WEIGHTS),  # share 0.66: the balanced weights would make it worse
        (0.85, 0.8, NextStep.CHANGE_WEIGHTS),
        (0.25, 0.5, NextStep.CHANGE_WEIGHTS),  # the ratio is off severely
    ],
)
def test_the_next_step_follows_from_ratio_and_share(static, alpha, step):
    rows = [joint_row(epoch, static * 0.8**epoch, 0.8**epoch, alpha, 1 - alpha) for epoch in range(5)]
    result = verdict(rows)
    assert (result.next_step, result.passed) == (step, step is NextStep.FULL_RUN)
    assert len(result.reasons) == (not result.passed)


@pytest.mark.parametrize(("share", "passed"), [(0.401, True), (0.399, False), (0.599, True), (0.601, False)])
def test_the_share_passes_within_20_percent_of_its_target(share, passed):
    rows = with_values("epoch/actual_static_contribution", [0.5, 0.5, share])
    assert verdict(rows).passed is passed


def test_the_share_is_compared_with_the_given_target():
    rows = [joint_row(epoch, 0.8**epoch, 0.8**epoch) for epoch in range(3)]
    assert not verdict(rows, target=0.7).passed
    assert "alpha = 0.7, beta = 0.3 would give 0.7" in verdict(rows, target=0.7).reasons[0]


def test_an_unstable_ratio_fails_and_the_training_is_to_be_mended_before_the_weights():
    rows = with_values("epoch/loss_ratio", [0.85, 0.7, 1.1, 0.8])
    rows = with_values("epoch/actual_static_contribution", [0.5, 0.5, 0.5, 0.7], rows)
    result = verdict(rows)
    assert (len(result.reasons), result.next_step) == (2, NextStep.MEND)


# --- properties ---

positive = st.floats(1e-3, 1e3)
histories = st.lists(st.tuples(positive, positive), min_size=1, max_size=12).map(
    lambda losses: [joint_row(epoch, static, dynamic) for epoch, (static, dynamic) in enumerate(losses)]
)
SCALED = ("train_loss", "loss_static", "loss_dynamic", "weighted_static", "weighted_dynamic")


@given(histories, st.integers(-20, 20))
def test_the_unit_of_the_losses_changes_no_finding(rows, exponent):
    scale = 2.0**exponent  # exact in floating point
    names = {f"epoch/{name}" for name in SCALED}
    scaled = [{name: x * scale if name in names else x for name, x in row.items()} for row in rows]
    assert diagnose(scaled, config=tiny_config()) == diagnose(rows, config=tiny_config())


@given(histories)
def test_findings_break_their_limit_once_per_rule_and_are_ordered(rows):
    findings = diagnose(rows)
    assert len({f.rule for f in findings}) == len(findings)
    assert [(-f.severity.rank, f.epoch) for f in findings] == sorted((-f.severity.rank, f.epoch) for f in findings)
    for finding in findings:
        limits = [x for x in LIMITS if (x.rule, x.severity, x.value) == (finding.rule, finding.severity, finding.limit)]
        assert any(limit.exceeded_by(finding.value) for limit in limits)
        assert Rule.NOT_FINITE is not finding.rule


@given(st.lists(st.floats(0.5, 0.96), min_size=1, max_size=30), st.floats(-MOVEMENT / 4, MOVEMENT / 4))
def test_a_curve_that_falls_and_then_stands_still_with_some_noise_never_fires(factors, noise):
    losses = [1.0]
    for factor in factors:
        losses.append(losses[-1] * factor)
    losses += [losses[-1] * (1 + noise * (-1) ** step) for step in range(6)]
    rows = [joint_row(epoch, 0.85 * loss, loss) for epoch, loss in enumerate(losses)]
    assert diagnose(rows) == []


@given(positive, positive, st.floats(0.01, 0.99))
def test_the_balancing_weights_give_the_target_share_exactly(static, dynamic, target):
    alpha, beta = balancing_weights(static, dynamic, target)
    assert alpha + beta == pytest.approx(1)
    assert alpha * static / (alpha * static + beta * dynamic) == pytest.approx(target)


@given(st.lists(st.dictionaries(st.sampled_from(sorted(joint_row(0))[1:]), st.floats()), max_size=6))
def test_any_numbers_in_any_columns_are_diagnosed_without_an_error(rows):
    numbered = [row | {"epoch": epoch} for epoch, row in enumerate(rows)]
    diagnose(numbered, config=tiny_config())
    verdict(numbered)
