"""The fixed evaluation protocol: the same for all trials, and its skills against baselines computed naively."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from model.batches import Batch
from model.config import TrainConfig
from model.data.clips import load_clips
from model.evaluate import Evaluator, protocol_masks
from model.losses import Losses, in_order, mse, patchify, targets
from model.mae import JointTactileMAE
from model.sinks import Event
from model.trainer import Trainer
from tests.metric_names import EVAL
from tests.tiny import tiny_config
from tests.watching import frames_of, watch

MANY_HELD_OUT = {
    "eval_fraction": 0.9,
    "eval_clips": 100,
    "synthetic": {"frames": 16},
}  # a batch of 64 and a smaller one


class Protocol:
    """The evaluation of a config's held-out clips, set up without a trainer."""

    def __init__(self, config: TrainConfig) -> None:
        clips = load_clips(config.data)
        self.held_out = torch.from_numpy(clips.held_out.gather(torch.arange(len(clips.held_out)).numpy()))
        mean, std = torch.from_numpy(clips.mean), torch.from_numpy(clips.std)

        def normalised(frames: torch.Tensor) -> torch.Tensor:
            return patchify((frames - mean) / std, config.encoder.patch)

        self.patches = normalised(self.held_out / 255)  # [clips, N, 4, P]
        self.mean_patches = normalised(torch.from_numpy(clips.mean_frame)[None, None])[0, :, 0]
        self._evaluator = Evaluator(config, clips.held_out, self.load, self.mean_patches)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        return self._evaluator(model, self.load)

    def load(self, ids: torch.Tensor) -> Batch:
        return Batch(self.patches[ids], ids % 2)


class Guess(nn.Module):
    """No model: predicts by a rule. Keeps what it was asked."""

    def __init__(self, rule) -> None:
        super().__init__()
        self._rule = rule
        self.asked: list[tuple[torch.Tensor, torch.Tensor, int]] = []
        self.sensors: list[torch.Tensor] = []

    def forward(self, patches, static_order, dynamic_order, num_visible, sensors) -> Losses:
        self.sensors.append(sensors)
        self.asked.append((static_order, dynamic_order, num_visible))
        return self._rule(patches, static_order[:, num_visible:])


def evaluated(config: TrainConfig, weights: dict[str, torch.Tensor]) -> dict[str, float]:
    """The eval row of an epoch of a trainer whose weights stay what they are."""
    trainer = Trainer(config)
    trainer.model.load_state_dict(weights)

    def restore(model, inputs):
        if not model.training:
            model.load_state_dict(weights)

    trainer.model.register_forward_pre_hook(restore)
    row: Event = list(trainer.run_epoch())[-1]
    return {name: row.values[name] for name in EVAL}


@pytest.mark.parametrize(
    "changes",
    [
        {"mask_ratio": 0.4},
        {"batch_size": 5, "accum_iter": 3},
        {"seed": 9},
        {"alpha": 0.9, "beta": 2.0},
        {"base_lr": 0.3, "epochs": 5, "weight_decay": 0.0},
        {"data": {"hflip": 1.0, "vflip": 1.0, "clips_per_epoch": 20}},
    ],
)
def test_equal_weights_have_equal_numbers_whatever_the_trial_trains_with(changes):
    weights = JointTactileMAE(tiny_config(), seed=4).state_dict()
    assert evaluated(tiny_config(**changes), weights) == evaluated(tiny_config(), weights)


def test_three_quarters_are_masked_by_orders_that_no_trial_changes():
    asked = []
    for config in (tiny_config(mask_ratio=0.3, seed=1), tiny_config(seed=2), tiny_config(batch_size=3)):
        guess = Guess(lambda *_: Losses(*torch.ones(3)))
        Protocol(config)(guess)
        asked.append(guess.asked)
    for (static, dynamic, visible), *others in zip(*asked, strict=True):
        assert visible == 4  # of 16
        assert not torch.equal(static, dynamic)
        assert all(torch.equal(static, s) and torch.equal(dynamic, d) and visible == v for s, d, v in others)


def test_the_masks_are_the_same_in_every_process_whatever_was_drawn_before():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        before = protocol_masks(8, 16)
        torch.manual_seed(2)
        after = protocol_masks(8, 16)
    assert all(
        torch.equal(torch.as_tensor(one), torch.as_tensor(other)) for one, other in zip(before, after, strict=True)
    )


def test_each_clip_is_evaluated_with_its_own_sensor():
    guess = Guess(lambda *_: Losses(*torch.ones(3)))
    Protocol(tiny_config())(guess)
    assert torch.cat(guess.sensors).tolist() == [0, 1] * 4


def test_held_out_clips_are_evaluated_in_order_without_flips():
    trainer = Trainer(tiny_config(data={"hflip": 1.0, "vflip": 1.0}))
    calls = watch(trainer)
    list(trainer.run_epoch())
    held_out = torch.from_numpy(trainer.clips.held_out.gather(torch.arange(8).numpy()))
    assert torch.equal(torch.cat([frames_of(call, trainer) for call in calls.evaluation]), held_out)


def test_losses_are_means_over_all_clips_also_in_several_batches():
    config = tiny_config(data=MANY_HELD_OUT)
    protocol = Protocol(config)
    guess = Guess(lambda patches, _: Losses(*(patches[:, :, t].square().mean() for t in (0, 1, 3))))
    row = protocol(guess)
    assert [len(static) for static, _, _ in guess.asked] == [64, 36]
    orders = torch.cat([torch.cat((static, dynamic)) for static, dynamic, _ in guess.asked])
    assert len({tuple(order) for order in orders.tolist()}) == 200  # every clip has masks of its own
    wanted = [protocol.patches[:, :, t].double().square().mean().item() for t in (0, 1, 3)]
    assert [row["eval/loss_static"], row["eval/loss_recon"], row["eval/loss_pred"]] == pytest.approx(wanted, rel=1e-5)


def test_the_row_keeps_its_identities():
    row = Protocol(tiny_config())(JointTactileMAE(tiny_config()))
    assert tuple(row) == EVAL
    assert row["eval/loss_dynamic"] == row["eval/loss_recon"] + row["eval/loss_pred"]
    assert row["eval/reference_loss"] == 0.5 * row["eval/loss_static"] + 0.5 * row["eval/loss_dynamic"]


@pytest.mark.parametrize("norm_pix", [False, True], ids=["pixels", "normalised"])
@pytest.mark.parametrize("data", [{}, MANY_HELD_OUT], ids=["one batch", "two batches"])
def test_skills_compare_with_the_mean_frame_and_with_a_copy_of_frame_3(data, norm_pix):
    protocol = Protocol(tiny_config(data=data, norm_pix_loss=norm_pix))
    wanted = targets(protocol.patches, norm_pix)
    guess = Guess(lambda *_: Losses(*torch.tensor([0.5, 0.25, 0.125])))
    row = protocol(guess)
    errors = []
    for clip, order in enumerate(torch.cat([static for static, _, _ in guess.asked])):
        for patch in order[4:].tolist():
            mean = targets(protocol.mean_patches[patch], norm_pix)
            errors += (wanted[clip, patch, 0] - mean).square().tolist()
    mean_frame = math.fsum(errors) / len(errors)
    copied = (wanted[:, :, 2] - wanted[:, :, 3]).double().square().mean().item()
    assert row["eval/static_skill"] == pytest.approx(1 - 0.5 / mean_frame, rel=1e-5)
    assert row["eval/pred_skill"] == pytest.approx(1 - 0.125 / copied, rel=1e-5)


def test_the_baselines_themselves_have_no_skill_and_perfection_has_all_of_it():
    protocol = Protocol(tiny_config())

    def baseline(patches, masked):
        mean = in_order(protocol.mean_patches.expand(len(patches), -1, -1), masked)
        static = mse(mean, in_order(patches[:, :, 0], masked))
        return Losses(static, static, mse(patches[:, :, 2], patches[:, :, 3]))

    row = protocol(Guess(baseline))
    assert [row["eval/static_skill"], row["eval/pred_skill"]] == pytest.approx([0, 0], abs=1e-6)
    row = protocol(Guess(lambda *_: Losses(*torch.zeros(3))))
    assert [row["eval/static_skill"], row["eval/pred_skill"]] == [1, 1]


def test_evaluation_changes_neither_the_weights_nor_the_training_mode():
    model = JointTactileMAE(tiny_config())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Protocol(tiny_config())(model)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
