"""What earlier sweeps give the present one: trials that it could have run itself, or configs to try first."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from model.errors import UserError
from model.sinks import read_csv
from sweep.mapping import NoCounterpartError, SpaceMapping
from sweep.outcome import Outcome
from sweep.scored import Ledger, read_trial
from sweep.spec import SweepSpec
from sweep.study import SweepStudy
from sweep.warm_start import Prior, WarmStart, load_warm_start
from tests.past_sweeps import Past, past_sweep, write_trial
from tests.sweeping import TINY_TRAINER, tiny_spec

SPEC = tiny_spec()
ALPHA = {"min": 0.1, "max": 0.9}
BASE_LR = {"distribution": "log_uniform_values", "min": 0.01, "max": 0.3}
PAST = tuple(Past({"alpha": 0.2 + 0.1 * n, "base_lr": 0.02 * (n + 1)}) for n in range(5))


def trainer(**changes: Any) -> dict[str, Any]:
    return {**TINY_TRAINER, **changes}


def warm(path: Path, **changes: Any) -> WarmStart:
    """What a tiny sweep with these changes makes of a folder."""
    return load_warm_start([path], tiny_spec(**changes))


def fails(paths: list[Path], spec: SweepSpec = SPEC, own: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_warm_start(paths, spec, own)
    return str(caught.value)


def known(start: WarmStart) -> list[str]:
    return [prior.trial for prior in start.prior]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five complete trials, a pruned, a diverged, a failed and an unfinished one."""
    more = (
        Past({"alpha": 0.8, "base_lr": 0.1}, Outcome.PRUNED, epochs=1),
        Past({"alpha": 0.85, "base_lr": 0.3}, Outcome.DIVERGED, epochs=2, nan_in="batch"),
        Past({"alpha": 0.7, "base_lr": 0.1}, Outcome.FAILED, epochs=1),
        Past({"alpha": 0.6, "base_lr": 0.1}, Outcome.RUNNING, epochs=2),
    )
    return past_sweep(tmp_path_factory.mktemp("warm") / "earlier", SPEC, *PAST, *more)


# --- trials that the sampler knows ---


def test_trials_of_the_same_spec_are_known_with_all_that_they_reported(earlier: Path) -> None:
    start = warm(earlier)
    assert known(start) == ["0000", "0001", "0002", "0003", "0004", "0005", "0006"]
    assert start.first == ()
    for prior, past in zip(start.prior, PAST, strict=False):
        rows = read_csv(earlier / "trials" / prior.trial / "epoch.csv")
        assert prior.values == past.values
        assert prior.steps == {int(row["epoch"]): (row["objective/value"],) for row in rows}
        assert prior.source == str(earlier)
    assert [prior.outcome for prior in start.prior[-2:]] == [Outcome.PRUNED, Outcome.DIVERGED]
    assert list(start.prior[-2].steps) == [0]
    text = "\n".join(start.notes)
    assert "7 of 9 trials are known to the sampler" in text
    assert "left out, since it failed: 1 (0007)" in text
    assert "left out, since it is not finished: 1 (0008)" in text


def test_the_study_takes_them_as_they_are(earlier: Path, tmp_path: Path) -> None:
    study = SweepStudy(tmp_path, "s", SPEC.space, startup_trials=0, prior=warm(earlier).prior)
    assert study.next().number == 0
    assert len(study.records()) == 1


def test_the_earlier_objective_and_metric_do_not_matter_values_are_ours(tmp_path: Path) -> None:
    theirs = tiny_spec(
        objective={"loss": "train", "ratio_weight": 2.0}, metric={"name": "eval/pred_skill", "goal": "maximize"}
    )
    path = past_sweep(tmp_path / "r", theirs, *PAST)
    same = past_sweep(tmp_path / "same", SPEC, *PAST)
    assert [prior.steps for prior in warm(path).prior] == [prior.steps for prior in warm(same).prior]


def test_several_metrics_come_together_and_without_pruned_trials(earlier: Path) -> None:
    start = warm(earlier, metrics=[{"name": "eval/loss_static"}, {"name": "eval/pred_skill", "goal": "maximize"}])
    rows = read_csv(earlier / "trials/0000/epoch.csv")
    assert start.prior[0].steps == {
        int(row["epoch"]): (row["eval/loss_static"], row["eval/pred_skill"]) for row in rows
    }
    assert "0005" not in known(start)
    assert any("tells nothing of several metrics: 1 (0005)" in note for note in start.notes)


# --- from space to space ---


def test_a_parameter_that_is_searched_only_now_has_the_value_that_trials_had(earlier: Path) -> None:
    now = {"alpha": ALPHA, "base_lr": BASE_LR, "mask_ratio": {"min": 0.5, "max": 0.9}}
    start = warm(earlier, parameters=now)
    assert len(start.prior) == 7
    assert all(prior.values["mask_ratio"] == 0.75 for prior in start.prior)
    assert all(list(prior.values) == list(now) for prior in start.prior)


def test_beta_searched_only_now_is_what_it_was_one_minus_alpha(earlier: Path) -> None:
    start = warm(earlier, parameters={"alpha": ALPHA, "beta": ALPHA, "base_lr": BASE_LR})
    assert [prior.values["beta"] for prior in start.prior] == [1 - prior.values["alpha"] for prior in start.prior]
    assert len(start.prior) == 7


def test_beta_searched_then_counts_only_where_it_was_one_minus_alpha(tmp_path: Path) -> None:
    theirs = tiny_spec(parameters={"alpha": ALPHA, "beta": ALPHA})
    path = past_sweep(tmp_path / "r", theirs, Past({"alpha": 0.7, "beta": 0.3}), Past({"alpha": 0.7, "beta": 0.7}))
    start = warm(path, parameters={"alpha": ALPHA})
    assert known(start) == ["0000"]
    assert any("it searched beta, which is fixed now" in note for note in start.notes)


def test_trials_outside_the_present_space_are_left_out_counted_and_named(earlier: Path) -> None:
    start = warm(earlier, parameters={"alpha": {"min": 0.35, "max": 0.9}, "base_lr": BASE_LR})
    assert known(start) == ["0002", "0003", "0004", "0005", "0006"]
    assert any("left out, since alpha must be a number from 0.35 to 0.9: 2 (0000, 0001)" in n for n in start.notes)


def test_a_parameter_that_was_searched_only_then_must_have_had_the_present_value(tmp_path: Path) -> None:
    theirs = tiny_spec(parameters={"alpha": ALPHA, "mask_ratio": {"values": [0.5, 0.75]}})
    trials = [Past({"alpha": 0.2 + 0.1 * n, "mask_ratio": (0.5, 0.75)[n % 2]}) for n in range(4)]
    start = warm(past_sweep(tmp_path / "r", theirs, *trials), parameters={"alpha": ALPHA})
    assert known(start) == ["0001", "0003"]
    assert any(
        "it searched mask_ratio, which is fixed now; only trials with the present value" in n for n in start.notes
    )
    assert any("left out, since mask_ratio is not 0.75: 2 (0000, 0002)" in note for note in start.notes)


def test_lists_and_blocks_are_values_too(tmp_path: Path) -> None:
    shapes = [{"width": 32, "depth": 1, "heads": 2}, {"width": 48, "depth": 1, "heads": 4}]
    searched = {"decoder": {"values": shapes}, "data.image_size": {"values": [16, [16, 24]]}}
    spec = tiny_spec(parameters=searched)
    trials = [Past({"decoder": shapes[n], "data.image_size": (16, [16, 24])[n]}) for n in (0, 1)]
    start = load_warm_start([past_sweep(tmp_path / "r", spec, *trials)], spec)
    assert [prior.values for prior in start.prior] == [past.values for past in trials]


def test_a_parameter_that_does_not_matter_may_have_any_value_of_the_space(tmp_path: Path) -> None:
    searched = {"mode": {"values": ["joint", "static"]}, "alpha": {"min": 0.6, "max": 0.9}}
    spec = tiny_spec(parameters=searched, search={"conditions": {"alpha": {"mode": "joint"}}, "presets": []})
    trials = [Past({"mode": "static"}), Past({"mode": "joint", "alpha": 0.7})]
    start = load_warm_start([past_sweep(tmp_path / "r", spec, *trials)], spec)
    assert start.prior[1].values == {"mode": "joint", "alpha": 0.7}
    static = start.prior[0].values
    assert static["mode"] == "static"  # its own alpha, the trainer's 0.5, lies outside the space
    assert 0.6 <= static["alpha"] <= 0.9
    assert load_warm_start([tmp_path / "r"], spec) == start


NUMBERS = st.floats(0.05, 0.95)


@settings(max_examples=50)
@given(
    ranges=st.tuples(*[st.tuples(NUMBERS, NUMBERS).map(sorted)] * 2),
    alpha=NUMBERS,
    mask_ratio=st.just(0.75) | st.floats(0.2, 0.9),
)
def test_a_trial_counts_exactly_where_the_present_sweep_could_have_run_it(
    ranges: Any, alpha: float, mask_ratio: float
) -> None:
    """Then: alpha and mask_ratio; now: alpha in another range, and base_lr, around the earlier trainer's or not."""
    (low, high), (lr_low, lr_high) = ranges
    assume(low < high and lr_low < lr_high)
    then = tiny_spec(parameters={"alpha": {"min": 0.0, "max": 1.0}, "mask_ratio": {"min": 0.1, "max": 0.9}})
    now = tiny_spec(
        parameters={"alpha": {"min": low, "max": high}, "base_lr": {"min": lr_low, "max": lr_high}},
        trainer=trainer(base_lr=lr_low),
        search={"presets": []},
    )
    config = then.space.to_config(then.trainer, {"alpha": alpha, "mask_ratio": mask_ratio})
    mapping = SpaceMapping(now, then)
    assert mapping.differing == ()  # base_lr is searched now
    possible = low <= alpha <= high and lr_low <= config.base_lr <= lr_high
    if not possible:
        with pytest.raises(NoCounterpartError, match=r"(alpha|base_lr) must be a number from"):
            mapping.values(config, "0000")
        return
    values = mapping.values(config, "0000")
    assert values == {"alpha": alpha, "base_lr": config.base_lr}
    if math.isclose(mask_ratio, 0.75, rel_tol=1e-9):
        mapping.check_same(config, values)
        assert now.space.to_config(now.trainer, values).alpha == alpha
    else:
        with pytest.raises(NoCounterpartError, match=r"mask_ratio is not 0\.75"):
            mapping.check_same(config, values)


@given(alpha=st.floats(0.1, 0.9), base_lr=st.floats(0.01, 0.3))
def test_a_trial_of_the_same_spec_maps_to_its_own_values(alpha: float, base_lr: float) -> None:
    config = SPEC.space.to_config(SPEC.trainer, {"alpha": alpha, "base_lr": base_lr})
    mapping = SpaceMapping(SPEC, SPEC)
    values = mapping.values(config, "0000")
    assert values == {"alpha": alpha, "base_lr": base_lr}
    mapping.check_same(config, values)


# --- values that do not compare ---


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epochs": 4}, "epochs: 3 there, 4 here"),
        ({"seed": 1}, "seed: 0 there, 1 here"),
        ({"data": {**TINY_TRAINER["data"], "frame_stride": 2}}, "data.frame_stride: 1 there, 2 here"),
    ],
)
def test_another_trainer_makes_no_prior_and_its_best_are_tried_first(
    earlier: Path, change: dict[str, Any], named: str
) -> None:
    start = warm(earlier, trainer=trainer(**change))
    assert start.prior == ()
    assert f"trained otherwise ({named}), so its values do not compare" in start.notes[0]
    complete = [prior for prior in warm(earlier).prior if prior.outcome is Outcome.COMPLETE]
    best = sorted(complete, key=lambda prior: prior.steps[2])[:3]
    assert start.first == tuple((f"earlier-{prior.trial}", prior.values) for prior in best)
    assert f"tried first: {', '.join(label for label, _ in start.first)}" in start.notes[1]


@pytest.mark.parametrize(
    "change",
    [
        {"device": "auto"},
        {"compile": True},
        {"pictures": 0},
        {"precision": "fp32"},
        {"probe": {"label": "motion"}},
        {"data": {**TINY_TRAINER["data"], "store_dir": "elsewhere"}},
        {"alpha": 0.6, "base_lr": 0.1},
    ],
    ids=str,
)
def test_fields_that_no_value_depends_on_may_differ(earlier: Path, change: dict[str, Any]) -> None:
    assert len(warm(earlier, trainer=trainer(**change)).prior) == 7


def test_another_precision_does_not_compare(tmp_path: Path) -> None:
    path = past_sweep(tmp_path / "r", tiny_spec(trainer=trainer(precision="bf16")), *PAST)
    assert "precision: 'bf16' there, 'fp32' here" in warm(path, trainer=trainer(precision="fp32")).notes[0]


def test_trials_whose_weights_changed_midway_are_no_prior(tmp_path: Path) -> None:
    theirs = tiny_spec(search={"pbt": {"every_epochs": 1}, "startup_trials": 2})
    start = warm(past_sweep(tmp_path / "r", theirs, *PAST))
    assert start.prior == ()
    assert len(start.first) == 3
    assert "search.pbt: its trials changed weights midway" in start.notes[0]


@pytest.mark.parametrize("sampler", ["cmaes", "nsgaii", "nsgaiii", "qmc", "random"])
def test_samplers_that_cannot_use_earlier_trials_try_the_best_first(earlier: Path, sampler: str) -> None:
    start = warm(earlier, search={"sampler": sampler})
    assert start.prior == ()
    assert len(start.first) == 3
    assert f"search.sampler {sampler} cannot use trials of earlier sweeps; auto, tpe and gp can" in start.notes[0]


def test_gp_uses_earlier_trials(earlier: Path) -> None:
    assert len(warm(earlier, search={"sampler": "gp"}).prior) == 7


def test_a_grid_tries_those_of_the_best_first_that_are_points_of_it(tmp_path: Path) -> None:
    spec = tiny_spec(parameters={"alpha": {"values": [0.25, 0.5, 0.75]}}, method="grid")
    theirs = tiny_spec(parameters={"alpha": ALPHA})
    trials = [Past({"alpha": alpha}) for alpha in (0.25, 0.3, 0.75)]
    start = load_warm_start([past_sweep(tmp_path / "r", theirs, *trials)], spec)
    assert {values["alpha"] for _, values in start.first} == {0.25, 0.75}
    assert "method grid cannot use trials of earlier sweeps" in start.notes[0]


@pytest.mark.parametrize("goal", ["minimize", "maximize"])
def test_the_best_are_different_configs_and_by_our_goal(tmp_path: Path, goal: str) -> None:
    skills = [0.1, 0.9, 0.9, 0.5, 0.3]
    alphas = [0.2, 0.3, 0.3, 0.4, 0.5]  # the second and the third are one config
    trials = [
        Past({"alpha": alpha, "base_lr": 0.1}, last={"eval/pred_skill": skill})
        for alpha, skill in zip(alphas, skills, strict=True)
    ]
    path = past_sweep(tmp_path / "r", SPEC, *trials)
    start = warm(path, search={"sampler": "random"}, metric={"name": "eval/pred_skill", "goal": goal})
    found = [values["alpha"] for _, values in start.first]
    assert found == ([0.3, 0.4, 0.5] if goal == "maximize" else [0.2, 0.5, 0.4])


def test_of_several_metrics_the_first_ones_are_of_the_front(tmp_path: Path) -> None:
    points = [(3.0, 3.0), (1.0, 2.0), (2.0, 1.0), (2.5, 2.5)]
    trials = [
        Past({"alpha": 0.2 + 0.1 * n, "base_lr": 0.1}, last={"eval/loss_static": a, "eval/loss_dynamic": b})
        for n, (a, b) in enumerate(points)
    ]
    path = past_sweep(tmp_path / "r", SPEC, *trials)
    metrics = [{"name": "eval/loss_static"}, {"name": "eval/loss_dynamic"}]
    start = warm(path, search={"sampler": "nsgaii"}, metrics=metrics)
    assert [label for label, _ in start.first] == ["r-0001", "r-0002"]


def test_several_folders_add_up_and_equal_configs_are_tried_once(earlier: Path, tmp_path: Path) -> None:
    other = past_sweep(tmp_path / "other", SPEC, *PAST[:2])
    start = load_warm_start([earlier, other], SPEC)
    assert [prior.source for prior in start.prior] == [str(earlier)] * 7 + [str(other)] * 2
    start = load_warm_start([earlier, other], tiny_spec(search={"sampler": "random"}))
    values = [values for _, values in start.first]
    assert all(one not in values[:place] for place, one in enumerate(values))


# --- kept for a resumption ---


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
VALUES = st.dictionaries(st.text(max_size=8), PLAIN | st.lists(PLAIN, max_size=3), max_size=3)
STEPS = st.dictionaries(
    st.integers(0, 1000), st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=3).map(tuple)
)
PRIORS = st.builds(Prior, st.text(), st.text(), VALUES, st.sampled_from(Outcome), STEPS)
STARTS = st.builds(
    WarmStart,
    st.lists(PRIORS, max_size=3).map(tuple),
    st.lists(st.tuples(st.text(), VALUES), max_size=2).map(tuple),
    st.lists(st.text(), max_size=2).map(tuple),
)


@settings(max_examples=50)
@given(start=STARTS)
def test_what_is_saved_loads_to_the_last_bit(tmp_path_factory: pytest.TempPathFactory, start: WarmStart) -> None:
    file = tmp_path_factory.getbasetemp() / "warm_start.json"
    start.save(file)
    again = WarmStart.load(file)
    assert again == start
    assert repr(again) == repr(start)  # also the kinds of numbers


@pytest.mark.parametrize("text", ["", "{", "[]", '{"prior": [{}], "first": [], "notes": []}', '{"prior": 3}'])
def test_a_damaged_file_is_an_error_that_says_what_to_do(tmp_path: Path, text: str) -> None:
    file = tmp_path / "warm_start.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"warm_start\.json: cannot be read .* restore it from a copy"):
        WarmStart.load(file)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        WarmStart.load(tmp_path / "warm_start.json")


def test_no_paths_give_nothing() -> None:
    assert load_warm_start([], SPEC) == WarmStart()


# --- folders that cannot be used ---


def test_a_folder_that_is_none_or_holds_no_sweep_is_refused(tmp_path: Path) -> None:
    assert f"search.warm_start: {tmp_path / 'none'} is no folder; give the results folder" in fails([tmp_path / "none"])
    assert f"search.warm_start: {tmp_path} holds no sweep" in fails([tmp_path])


def test_the_sweeps_own_folder_is_refused(earlier: Path) -> None:
    same = earlier / ".." / earlier.name
    assert "is the results folder of this very sweep; name that of an earlier one" in fails([same], own=earlier)


def test_a_folder_named_twice_is_refused(earlier: Path) -> None:
    assert "is named twice; name each folder once" in fails([earlier, earlier])


def test_a_sweep_without_trials_gives_nothing_and_says_so(tmp_path: Path) -> None:
    path = past_sweep(tmp_path / "r", SPEC)
    assert warm(path).notes == (f"warm start from {path}: 0 of 0 trials are known to the sampler",)
    assert "it has no complete trial to try first" in warm(path, search={"sampler": "random"}).notes[1]


def test_one_trial_without_the_metric_is_left_out_and_the_others_count(tmp_path: Path) -> None:
    lacking = Past({"alpha": 0.5, "base_lr": 0.1}, last={"eval/pred_skill": None})
    path = past_sweep(tmp_path / "r", SPEC, lacking, Past({"alpha": 0.4, "base_lr": 0.1}))
    spec = tiny_spec(metric={"name": "eval/pred_skill", "goal": "maximize"})
    warm = load_warm_start([path], spec)
    assert [prior.trial for prior in warm.prior] == ["0001"]
    assert any("it has no value of eval/pred_skill: 1 (0000)" in note for note in warm.notes)


def test_a_metric_that_earlier_trials_do_not_have_is_an_error(tmp_path: Path) -> None:
    path = past_sweep(tmp_path / "r", SPEC, Past({"alpha": 0.5, "base_lr": 0.1}, last={"eval/pred_skill": None}))
    spec = tiny_spec(metric={"name": "eval/pred_skill", "goal": "maximize"})
    assert "0000/epoch.csv: has no value of eval/pred_skill after the last epoch" in fails([path], spec)


def test_a_column_that_the_objective_needs_and_an_older_version_lacks_is_an_error(tmp_path: Path) -> None:
    path = past_sweep(tmp_path / "r", SPEC, *PAST[:1])
    (path / "trials/0000/batch.csv").unlink()
    assert "batch.csv: is missing, but objective.ratio_weight = 0.5 needs" in fails([path])
    assert len(warm(path, objective={"ratio_weight": 0}).prior) == 1


def test_a_damaged_file_in_the_folder_is_named_with_its_key(tmp_path: Path) -> None:
    path = past_sweep(tmp_path / "r", SPEC, *PAST[:1])
    file = path / "trials/0000/epoch.csv"
    file.write_text(file.read_text(encoding="utf-8") + "x,y\n", encoding="utf-8")
    assert fails([path]).startswith(f"search.warm_start: {file}: line 5 is damaged")
    (path / "trials/0000/config.yaml").write_text("alpha: [", encoding="utf-8")
    assert "config.yaml: cannot be read" in fails([path])


def test_a_config_that_this_version_does_not_take_is_an_error(tmp_path: Path) -> None:
    path = past_sweep(tmp_path / "r", SPEC, *PAST[:1])
    file = path / "trials/0000/config.yaml"
    file.write_text(json.dumps({"alpha": 0.5, "renamed": 1}), encoding="utf-8")
    assert "unknown key 'renamed'" in fails([path])
    (path / "spec.yaml").write_text("name: s\nparameters: {renamed: {min: 0, max: 1}}\n", encoding="utf-8")
    error = fails([path])
    assert error.startswith("search.warm_start:")
    assert "unknown parameter 'renamed'" in error


def test_nothing_in_the_earlier_folder_changes(earlier: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in earlier.rglob("*")}
    warm(earlier)
    assert {path: path.stat().st_mtime_ns for path in earlier.rglob("*")} == before


def test_a_trial_that_diverged_in_its_evaluation_is_known_as_diverged(tmp_path: Path) -> None:
    folder = tmp_path / "0000"
    write_trial(folder, SPEC, Past({"alpha": 0.5}, nan_in="epoch"), seed=0)
    scored = read_trial(folder, Ledger()).scored(SPEC.objective)
    assert scored.outcome is Outcome.DIVERGED
    assert len(scored.reports) == 2
