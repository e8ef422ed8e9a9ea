"""alpha and beta that move: where they settle, and that they are what the rows say."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.optimizer import register_optimizer_step_pre_hook

from model.sinks import History
from model.trainer import Trainer
from model.weighting import Famo, Uncertainty
from tests.metric_names import BATCH, EPOCH
from tests.tiny import tiny_config

MOVING = ["uncertainty", "famo"]
losses_of = st.lists(st.floats(0.01, 10), min_size=2, max_size=2).map(torch.tensor)


def history(trainer: Trainer) -> History:
    rows = History()
    for event in trainer.train():
        rows.log(event)
    return rows


@given(losses=losses_of)
def test_uncertainty_settles_where_both_losses_contribute_alike(losses):
    weighting = Uncertainty(torch.tensor([0.5, 0.5]))
    for _ in range(1500):
        weighting.step(losses, None)
    alpha, beta = weighting.weights(losses).tolist()
    assert alpha == pytest.approx(1 / (2 * losses[0].item()), rel=0.05)
    assert beta == pytest.approx(1 / (2 * losses[1].item()), rel=0.05)


@given(alpha=st.floats(0.05, 0.95), losses=losses_of)
def test_uncertainty_starts_at_the_given_weights(alpha, losses):
    start = torch.tensor([alpha, 1 - alpha])
    assert torch.allclose(Uncertainty(start).weights(losses), start)


def gradient_of(step: Callable[[], None]) -> torch.Tensor:
    """What the optimiser of a weighting is given in this step."""
    given = []
    handle = register_optimizer_step_pre_hook(
        lambda optimiser, *_: given.append(optimiser.param_groups[0]["params"][0].grad.clone())
    )
    step()
    handle.remove()
    [gradient] = given
    return gradient


def test_the_gradient_of_uncertainty_is_that_of_the_papers_loss():
    s = torch.tensor([0.3, -0.7], requires_grad=True)
    losses = torch.tensor([0.8, 0.2])
    (torch.exp(-s) / 2 * losses + s / 2).sum().backward()
    weighting = Uncertainty(torch.exp(-s.detach()) / 2)
    assert torch.allclose(gradient_of(lambda: weighting.step(losses, None)), s.grad)


@given(alpha=st.floats(0.05, 0.95), losses=losses_of)
def test_famo_weights_logarithms_of_losses_and_sums_to_one(alpha, losses):
    z = torch.tensor([alpha, 1 - alpha])
    weights = Famo(z).weights(losses)
    assert weights.sum().item() == pytest.approx(1, rel=1e-5)
    assert (weights[0] / weights[1]).item() == pytest.approx((z / losses)[0].item() / (z / losses)[1].item(), rel=1e-3)


def test_the_gradient_of_famo_is_the_softmaxs_jacobian_times_the_fall_of_the_logarithms():
    before, after = torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.9])
    w = torch.tensor([0.4, 0.6]).log().requires_grad_()
    fell = before.log() - after.log()
    (torch.softmax(w, 0) * fell).sum().backward()
    famo = Famo(torch.tensor([0.4, 0.6]))
    assert torch.allclose(gradient_of(lambda: famo.step(before, after)), w.grad, atol=1e-6)


def test_famo_turns_to_the_loss_that_falls_more_slowly():
    famo = Famo(torch.tensor([0.5, 0.5]))
    for _ in range(50):
        famo.step(torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.99]))
    alpha, beta = famo.weights(torch.tensor([1.0, 1.0])).tolist()
    assert beta > 0.6 > alpha


@pytest.mark.parametrize("weighting", MOVING)
def test_rows_tell_the_weights_that_each_update_was_made_with(weighting):
    rows = history(Trainer(tiny_config(weighting=weighting, alpha=0.6, accum_iter=2, epochs=3)))
    assert all(tuple(row) == BATCH for row in rows.batch)
    assert all(set(EPOCH) <= row.keys() for row in rows.epoch)
    assert len({row["batch/alpha"] for row in rows.batch}) == len(rows.batch)  # they move
    for row in rows.batch:
        total = row["batch/alpha"] * row["batch/loss_static"] + row["batch/beta"] * row["batch/loss_dynamic"]
        assert row["batch/loss_total"] == pytest.approx(total, rel=1e-9)
        assert row["batch/static_contribution"] + row["batch/dynamic_contribution"] == pytest.approx(1)
    assert all(math.isfinite(value) for row in rows.batch for value in row.values())


def test_uncertainty_brings_the_contributions_together():
    rows = history(Trainer(tiny_config(weighting="uncertainty", alpha=0.9, epochs=20))).epoch
    first, last = (abs(row["epoch/actual_static_contribution"] - 0.5) for row in (rows[0], rows[-1]))
    assert first > 0.25 > 0.1 > last


@pytest.mark.parametrize("weighting", MOVING)
def test_a_run_with_moving_weights_goes_on_to_the_last_bit(weighting):
    config = tiny_config(weighting=weighting)
    whole = history(Trainer(config)).batch
    part = Trainer(config)
    events = part.train()
    done = [next(events).values for _ in range(4)]
    rest = Trainer(config)
    rest.load_state_dict(part.state_dict())
    assert done + history(rest).batch == whole
