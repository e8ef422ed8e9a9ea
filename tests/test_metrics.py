"""The metric table against the contract, whose names tests/metric_names.py spells out."""

from __future__ import annotations

from model import metrics
from model.metrics import Level
from tests.metric_names import BATCH, EPOCH, EVAL, FEATURES, OBJECTIVE, SUMMARY


def test_the_16_batch_11_epoch_and_3_summary_names_are_those_of_the_contract():
    assert (len(BATCH), len(EPOCH), len(SUMMARY)) == (16, 11, 3)
    assert metrics.BATCH_NAMES == BATCH
    assert metrics.EPOCH_NAMES == EPOCH
    assert metrics.SUMMARY_NAMES == SUMMARY
    assert tuple(m.name for m in metrics.CONTRACT) == BATCH + EPOCH + SUMMARY


def test_our_own_names_have_their_own_prefixes():
    assert metrics.EVAL_NAMES == EVAL
    assert metrics.OBJECTIVE_NAMES == OBJECTIVE
    assert metrics.FEATURE_NAMES == FEATURES


def test_new_columns_of_an_epoch_come_after_the_old_ones_so_that_old_files_can_be_gone_on_with():
    assert metrics.EPOCH_COLUMNS == EPOCH + EVAL + OBJECTIVE + FEATURES


def test_every_metric_is_listed_once_with_a_meaning():
    names = [m.name for m in metrics.ALL]
    assert len(names) == len(set(names)) == 30 + len(EVAL + OBJECTIVE + FEATURES)
    assert all(m.meaning for m in metrics.ALL)


def test_levels_follow_the_prefixes():
    levels = {m.name: m.level for m in metrics.ALL}
    assert {levels[name] for name in BATCH} == {Level.BATCH}
    assert {levels[name] for name in EPOCH + EVAL + OBJECTIVE + FEATURES} == {Level.EPOCH}
    assert {levels[name] for name in SUMMARY} == {Level.SUMMARY}


def test_step_axes_are_metrics_of_their_level():
    assert metrics.BATCH_STEP in BATCH
    assert metrics.EPOCH_STEP in EPOCH


def test_only_what_needs_a_loss_of_a_branch_may_be_absent():
    always = {m.name for m in metrics.CONTRACT if not m.optional}
    assert always == {
        *("batch/loss_total", "batch/lr", "batch/epoch", "batch/iteration", "batch/alpha", "batch/beta", "batch/mode"),
        *("epoch", "epoch/train_loss", "epoch/lr", "epoch/best_loss_so_far"),
        *SUMMARY,
    }


def test_modes_are_numbered_as_in_the_metric_text():
    assert (metrics.MODE_STATIC, metrics.MODE_DYNAMIC, metrics.MODE_JOINT) == (0, 1, 2)
