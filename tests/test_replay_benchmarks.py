"""The benchmarks on the replay table: their statistics, their arms, and that they run on a small made-up table."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from sweep.replay_table import ReplayTable
from tests.replaying import EPOCHS, made_up_rows, write_table

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture(scope="module")
def scripts():
    """Imports a script by its name, as a script finds its neighbours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A made-up table with the probes' columns."""
    rows = list(made_up_rows())
    for row in rows:
        skill = 1 - row["eval/loss_static"] / 10
        probes = {"probe_shape_balanced": skill, "probe_slip_balanced": 1 - skill, "probe_size_balanced": skill**2}
        row |= {"epoch/train_loss": row["epoch/loss_static"], "eval/static_skill": skill, "eval/pred_skill": skill}
        row |= {"eval/loss_dynamic": row["eval/loss_recon"] + row["eval/loss_pred"]}
        row |= probes if row["epoch"] == EPOCHS - 1 else {}
    return write_table(tmp_path_factory.mktemp("table") / "replay_procedural.csv", rows)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=20))
def test_rank_correlation_is_spearmans_with_ties(scripts, pairs):
    sample = np.array(pairs, dtype=float)
    found = scripts("evidence_text").spearman(sample)
    if len(set(sample[:, 0])) == 1 or len(set(sample[:, 1])) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(spearmanr(*sample.T).statistic)


def test_an_interval_holds_the_statistic_and_narrows_with_the_sample(scripts):
    interval = scripts("evidence_text").interval
    sample = np.random.default_rng(1).standard_normal(400)
    (low, high), (low_few, high_few) = (interval(s, lambda r: r.mean(axis=-1)) for s in (sample, sample[:20]))
    assert low < sample.mean() < high
    assert high - low < high_few - low_few
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.2)


def test_the_ready_spec_takes_every_arm(scripts):
    arms, refusal = scripts("bench_search").ARMS, scripts("replay_arms").refusal
    assert {key: refusal(arm, "procedural") for key, arm in arms.items()} == dict.fromkeys(arms)


@pytest.mark.parametrize("key", ["random", "stock", "stock-presets", "ours", "tpe-median"])
def test_a_search_keeps_to_its_budget_and_its_picks_get_better(scripts, table, key):
    arm, search = scripts("bench_search").ARMS[key], scripts("replay_arms").search
    picks = search(arm, "procedural", table, 0, 120)
    assert picks == search(arm, "procedural", table, 0, 120)
    assert all(pick.spent <= 120 for pick in picks)
    seen = [pick.seen for pick in picks]
    assert seen == sorted(seen, reverse=True)
    assert all(pick.true == pytest.approx(pick.seen, rel=0.1) for pick in picks)


def test_a_target_that_is_never_reached_costs_more_than_any_budget(scripts):
    bench, pick = scripts("bench_search"), scripts("replay_arms").Pick
    picks = [pick(8, seen=0.9, true=0.95), pick(24, seen=0.7, true=0.75)]
    assert bench.reached(picks, pick(512, seen=0.8, true=0.8), lambda p: p.true) == 24
    assert bench.reached(picks, pick(512, seen=0.6, true=0.6), lambda p: p.true) == math.inf
    assert bench.value_after(picks, 23) == 0.95
    assert bench.value_after(picks, 7) == math.inf


def test_objectives_that_follow_a_probe_correlate_with_it_and_others_do_not(scripts, table):
    text = scripts("bench_objective").report("procedural", ReplayTable.load(table))
    loss = next(line for line in text.splitlines() if line.startswith("| held-out static loss"))
    shape, slip = loss.split("|")[2:4]
    assert shape.strip().startswith("1.00")
    assert slip.strip().startswith("-1.00")


def test_an_epoch_foretells_the_last_one_where_all_fall_alike(scripts, table):
    row = scripts("bench_early_stopping").foretelling("procedural", ReplayTable.load(table))
    assert len(row) == EPOCHS
    assert all(float(cell.split()[0]) > 0.9 for cell in row)


def test_early_stopping_is_told_by_shares(scripts, table):
    source, min_iter, shares = scripts("bench_early_stopping").work(("procedural", table, 2, 0))
    assert (source, min_iter) == ("procedural", 2)
    assert all(0 <= share <= 1 for share in shares)
    assert shares[-1] < 1  # some epochs were saved
