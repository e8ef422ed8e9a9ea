"""Replayed trials: the surface foretells what it has not seen, the noise is a real trial's, bad tables are refused."""

from __future__ import annotations

import gzip
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model import metrics
from model.errors import UserError
from sweep.objective import ObjectiveSettings
from sweep.replay import REPLAYED, Replay
from sweep.replay_table import MEASURED, ReplayTable
from tests.replaying import EPOCHS, losses, made_up_rows, write_table

SETTINGS = ObjectiveSettings()
ROWS = list(made_up_rows())
configs = st.tuples(st.floats(0.1, 0.9), st.floats(0.002, 0.06), st.floats(0.5, 0.9))


@pytest.fixture(scope="module")
def replay(tmp_path_factory):
    return Replay(ReplayTable.load(write_table(tmp_path_factory.mktemp("table") / "table.csv", ROWS)))


def refused(folder, rows):
    with pytest.raises(UserError) as caught:
        ReplayTable.load(write_table(folder / "table.csv", rows))
    return str(caught.value)


def test_a_table_has_its_trials_with_all_epochs(replay):
    table = replay.table
    assert table.configs.shape == (48, 3)
    assert table.logs.shape == (48, EPOCHS, len(MEASURED))
    assert table.points.tolist() == [point for point in range(24) for _ in range(2)]
    assert table.columns["eval/loss_pred"][3, 2] == pytest.approx(ROWS[3 * EPOCHS + 2]["eval/loss_pred"])


def test_a_compressed_table_is_the_same_table(tmp_path):
    plain = write_table(tmp_path / "table.csv", ROWS)
    packed = tmp_path / "table.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert np.array_equal(ReplayTable.load(plain).logs, ReplayTable.load(packed).logs)


def test_the_surface_foretells_configs_that_it_has_not_seen(replay):
    assert min(r2.min() for r2 in replay.r2.values()) > 0.9
    rows = replay.trial(0.45, 0.015, 0.7, SETTINGS)
    for epoch, row in enumerate(rows):
        assert row["eval/loss_static"] == pytest.approx(losses(0.45, 0.015, 0.7, epoch)["eval/loss_static"], rel=0.03)


@given(config=configs, noise=st.none() | st.integers(0, 2**31))
def test_replayed_metrics_obey_their_formulas(replay, config, noise):
    alpha = config[0]
    for epoch, row in enumerate(replay.trial(*config, SETTINGS, noise)):
        assert row["epoch"] == epoch
        assert all(math.isfinite(value) for value in row.values())
        static, dynamic = row["epoch/loss_static"], row["epoch/loss_dynamic"]
        assert row["epoch/train_loss"] == pytest.approx(alpha * static + (1 - alpha) * dynamic)
        assert row["epoch/actual_static_contribution"] == pytest.approx(alpha * static / row["epoch/train_loss"])
        assert row["eval/loss_dynamic"] == row["eval/loss_recon"] + row["eval/loss_pred"]
        assert row["eval/reference_loss"] == 0.5 * row["eval/loss_static"] + 0.5 * row["eval/loss_dynamic"]
        parts = [row[f"objective/{part}"] for part in ("loss", "imbalance", "instability")]
        assert row["objective/value"] == pytest.approx(parts[0] + 0.5 * parts[1] + 0.5 * parts[2])


def test_the_spread_of_the_batch_ratios_is_the_replayed_one(replay):
    last = replay.trial(0.5, 0.02, 0.6, ObjectiveSettings(settle_epochs=EPOCHS - 1))[-1]
    assert last["objective/instability"] == pytest.approx(losses(0.5, 0.02, 0.6, 0)["ratio_spread"], rel=0.03)


def test_what_is_replayed_is_named_as_the_metrics_are(replay):
    row = replay.trial(0.5, 0.02, 0.6, SETTINGS)[0]
    assert {"epoch", *REPLAYED} == row.keys()
    assert set(REPLAYED) <= {metric.name for metric in metrics.ALL}


def test_noise_is_a_whole_deviation_of_one_trial_and_the_same_for_the_same_number(replay):
    quiet = replay.trial(0.5, 0.02, 0.6, SETTINGS)
    noisy = replay.trial(0.5, 0.02, 0.6, SETTINGS, noise=5)
    assert noisy == replay.trial(0.5, 0.02, 0.6, SETTINGS, noise=5)
    names = ("eval/loss_static", "eval/loss_recon", "epoch/loss_dynamic")
    factors = [math.log(noisy[e][name] / quiet[e][name]) for e in range(EPOCHS) for name in names]
    assert np.std(factors) < 0.005 < 0.03  # the made-up noise is one factor for all epochs and losses
    assert abs(np.mean(factors)) > 1e-4


def test_noise_is_about_as_large_as_the_tables(replay):
    first, second = replay.table.logs[::2, :, 0], replay.table.logs[1::2, :, 0]
    between_seeds = (first - second).std() / math.sqrt(2)
    assert between_seeds < replay.noise[..., 0].std() < 1.5 * between_seeds  # what the surface misses is noise as well


@pytest.mark.parametrize("cell", ["nan", "inf", "", "-1", "0", "much"])
def test_a_cell_that_is_no_loss_is_named_by_line_and_column(tmp_path, cell):
    rows = [dict(row) for row in ROWS]
    rows[10]["eval/loss_pred"] = cell
    message = refused(tmp_path, rows)
    assert "table.csv: line 12, column eval/loss_pred" in message
    assert repr(cell) in message


def test_a_table_without_a_column_says_which(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("point,seed,epoch,alpha,base_lr\n0,0,0,0.5,0.01\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 1 has no column mask_ratio, epoch/loss_static"):
        ReplayTable.load(path)


def test_a_trial_that_lacks_an_epoch_is_named(tmp_path):
    assert "point 1, seed 0 has not the epochs 0 to 7" in refused(tmp_path, ROWS[: 2 * EPOCHS] + ROWS[2 * EPOCHS + 1 :])


def test_too_few_points_make_no_surface(tmp_path):
    assert "has 5 points (configs); a surface needs at least 12" in refused(tmp_path, list(made_up_rows(points=5)))


def test_a_parameter_that_never_changes_makes_no_surface(tmp_path):
    rows = [row | {"mask_ratio": 0.75} for row in ROWS]
    assert "all trials have mask_ratio = 0.75" in refused(tmp_path, rows)


def test_a_trial_that_diverged_is_left_out_and_counted(tmp_path):
    rows = [*ROWS, {"point": 24, "seed": 0, "diverged": "loss = nan in epoch 1"}]
    table = ReplayTable.load(write_table(tmp_path / "table.csv", rows))
    assert table.diverged == 1
    assert len(table.points) == 48


def test_an_absent_or_damaged_file_says_how_to_make_it(tmp_path):
    (tmp_path / "damaged.csv.gz").write_bytes(b"\x1f\x8b no")
    for name in ("absent.csv", "damaged.csv.gz"):
        with pytest.raises(UserError, match="make it with python scripts/make_replay_table"):
            ReplayTable.load(tmp_path / name)
