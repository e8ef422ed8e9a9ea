"""Simulated sweeps: the real searcher, scheduler and study, on replayed trials."""

from __future__ import annotations

import pytest

from model.errors import UserError
from sweep.replay import Replay
from sweep.replay_table import ReplayTable
from sweep.simulation import simulate
from sweep.study import Outcome
from tests.replaying import EPOCHS, made_up_rows, write_table
from tests.specs import make

PARAMETERS = {
    "alpha": {"min": 0.1, "max": 0.9},
    "base_lr": {"distribution": "log_uniform_values", "min": 2e-3, "max": 6e-2},
    "mask_ratio": {"distribution": "q_uniform", "min": 0.5, "max": 0.9, "q": 0.05},
}
TRAINER = {"epochs": EPOCHS, "warmup_epochs": 1, "base_lr": 0.008}
ASHA = {"type": "hyperband", "min_iter": 1, "eta": 3}


@pytest.fixture(scope="module")
def replay(tmp_path_factory):
    return Replay(ReplayTable.load(write_table(tmp_path_factory.mktemp("table") / "table.csv", list(made_up_rows()))))


def spec_of(**changes):
    return make(**{"parameters": PARAMETERS, "trainer": TRAINER, "run_cap": 12} | changes)


def run(folder, replay, seed=0, workers=1, budget=None, **changes):
    folder.mkdir()
    return simulate(spec_of(**changes), replay, folder, seed, workers, budget)


def outcomes(sweep):
    return [record.outcome for record in sweep.records]


def test_a_sweep_without_early_stopping_trains_every_trial_to_its_end(tmp_path, replay):
    sweep = run(tmp_path / "a", replay)
    assert outcomes(sweep) == [Outcome.COMPLETE] * 12
    assert sweep.epochs == 12 * EPOCHS
    assert [trial.spent for trial in sweep.ended] == [EPOCHS * (n + 1) for n in range(12)]
    assert [record.value for record in sweep.records] == [trial.last["objective/value"] for trial in sweep.ended]


def test_asha_stops_trials_through_the_sweeps_own_scheduler_but_never_a_preset(tmp_path, replay):
    sweep = run(tmp_path / "a", replay, early_terminate=ASHA)
    pruned = [record for record in sweep.records if record.outcome is Outcome.PRUNED]
    assert len(pruned) >= 4
    assert {record.epochs for record in pruned} <= {1, 3}
    assert outcomes(sweep)[:2] == [Outcome.COMPLETE] * 2
    assert [record.preset for record in sweep.records[:2]] == ["equal-weights", "balanced-weights"]
    assert sweep.epochs == sum(record.epochs for record in sweep.records) < 12 * EPOCHS


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_the_same_seed_gives_the_same_sweep_and_another_seed_another(tmp_path, replay, sampler, workers):
    options = {"early_terminate": ASHA, "search": {"sampler": sampler, "startup_trials": 4}}
    first, again, other = (
        run(tmp_path / name, replay, seed, workers, **options) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first.ended == again.ended
    assert first.ended != other.ended


def test_several_workers_train_side_by_side(tmp_path, replay):
    sweep = run(tmp_path / "a", replay, workers=4)
    assert [trial.spent for trial in sweep.ended[:4]] == [4 * EPOCHS - 3 + n for n in range(4)]
    assert outcomes(sweep) == [Outcome.COMPLETE] * 12


def test_a_budget_ends_the_sweep_and_leaves_the_trials_under_way_unfinished(tmp_path, replay):
    sweep = run(tmp_path / "a", replay, budget=20, workers=2)
    assert sweep.epochs == 20
    assert outcomes(sweep) == [Outcome.COMPLETE] * 2 + [Outcome.RUNNING] * 2


def test_tpe_finds_a_better_trial_than_the_presets(tmp_path, replay):
    sweep = run(tmp_path / "a", replay, run_cap=30)
    values = [record.value for record in sweep.records]
    assert min(values) < min(values[:2])


def test_a_target_ends_the_sweep_as_in_a_real_one(tmp_path, replay):
    sweep = run(tmp_path / "a", replay, metric={"name": "objective/value", "target": 100.0})
    assert len(sweep.records) == 1


def test_several_metrics_are_replayed_as_well(tmp_path, replay):
    sweep = run(tmp_path / "a", replay, metrics=[{"name": "eval/loss_static"}, {"name": "eval/loss_dynamic"}])
    assert all(len(record.objectives) == 2 for record in sweep.records)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer": TRAINER | {"epochs": 9}}, "trainer.epochs = 9, but the trials of .* have 8"),
        ({"parameters": {**PARAMETERS, "weight_decay": {"min": 0.0, "max": 0.1}}}, "parameters.weight_decay"),
        ({"parameters": {**PARAMETERS, "alpha": {"min": 0.0, "max": 0.9}}}, "alpha = 0: the trials of .* go from"),
        ({"trainer": TRAINER | {"base_lr": 1.0}, "parameters": {"alpha": PARAMETERS["alpha"]}}, "base_lr = 1:"),
        ({"metric": {"name": "eval/pred_skill", "goal": "maximize"}}, "'eval/pred_skill' is not replayed"),
        ({"search": {"pbt": {"parameters": ["alpha"]}}}, "search.pbt"),
    ],
)
def test_a_spec_that_the_table_cannot_answer_for_is_refused(tmp_path, replay, changes, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path / "a", replay, **changes)
