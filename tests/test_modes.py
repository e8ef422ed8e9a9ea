"""What an update minimises, and how: modes, masks, precision, averaging, compilation."""

from __future__ import annotations

import math

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from model.errors import ConfigError
from model.sinks import History
from model.trainer import Trainer
from tests.metric_names import BATCH
from tests.tiny import tiny_config
from tests.watching import comparable, watch

DYNAMIC = {"loss_dynamic", "loss_recon", "loss_pred", "weighted_dynamic", "dynamic_contribution"}
STATIC = {"loss_static", "weighted_static", "static_contribution"}


def history(trainer: Trainer) -> History:
    rows = History()
    for event in trainer.train():
        rows.log(event)
    return rows


def missing(row) -> set[str]:
    return {name.removeprefix("batch/") for name in BATCH if name not in row}


@pytest.mark.parametrize(
    ("mode", "modes", "absent"),
    [
        ("joint", [2] * 6, [set()] * 6),
        ("static", [0] * 6, [DYNAMIC | {"loss_ratio"}] * 6),
        ("dynamic", [1] * 6, [STATIC | {"loss_ratio"}] * 6),
        ("alternating", [0, 1] * 3, [DYNAMIC | {"loss_ratio"}, STATIC | {"loss_ratio"}] * 3),
    ],
)
def test_rows_hold_the_losses_of_their_mode_and_no_others(mode, modes, absent):
    rows = history(Trainer(tiny_config(mode=mode, epochs=1))).batch
    assert [row["batch/mode"] for row in rows] == modes
    assert [missing(row) for row in rows] == absent
    for row in rows:
        parts = [row.get("batch/weighted_static", 0), row.get("batch/weighted_dynamic", 0)]
        assert row["batch/loss_total"] == sum(parts)
        assert all(math.isfinite(value) for value in row.values())


def test_the_alternating_baseline_has_the_contributions_of_an_epoch_and_no_ratio():
    [row] = history(Trainer(tiny_config(mode="alternating", alpha=0.3, epochs=1))).epoch
    static, dynamic = 0.3 * row["epoch/loss_static"], 0.7 * row["epoch/loss_dynamic"]
    assert row["epoch/actual_static_contribution"] == pytest.approx(static / (static + dynamic))
    assert "epoch/loss_ratio" not in row
    assert math.isfinite(row["eval/reference_loss"])


@pytest.mark.parametrize(("mode", "passes"), [("joint", 2), ("static", 1), ("dynamic", 1)])
def test_a_branch_that_is_not_trained_is_not_computed(mode, passes):
    trainer = Trainer(tiny_config(mode=mode, epochs=1))
    clips: list[int] = []
    trainer.model.encoder.register_forward_hook(lambda module, inputs, out: clips.append(len(out)))
    calls = watch(trainer)
    list(trainer.run_epoch())
    assert set(clips[: len(calls.training)]) == {passes * 8}


@pytest.mark.parametrize("mode", ["static", "dynamic", "alternating"])
def test_a_mode_goes_on_to_the_last_bit(mode):
    config = tiny_config(mode=mode)
    whole = comparable(list(Trainer(config).train()))
    part = Trainer(config)
    events = part.train()
    done = comparable([next(events) for _ in range(3)])
    rest = Trainer(config)
    rest.load_state_dict(part.state_dict())
    assert done + comparable(list(rest.train())) == whole


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"mode": "static", "alpha": 0.0}, "mode = 'static', but alpha = 0"),
        ({"mode": "alternating", "alpha": 1.0}, "mode = 'alternating', but beta = 0"),
        ({"mode": "static", "weighting": "famo"}, "mode = 'static' computes one"),
        ({"weighting": "uncertainty", "alpha": 1.0}, "both must be above 0"),
    ],
)
def test_modes_and_weights_that_do_not_go_together_are_refused(changes, fault):
    with pytest.raises(ValueError, match=fault):
        tiny_config(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"mask_kind": "block"},
        {"norm_pix_loss": True},
        {"ema_decay": 0.9},
        {"layer_decay": 0.7},
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"encoder": {"grad_checkpointing": True}},
        {"encoder": {"static_embed": "frame"}},
        {"encoder": {"sensors": ["default"], "sensor_tokens": 2}},
    ],
    ids=str,
)
def test_every_way_of_training_learns_and_goes_on_to_the_last_bit(changes):
    config = tiny_config(epochs=4, **changes)
    events = comparable(list(Trainer(config).train()))
    epochs = [row for level, row in events if level == "epoch"]
    assert epochs[-1]["epoch/train_loss"] < epochs[0]["epoch/train_loss"]
    part = Trainer(config)
    running = part.train()
    done = comparable([next(running) for _ in range(9)])  # in the second epoch
    rest = Trainer(config)
    rest.load_state_dict(part.state_dict())
    assert done + comparable(list(rest.train())) == events


def test_the_average_of_the_weights_is_judged_and_follows_its_formula():
    trainer = Trainer(tiny_config(ema_decay=0.8, epochs=1))
    after: list[torch.Tensor] = []
    handle = register_optimizer_step_post_hook(
        lambda *_: after.append(trainer.model.static_head.weight.detach().clone())
    )
    try:
        list(trainer.run_epoch())
    finally:
        handle.remove()
    average = after[0]
    for weight in after[1:]:
        average = 0.8 * average + 0.2 * weight
    assert torch.allclose(trainer.judged.static_head.weight, average, atol=1e-6)
    assert not torch.allclose(trainer.model.static_head.weight, average, atol=1e-4)


def test_with_an_average_the_evaluation_is_of_the_average():
    plain, averaged = (history(Trainer(tiny_config(ema_decay=decay))).epoch[-1] for decay in (None, 0.8))
    assert plain["epoch/train_loss"] == averaged["epoch/train_loss"]
    assert plain["eval/reference_loss"] != averaged["eval/reference_loss"]


def test_activation_checkpointing_changes_no_number():
    plain = comparable(list(Trainer(tiny_config()).train()))
    saving = comparable(list(Trainer(tiny_config(encoder={"grad_checkpointing": True})).train()))
    assert plain == saving


def test_low_precision_starts_near_the_exact_loss():
    rows = {p: history(Trainer(tiny_config(precision=p, epochs=1))).batch[0] for p in ("fp32", "bf16", "fp16")}
    for low in ("bf16", "fp16"):
        assert rows[low]["batch/loss_total"] == pytest.approx(rows["fp32"]["batch/loss_total"], rel=0.02)
        assert rows[low] != rows["fp32"]


def test_a_sensor_that_the_config_does_not_name_is_refused():
    with pytest.raises(ConfigError, match=r"encoder.sensors = \['digit'\] does not name 'default'.*\[digit, default\]"):
        Trainer(tiny_config(encoder={"sensors": ["digit"]}))


def test_sensors_are_hidden_more_and_more_often_and_never_in_evaluation():
    config = tiny_config(epochs=6, encoder={"sensors": ["default", "other"], "unknown_sensor": [0.0, 1.0]})
    trainer = Trainer(config)
    calls = watch(trainer)
    list(trainer.train())
    hidden = [(call.sensors == 2).float().mean().item() for call in calls.training]
    assert hidden[0] == 0
    assert hidden[-1] == 1
    assert sum(hidden[:12]) < sum(hidden[12:24]) < sum(hidden[24:])
    assert {int(s) for call in calls.evaluation for s in call.sensors} == {0}


def test_compiling_without_a_compiler_is_refused_before_anything_starts(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match="compile = true needs a C\\+\\+ compiler"):
        Trainer(tiny_config(compile=True))


@pytest.mark.process  # inductor's compiler
@pytest.mark.needs("compiler")
def test_a_compiled_model_gives_the_same_rows_and_compiles_once_over_lr_alpha_and_beta():
    # torch names these with an underscore, and has no other way to ask how often it compiled
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain = history(Trainer(tiny_config(weighting="famo"))).batch
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = history(Trainer(tiny_config(weighting="famo", compile=True))).batch
        other = history(Trainer(tiny_config(alpha=0.2, base_lr=0.01, compile=True))).batch
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    for row, reference in zip(compiled, plain, strict=True):
        assert row["batch/loss_total"] == pytest.approx(reference["batch/loss_total"], rel=1e-3)
    assert len(other) == len(plain)
