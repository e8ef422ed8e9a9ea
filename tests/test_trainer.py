"""The trainer's rows, its determinism, its state, and how it fails."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.optim.optimizer import register_optimizer_step_pre_hook

from model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from model.config import TrainConfig
from model.device import pick_precision
from model.errors import ConfigError
from model.mae import JointTactileMAE
from model.metrics import Level
from model.schedule import lr_at
from model.sinks import Event, History, Row
from model.trainer import NonFiniteLossError, Trainer
from tests.metric_names import BATCH, EPOCH, EVAL, SUMMARY
from tests.tiny import TRAIN_CLIPS, tiny_config, tiny_content
from tests.watching import comparable, frames_of, watch

SHORT_BATCHES = {"batch_size": 7, "accum_iter": 2}  # 7 micro-batches and 1 leftover clip; 3 updates and 1 leftover
TENSORS = ("patches", "static_order", "dynamic_order")  # of a forward pass


def log_all(rows: History, events: Iterator[Event]) -> None:
    for event in events:
        rows.log(event)


def history(trainer: Trainer) -> History:
    rows = History()
    log_all(rows, trainer.train())
    return rows


def updates_done(trainer: Trainer) -> set[int]:
    """Steps that the optimiser counts, over all its parameters."""
    return {int(state["step"]) for state in trainer.state_dict()["optimiser"]["state"].values()}


def mean(values) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


# --- rows ----------------------------------------------------------------------------------------------------------


def test_rows_hold_all_names_of_the_contract():
    rows = history(Trainer(tiny_config()))
    assert all(tuple(row) == BATCH for row in rows.batch)
    assert all(tuple(row) == (*EPOCH, *EVAL, "eval/effective_rank") for row in rows.epoch)
    assert set(rows.summary) == set(SUMMARY)


@st.composite
def weightings(draw: st.DrawFn) -> TrainConfig:
    """Configs of any batch, accumulation, alpha and beta."""
    batch_size = draw(st.integers(3, 20))
    alpha, beta = draw(st.tuples(st.floats(0, 1), st.none()) | st.tuples(st.floats(0, 3), st.floats(0.01, 3)))
    accum_iter = draw(st.integers(1, min(4, TRAIN_CLIPS // batch_size)))
    return tiny_config(batch_size=batch_size, accum_iter=accum_iter, alpha=alpha, beta=beta, epochs=1)


@given(weightings())
@settings(max_examples=15)
def test_identities_hold_in_every_row(config):
    def near(number: float):
        return pytest.approx(number, rel=1e-6)

    alpha, beta = config.alpha, 1 - config.alpha if config.beta is None else config.beta
    for names in history(Trainer(config)).batch:
        row = {name.removeprefix("batch/"): value for name, value in names.items()}
        assert row["loss_dynamic"] == near(row["loss_recon"] + row["loss_pred"])
        assert row["loss_total"] == near(alpha * row["loss_static"] + beta * row["loss_dynamic"])
        assert row["loss_ratio"] == near(row["loss_static"] / row["loss_dynamic"])
        assert row["weighted_static"] == near(alpha * row["loss_static"])
        assert row["weighted_dynamic"] == near(beta * row["loss_dynamic"])
        assert (row["alpha"], row["beta"], row["mode"]) == (alpha, beta, 2)
        assert row["static_contribution"] == near(row["weighted_static"] / row["loss_total"])
        assert row["dynamic_contribution"] == near(row["weighted_dynamic"] / row["loss_total"])
        assert row["static_contribution"] + row["dynamic_contribution"] == near(1)


@pytest.mark.parametrize("changes", [{}, SHORT_BATCHES, {"batch_size": 5, "accum_iter": 3, "epochs": 3}])
def test_every_optimiser_step_has_a_row_numbered_by_the_formula(changes):
    config = tiny_config(**changes)
    trainer = Trainer(config)
    calls = watch(trainer)
    rows = history(trainer).batch
    num_micro_batches = TRAIN_CLIPS // config.batch_size
    formula = {
        (micro_batch // config.accum_iter + epoch * (num_micro_batches // config.accum_iter), epoch)
        for epoch in range(config.epochs)
        for micro_batch in range(num_micro_batches // config.accum_iter * config.accum_iter)
    }
    assert [(row["batch/iteration"], row["batch/epoch"]) for row in rows] == sorted(formula)
    assert updates_done(trainer) == {len(rows)}
    assert len(calls.training) == len(rows) * config.accum_iter


@pytest.mark.parametrize("accum_iter", [1, 2, 3])
def test_a_rows_losses_are_means_over_the_updates_micro_batches(accum_iter):
    config = tiny_config(batch_size=7, accum_iter=accum_iter)
    trainer = Trainer(config)
    calls = watch(trainer)
    rows = history(trainer).batch
    for row, micro_batches in zip(rows, zip(*[iter(calls.training)] * accum_iter, strict=True), strict=True):
        losses = torch.stack([call.losses for call in micro_batches]).double().mean(dim=0)
        got = [row[f"batch/{name}"] for name in ("loss_static", "loss_recon", "loss_pred")]
        assert got == pytest.approx(losses.tolist(), rel=1e-6)


def test_rates_of_rows_and_of_the_optimiser_are_those_of_the_schedule():
    config = tiny_config()
    trainer = Trainer(config)
    rows = history(trainer)
    assert [row["batch/lr"] for row in rows.batch] == [lr_at(update, config, 6) for update in range(12)]
    assert [row["epoch/lr"] for row in rows.epoch] == [rows.batch[5]["batch/lr"], rows.batch[11]["batch/lr"]]
    assert {group["lr"] for group in trainer.state_dict()["optimiser"]["param_groups"]} == {rows.batch[11]["batch/lr"]}


def test_epoch_rows_are_means_of_their_batch_rows():
    config = tiny_config(epochs=3, alpha=0.7, **SHORT_BATCHES)
    rows = history(Trainer(config))
    assert [row["epoch"] for row in rows.epoch] == [0, 1, 2]
    for epoch, row in enumerate(rows.epoch):
        batches = [r for r in rows.batch if r["batch/epoch"] == epoch]
        of = {name: mean(r[f"batch/{name}"] for r in batches) for name in (n.partition("/")[2] for n in BATCH)}
        for name in ("loss_static", "loss_dynamic", "loss_ratio", "weighted_static", "weighted_dynamic"):
            assert row[f"epoch/{name}"] == pytest.approx(of[name], rel=1e-6)
        assert row["epoch/train_loss"] == pytest.approx(of["loss_total"], rel=1e-6)
        static, dynamic = 0.7 * of["loss_static"], 0.3 * of["loss_dynamic"]
        assert row["epoch/actual_static_contribution"] == pytest.approx(static / (static + dynamic), rel=1e-6)
        assert row["epoch/actual_dynamic_contribution"] == pytest.approx(dynamic / (static + dynamic), rel=1e-6)


def test_best_loss_is_the_running_minimum_and_the_summary_names_its_epoch():
    trainer = Trainer(tiny_config(epochs=6))
    untrained = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    rows = History()
    log_all(rows, itertools.chain(trainer.run_epoch(), trainer.run_epoch(), trainer.run_epoch()))
    trainer.model.load_state_dict(untrained)  # the loss rises again
    log_all(rows, trainer.train())
    losses = [row["epoch/train_loss"] for row in rows.epoch]
    assert losses[3] > losses[2]
    assert [row["epoch/best_loss_so_far"] for row in rows.epoch] == list(itertools.accumulate(losses, min))
    assert rows.summary["summary/best_loss"] == min(losses)
    assert rows.summary["summary/best_epoch"] == losses.index(min(losses))


def test_training_learns():
    rows = history(Trainer(tiny_config(epochs=6))).epoch
    assert rows[-1]["epoch/train_loss"] < 0.8 * rows[0]["epoch/train_loss"]
    assert rows[-1]["eval/reference_loss"] < 0.8 * rows[0]["eval/reference_loss"]


def test_a_loss_without_weight_is_still_measured():
    rows = history(Trainer(tiny_config(alpha=0, beta=1, epochs=1)))
    assert all(tuple(row) == BATCH for row in rows.batch)
    assert rows.epoch[0]["epoch/actual_static_contribution"] == 0
    assert rows.epoch[0]["epoch/loss_static"] > 0


def test_ratios_of_losses_of_zero_are_absent_and_never_nan(tmp_path):
    for sequence in ("a", "b"):
        (tmp_path / sequence).mkdir()
        for index in range(8):
            Image.new("RGB", (16, 16)).save(tmp_path / sequence / f"{index}.png")
    content = tiny_content(batch_size=5, epochs=1)
    content["data"] = {"source": "frames", "root": tmp_path, "image_size": 16, "eval_fraction": 0.5}
    trainer = Trainer(TrainConfig.model_validate(content))
    for head in (trainer.model.static_head, trainer.model.dynamic_head):
        torch.nn.init.zeros_(head.weight)
    rows = history(trainer)
    absent = {"batch/loss_ratio", "batch/static_contribution", "batch/dynamic_contribution"}
    assert [set(BATCH) - row.keys() for row in rows.batch] == [absent]
    absent = {"epoch/loss_ratio", "epoch/actual_static_contribution", "epoch/actual_dynamic_contribution"}
    assert [set(EPOCH) - row.keys() for row in rows.epoch] == [absent]
    assert all(math.isfinite(value) for row in (*rows.batch, *rows.epoch) for value in row.values())


# --- summary and time ----------------------------------------------------------------------------------------------


def test_a_summary_can_be_had_at_any_time():
    trainer = Trainer(tiny_config(epochs=3))
    assert set(trainer.summary().values) == {"summary/total_time_seconds"}  # no epoch yet: no best one
    [*_, first] = trainer.run_epoch()
    for _ in itertools.islice(trainer.run_epoch(), 2):
        pass
    stopped = trainer.summary().values
    assert set(stopped) == set(SUMMARY)
    assert (stopped["summary/best_epoch"], stopped["summary/best_loss"]) == (0, first.values["epoch/train_loss"])


def test_time_of_resumed_and_abandoned_parts_is_added_up(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)  # a clock of the test's own

    def seconds(trainer: Trainer) -> float:
        return trainer.summary().values["summary/total_time_seconds"]

    trainer = Trainer(tiny_config())
    next(trainer.run_epoch())
    now = 5.0
    assert seconds(trainer) == 5
    resumed = Trainer(tiny_config())
    resumed.load_state_dict(trainer.state_dict())
    events = resumed.run_epoch()
    next(events)
    now = 7.0
    list(events)
    now = 10.0  # between epochs nothing is counted
    assert seconds(resumed) == 7
    events = trainer.run_epoch()  # the generator of before is given up
    next(events)
    now = 11.0
    assert seconds(trainer) == 11


# --- determinism ---------------------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_rows_and_another_seed_others():
    first, again, other = (
        comparable(list(Trainer(tiny_config(seed=seed, **SHORT_BATCHES)).train())) for seed in (0, 0, 1)
    )
    assert first == again
    assert all(a != b for a, b in zip(first[:-1], other[:-1], strict=True))


def test_another_seed_draws_other_masks_and_another_order():
    one, other = Trainer(tiny_config(seed=0, epochs=1)), Trainer(tiny_config(seed=1, epochs=1))
    seen = [watch(trainer) for trainer in (one, other)]
    for trainer in (one, other):
        list(trainer.run_epoch())
    first, second = (calls.training[0] for calls in seen)
    assert not torch.equal(first.static_order, second.static_order)
    assert not torch.equal(first.dynamic_order, second.dynamic_order)
    assert not torch.equal(frames_of(first, one), frames_of(second, other))


def test_global_random_states_do_not_matter_and_are_left_alone():
    rows = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the global state is what is tested
        torch.manual_seed(seed)
        before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())  # noqa: NPY002
        rows.append(comparable(list(Trainer(tiny_config()).train())))
        after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())  # noqa: NPY002
        assert before[:2] == after[:2]
        assert torch.equal(before[2], after[2])
    assert rows[0] == rows[1]


def test_every_epoch_has_its_own_order_masks_and_clips_each_clip_once():
    trainer = Trainer(tiny_config(batch_size=10, data={"hflip": 0.0}))
    calls = watch(trainer)
    list(trainer.train())
    everything = torch.from_numpy(trainer.clips.train.gather(np.arange(TRAIN_CLIPS)))
    orders = []
    for epoch in (calls.training[:5], calls.training[5:]):
        seen = torch.cat([frames_of(call, trainer) for call in epoch])
        orders.append(seen)
        assert {clip.numpy().tobytes() for clip in seen} == {clip.numpy().tobytes() for clip in everything}
    assert not torch.equal(orders[0], orders[1])
    masks = torch.cat([torch.cat((call.static_order, call.dynamic_order)) for call in calls.training])
    assert len({tuple(order) for order in masks.tolist()}) == len(masks)
    assert {call.num_visible for call in calls.training} == {4}


# --- flips ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hflip", "vflip", "axes"), [(1, 0, [3]), (0, 1, [2]), (1, 1, [2, 3]), (0, 0, [])])
def test_certain_flips_turn_all_4_frames_of_every_clip(hflip, vflip, axes):
    trainer = Trainer(tiny_config(batch_size=TRAIN_CLIPS, data={"hflip": hflip, "vflip": vflip}))
    calls = watch(trainer)
    list(trainer.run_epoch())
    seen = frames_of(calls.training[0], trainer).flip(axes)
    everything = trainer.clips.train.gather(np.arange(TRAIN_CLIPS))
    assert {clip.numpy().tobytes() for clip in seen} == {clip.tobytes() for clip in everything}


def test_chance_flips_turn_whole_clips_never_single_frames_and_each_way_by_itself():
    trainer = Trainer(tiny_config(batch_size=TRAIN_CLIPS, data={"hflip": 0.5, "vflip": 0.5}))
    calls = watch(trainer)
    list(trainer.run_epoch())
    upright = {clip.tobytes() for clip in trainer.clips.train.gather(np.arange(TRAIN_CLIPS))}
    seen = frames_of(calls.training[0], trainer)
    turned = [sum(c.numpy().tobytes() in upright for c in seen.flip(axes)) for axes in ([], [2], [3], [2, 3])]
    assert sum(turned) == TRAIN_CLIPS
    assert min(turned) >= 4  # of 12.5 expected


# --- going on ------------------------------------------------------------------------------------------------------


def resumed(trainer: Trainer, path: Path) -> Trainer:
    """A new trainer that goes on from another's state, through a file."""
    save_checkpoint(path, trainer.state_dict())
    other = Trainer(trainer.config)
    other.load_state_dict(load_checkpoint(path))
    return other


@pytest.mark.parametrize("changes", [{}, SHORT_BATCHES], ids=["one micro-batch", "two micro-batches"])
def test_going_on_after_any_event_gives_the_remaining_rows_and_the_same_weights_to_the_last_bit(tmp_path, changes):
    config = tiny_config(**changes)
    whole = Trainer(config)
    events = comparable(list(whole.train()))
    for done in range(len(events)):
        part = Trainer(config)
        before = comparable(list(itertools.islice(part.train(), done)))
        rest = resumed(part, tmp_path / "last.pt")
        assert rest.reported == sum(level == Level.BATCH for level, _ in before)
        assert before + comparable(list(rest.train())) == events
        for name, weight in rest.model.state_dict().items():
            assert torch.equal(weight, whole.model.state_dict()[name])
        assert updates_done(rest) == updates_done(whole)


def test_a_finished_run_gives_its_summary_again(tmp_path):
    trainer = Trainer(tiny_config())
    events = comparable(list(trainer.train()))
    assert trainer.finished
    assert comparable(list(resumed(trainer, tmp_path / "last.pt").train())) == events[-1:]


def test_the_state_of_another_config_is_refused_with_what_differs():
    state = Trainer(tiny_config()).state_dict()
    other = Trainer(tiny_config(alpha=0.25, encoder={"depth": 2}))
    with pytest.raises(
        CheckpointError, match=r"of another config \(alpha: 0\.5 there, 0\.25 here; encoder\.depth: 1 there, 2 here\)"
    ):
        other.load_state_dict(state)


def test_a_run_goes_on_where_its_data_were_moved_or_another_probe_is_wanted(tmp_path):
    events = comparable(list(Trainer(tiny_config()).train()))
    part = Trainer(tiny_config())
    list(itertools.islice(part.train(), 3))
    changes = {
        "data": {"store_dir": tmp_path / "stores"},
        "probe": {"label": "motion", "attentive": False},
        "pictures": 0,
    }
    moved = Trainer(tiny_config(**changes))
    moved.load_state_dict(part.state_dict())
    rest = comparable(list(moved.train()))
    probed = [{name: v for name, v in row.items() if not name.startswith("probe/")} for _, row in rest]
    assert probed == [row for _, row in events[-len(rest) :]]


def test_the_state_of_another_version_is_refused():
    trainer = Trainer(tiny_config())
    with pytest.raises(CheckpointError, match="checkpoint version 7; this program reads 2"):
        trainer.load_state_dict(trainer.state_dict() | {"version": 7})
    with pytest.raises(CheckpointError, match="checkpoint version None"):
        trainer.load_state_dict({})


def without_a_weight(state: dict) -> None:
    state["model"] = {name: w for name, w in state["model"].items() if name != "mask_token"}


def with_another_shape(state: dict) -> None:
    state["model"] = state["model"] | {"mask_token": torch.zeros(1, 1, 7)}


def without_a_parameter_group(state: dict) -> None:
    state["optimiser"] = state["optimiser"] | {"param_groups": state["optimiser"]["param_groups"][:1]}


def without_a_block(state: dict) -> None:
    del state["means"]


def without_an_optimiser(state: dict) -> None:
    state["optimiser"] = None


@pytest.mark.parametrize(
    "damage",
    [without_a_weight, with_another_shape, without_a_parameter_group, without_a_block, without_an_optimiser],
)
def test_the_state_of_another_architecture_is_refused(damage):
    trainer = Trainer(tiny_config())
    state = trainer.state_dict()
    damage(state)
    with pytest.raises(CheckpointError, match="does not fit this model"):
        Trainer(tiny_config()).load_state_dict(state)


@pytest.mark.parametrize("content", [{"config": None}, {"normalisation": None}, {"normalisation": {"mean": "x"}}])
def test_a_state_that_does_not_tell_what_it_is_of_is_refused(content):
    trainer = Trainer(tiny_config())
    with pytest.raises(CheckpointError, match=r"the checkpoint (holds no config|does not tell its data)"):
        trainer.load_state_dict(trainer.state_dict() | content)


def test_a_state_is_refused_where_recordings_have_come_or_changed_since(tmp_path):
    draw = np.random.default_rng(0)

    def record(*names: str) -> None:
        for name in names:
            (tmp_path / "frames" / name).mkdir(parents=True, exist_ok=True)
            for index in range(6):
                pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "frames" / name / f"{index}.png")

    given = {"source": "frames", "root": tmp_path / "frames", "store_dir": tmp_path / "store", "split_seed": 1}
    record("a", "b", "c", "d", "e")
    state = Trainer(tiny_config(data=given)).state_dict()
    record("a", "b", "c", "d", "e")  # as many clips, of other frames
    with pytest.raises(CheckpointError, match=r"12 training clips there, 12 here; their mean or deviation differ\)"):
        Trainer(tiny_config(data=given)).load_state_dict(state)
    record("f", "g", "h")
    with pytest.raises(CheckpointError, match="12 training clips there, 18 here"):
        Trainer(tiny_config(data=given)).load_state_dict(state)


# --- losses that are no numbers ------------------------------------------------------------------------------------


def fails(events: Iterator[Event]) -> tuple[list[Row], str]:
    """The batch rows until the loss is no number, and what is said then."""
    rows = History()
    with pytest.raises(NonFiniteLossError) as caught:
        log_all(rows, events)
    assert not rows.epoch
    return rows.batch, str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_after_the_rows_of_all_updates_done(value):
    trainer = Trainer(tiny_config())
    trainer.model.decoder_norm.bias.data[0] = value
    rows, message = fails(trainer.train())
    assert [row["batch/iteration"] for row in rows] == list(range(len(rows)))
    assert updates_done(trainer) == {len(rows)}
    assert not math.isfinite(rows[0]["batch/loss_total"])
    assert message.startswith(f"loss_static = {rows[0]['batch/loss_static']}, loss_recon = ")


def test_the_message_names_update_epoch_rate_and_the_clips_of_the_update():
    config = tiny_config(batch_size=2, accum_iter=2, data={"hflip": 0.0})
    trainer = Trainer(config)
    calls = watch(trainer)
    list(trainer.run_epoch())
    events = trainer.run_epoch()
    for _ in range(3):
        next(events)
    trainer.model.mask_token.data.fill_(math.nan)  # updates 12 to 15 are launched, 12 to 14 given out
    rest, message = fails(events)
    assert [row["batch/iteration"] for row in rest] == [15, 16, 17]
    assert [math.isfinite(row["batch/loss_total"]) for row in rest] == [True, False, False]
    assert f"at update 16 (epoch 1, lr {lr_at(16, config, 12):.3g}, clips " in message
    numbers = {clip.tobytes(): n for n, clip in enumerate(trainer.clips.train.gather(np.arange(TRAIN_CLIPS)))}
    seen = [clip for call in calls.training[32:34] for clip in frames_of(call, trainer)]
    ids = [trainer.clips.train.clip_id(numbers[clip.numpy().tobytes()]) for clip in seen]
    assert f"clips {', '.join(ids)})" in message


def test_many_clips_are_named_in_part():
    trainer = Trainer(tiny_config())
    trainer.model.mask_token.data.fill_(math.nan)
    _, message = fails(trainer.train())
    assert message.count("press_") == 4
    assert ", ...); lower base_lr, or clip gradients" in message


# --- the rest ------------------------------------------------------------------------------------------------------


def test_a_batch_larger_than_the_training_set_is_refused():
    with pytest.raises(ConfigError, match="batch_size = 64 is larger than the 50 training clips"):
        Trainer(tiny_config(batch_size=64))


@contextmanager
def before_each_step(look: Callable[[torch.optim.Optimizer], None]) -> Iterator[None]:
    """Calls `look` with the optimiser before each of its steps."""
    handle = register_optimizer_step_pre_hook(lambda optimiser, args, kwargs: look(optimiser))
    try:
        yield
    finally:
        handle.remove()


def test_an_update_follows_the_gradient_of_the_weighted_loss_over_its_micro_batches_at_its_rate():
    config = tiny_config(alpha=0.3, beta=1.1, clip_grad=None, epochs=1, **SHORT_BATCHES)
    trainer = Trainer(config)
    calls = watch(trainer)
    rates: list[float] = []

    def compare(optimiser: torch.optim.Optimizer) -> None:
        rates.append(optimiser.param_groups[0]["lr"])
        model = JointTactileMAE(config)
        model.load_state_dict(trainer.model.state_dict())
        first, second = calls.training[-2:]
        inputs = [torch.cat([getattr(first, name), getattr(second, name)]) for name in TENSORS]
        losses = model(*inputs, first.num_visible)  # the two micro-batches as one batch
        (0.3 * losses.static + 1.1 * (losses.recon + losses.pred)).backward()
        for ours, reference in zip(trainer.model.parameters(), model.parameters(), strict=True):
            assert torch.allclose(ours.grad, reference.grad, rtol=1e-4, atol=1e-6)

    with before_each_step(compare):
        list(trainer.run_epoch())
    assert rates == [lr_at(update, config, 3) for update in range(3)]


def test_gradients_are_clipped_to_the_norm_that_was_asked_for():
    def largest_norm(clip_grad: float | None) -> float:
        norms: list[float] = []

        def measure(optimiser: torch.optim.Optimizer) -> None:
            grads = [p.grad for group in optimiser.param_groups for p in group["params"]]
            norms.append(torch.nn.utils.get_total_norm(grads).item())

        with before_each_step(measure):
            list(Trainer(tiny_config(clip_grad=clip_grad)).run_epoch())
        return max(norms)

    assert largest_norm(None) > 0.1
    assert largest_norm(0.01) == pytest.approx(0.01, rel=1e-3)


def test_biases_norms_and_tokens_are_not_decayed():
    trainer = Trainer(tiny_config(weight_decay=0.3))
    decayed, rest = trainer.state_dict()["optimiser"]["param_groups"]
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.3, 0.0)
    matrices = [n for n, p in trainer.model.named_parameters() if n.endswith("weight") and p.ndim == 2]
    assert len(decayed["params"]) == len(matrices)
    assert len(decayed["params"]) + len(rest["params"]) == len(list(trainer.model.parameters()))


def test_bf16_trains_and_gives_float32_losses():
    rows = history(Trainer(tiny_config(precision="bf16")))
    exact = history(Trainer(tiny_config(precision="fp32")))
    assert rows.batch[0]["batch/loss_total"] == pytest.approx(exact.batch[0]["batch/loss_total"], rel=0.02)
    assert rows.batch[0] != exact.batch[0]
    assert pick_precision(tiny_config(), torch.device("cpu")) == "fp32"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="device = 'cuda' is not available here; use auto or cpu"):
        Trainer(tiny_config(device="cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"encoder": {"sensors": ["default"]}},
        {"weighting": "famo", "ema_decay": 0.9, "mask_kind": "block"},
        {"weighting": "uncertainty", "precision": "fp16", "accum_iter": 2},
        {"mode": "alternating", "norm_pix_loss": True, "layer_decay": 0.8, "encoder": {"grad_checkpointing": True}},
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)
def test_no_update_on_a_gpu_waits_for_it(changes):
    trainer = Trainer(tiny_config(device="cuda", epochs=3, **changes))
    list(trainer.run_epoch())  # warm
    events = trainer.run_epoch()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            next(events)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_timm_name_trains():
    content = tiny_content(data={"image_size": 32, "synthetic": {"sequences": 2}}, batch_size=4, epochs=1)
    config = TrainConfig.model_validate(content | {"encoder": {"name": "vit_tiny_patch16_224"}})
    trainer = Trainer(config)
    assert (trainer.model.encoder.width, len(trainer.model.encoder.blocks)) == (192, 12)
    before = trainer.model.encoder.positions.clone()
    rows = history(trainer)
    assert len(rows.batch) == 1
    assert not torch.equal(before, trainer.model.encoder.positions)


def test_a_last_update_that_breaks_the_weights_is_found_by_the_evaluation():
    trainer = Trainer(tiny_config(epochs=1))
    events = trainer.run_epoch()
    for _ in events:
        if trainer.reported == trainer.plan.updates:
            break
    with torch.no_grad():
        trainer.model.mask_token.fill_(math.nan)
    event = next(events)
    assert event.level is Level.EPOCH
    assert math.isnan(event.values["eval/loss_static"])
    with pytest.raises(NonFiniteLossError, match=r"eval/loss_static = nan after epoch 0; lower base_lr"):
        next(events)
