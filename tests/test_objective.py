"""sweep/objective.py: the objective's value and parts, on rows made here."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.objective import Objective, ObjectiveSettings, relative_spread, score

REFERENCE = ObjectiveSettings()


def epoch_row(epoch, reference=1.0, train=1.0, share=0.5):
    row = {"epoch": epoch, "epoch/train_loss": train, "eval/reference_loss": reference}
    return row if share is None else row | {"epoch/actual_static_contribution": share}


def batch_rows(epoch, ratios):
    return [{"batch/epoch": epoch, "batch/loss_total": 1.0, "batch/loss_ratio": ratio} for ratio in ratios]


@st.composite
def histories(draw, max_epochs=5):
    """(epoch rows, batch rows) of a trial whose losses are finite."""
    positive = st.floats(1e-3, 1e3)
    epochs, batches = [], []
    for epoch in range(draw(st.integers(1, max_epochs))):
        epochs.append(epoch_row(epoch, draw(positive), draw(positive), draw(st.none() | st.floats(0, 1))))
        batches += batch_rows(epoch, draw(st.lists(positive, max_size=4)))
    return epochs, batches


all_settings = st.builds(
    ObjectiveSettings,
    loss=st.sampled_from(["reference", "train"]),
    contribution_weight=st.floats(0, 10),
    ratio_weight=st.floats(0, 10),
    target=st.floats(0.01, 0.99),
    settle_epochs=st.integers(0, 4),
)


def test_the_value_is_the_loss_plus_the_weighted_parts_worked_by_hand():
    epochs = [epoch_row(0, 9.0, share=0.9), epoch_row(1, 2.0, share=0.7), epoch_row(2, 3.0, share=0.4)]
    batches = batch_rows(0, [1, 9]) + batch_rows(1, [1, 3]) + batch_rows(2, [2, 2])
    assert score(epochs, batches, ObjectiveSettings(contribution_weight=2, ratio_weight=4)) == pytest.approx(
        {
            "objective/loss": 2.0,  # the best so far, not the last
            "objective/imbalance": (0.2 + 0.1) / 2,  # the first epoch is not settled
            "objective/instability": (1 / 2 + 0) / 2,  # std 1, mean 2; then constant
            "objective/value": 2.0 + 2 * 0.15 + 4 * 0.25,
        }
    )


def test_the_first_epoch_counts_while_it_is_the_only_one():
    epochs, batches = [epoch_row(0, share=0.9), epoch_row(1, share=0.6)], batch_rows(0, [1, 3]) + batch_rows(1, [5])
    first = score(epochs[:1], batches, REFERENCE)
    assert (first["objective/imbalance"], first["objective/instability"]) == pytest.approx((0.4, 0.5))
    both = score(epochs, batches, REFERENCE)
    assert (both["objective/imbalance"], both["objective/instability"]) == pytest.approx((0.1, 0.0))


def test_with_no_settled_epoch_yet_the_last_one_counts_alone():
    epochs = [epoch_row(0, share=0.9), epoch_row(1, share=0.8)]
    assert score(epochs, [], ObjectiveSettings(settle_epochs=3))["objective/imbalance"] == pytest.approx(0.3)


def test_with_settle_epochs_zero_every_epoch_counts():
    epochs = [epoch_row(0, share=0.9), epoch_row(1, share=0.7)]
    assert score(epochs, [], ObjectiveSettings(settle_epochs=0))["objective/imbalance"] == pytest.approx(0.3)


def test_the_imbalance_is_the_distance_to_the_target_on_either_side_of_it():
    for share, distance in ((0.3, 0.4), (0.7, 0.0), (0.8, 0.1)):
        parts = score([epoch_row(0, share=share)], [], ObjectiveSettings(target=0.7))
        assert parts["objective/imbalance"] == pytest.approx(distance)


def test_loss_train_takes_the_best_training_loss():
    epochs = [epoch_row(0, reference=1, train=7), epoch_row(1, reference=2, train=5), epoch_row(2, train=6)]
    assert score(epochs, [], ObjectiveSettings(loss="train"))["objective/loss"] == 5


def test_a_part_without_input_is_absent_and_counts_nothing():
    assert score([epoch_row(0, 3.0, share=None)], [], REFERENCE) == {"objective/value": 3.0, "objective/loss": 3.0}


def test_a_weight_of_zero_keeps_the_part_and_leaves_it_out_of_the_value():
    got = score([epoch_row(0, 3.0, share=1.0)], batch_rows(0, [0, 0]), ObjectiveSettings(contribution_weight=0))
    assert got["objective/imbalance"] == 0.5
    assert got["objective/instability"] == 0.0  # of a ratio that is always 0
    assert got["objective/value"] == 3.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("settings", [REFERENCE, ObjectiveSettings(contribution_weight=0, ratio_weight=0)])
def test_objective_of_a_diverged_trial_has_no_value_and_says_why(bad, settings):
    objective = Objective(settings)
    objective.end_epoch(epoch_row(0))
    assert objective.diverged is None
    objective.add_batch({"batch/epoch": 1, "batch/loss_total": bad, "batch/loss_ratio": 1.0})
    later = [objective.end_epoch(epoch_row(1)), objective.end_epoch(epoch_row(2))]
    assert all(math.isnan(row["objective/value"]) and row.keys() == {"objective/value"} for row in later)
    assert objective.diverged == f"batch/loss_total = {bad} in epoch 1"


def test_a_non_finite_evaluation_diverges_too():
    objective = Objective(REFERENCE)
    assert math.isnan(objective.end_epoch(epoch_row(0, reference=math.nan))["objective/value"])
    assert "eval/reference_loss" in (objective.diverged or "")


def test_our_own_values_in_a_replayed_row_are_no_input():
    row = epoch_row(0, 3.0) | {"objective/value": math.nan}
    assert score([row], [], REFERENCE)["objective/loss"] == 3.0


def test_there_is_no_objective_before_the_first_epoch_ends():
    with pytest.raises(ValueError, match="no epoch has ended"):
        score([], batch_rows(0, [1]), REFERENCE)


@pytest.mark.parametrize(
    "wrong", [{"target": 0}, {"target": 1}, {"ratio_weight": -1}, {"contribution_weight": math.nan}, {"los": "train"}]
)
def test_settings_outside_their_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ObjectiveSettings(**wrong)


@given(histories(), all_settings)
def test_value_is_the_sum_of_its_weighted_parts(history, settings):
    got = score(*history, settings)
    parts = settings.contribution_weight * got.get("objective/imbalance", 0)
    parts += settings.ratio_weight * got.get("objective/instability", 0)
    assert got["objective/value"] == pytest.approx(got["objective/loss"] + parts)


@given(histories(), all_settings, st.integers(1, 5))
def test_the_score_after_e_epochs_depends_on_those_only(history, settings, count):
    epochs, batches = history
    seen = [row for row in batches if row["batch/epoch"] < count]
    assert score(epochs[:count], batches, settings) == score(epochs[:count], seen, settings)


@given(histories(), all_settings)
def test_fed_row_by_row_it_equals_the_score_of_every_prefix(history, settings):
    epochs, batches = history
    objective = Objective(settings)
    for count, row in enumerate(epochs, start=1):
        for batch in batches:
            if batch["batch/epoch"] == row["epoch"]:
                objective.add_batch(batch)
        assert objective.end_epoch(row) == score(epochs[:count], batches, settings)


@given(histories(), all_settings, st.randoms(use_true_random=False))
def test_the_order_of_an_epochs_batches_does_not_matter(history, settings, random):
    epochs, batches = history
    shuffled = random.sample(batches, len(batches))
    assert score(epochs, shuffled, settings) == pytest.approx(score(epochs, batches, settings))


@given(histories(), all_settings, st.floats(0.1, 10))
def test_scaling_every_loss_scales_the_loss_part_only(history, settings, c):
    # ratios and contributions are quotients of losses, so a common factor leaves them as they are
    epochs, batches = history
    losses = ("epoch/train_loss", "eval/reference_loss")
    scaled = [row | {name: c * row[name] for name in losses} for row in epochs]
    before, after = score(epochs, batches, settings), score(scaled, batches, settings)
    assert after.pop("objective/loss") == pytest.approx(c * before.pop("objective/loss"))
    del after["objective/value"], before["objective/value"]
    assert after == before


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20))
def test_relative_spread_is_population_std_over_mean(ratios):
    expected = statistics.pstdev(ratios) / statistics.fmean(ratios)
    assert relative_spread(ratios) == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.floats(0, 1e308), min_size=1, max_size=5))
def test_relative_spread_is_finite_and_at_most_that_of_one_outlier(ratios):
    assert 0 <= relative_spread(ratios) <= math.sqrt(len(ratios) - 1) + 1e-9
