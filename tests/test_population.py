"""Populations that really train, without Ray: parts, copies, rows, interruptions."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from model.errors import UserError
from model.folder import LAST
from model.sinks import read_csv
from sweep.pbt import COPIED
from sweep.plan import first_trials
from sweep.population import LEDGER, Ledger, PopulationSearcher
from sweep.results import ResultsFolder
from sweep.run import run
from sweep.searcher import DIVERGED, EPOCHS, FINISHED, INTERRUPTED, PAUSED, SECONDS
from sweep.spec import SweepSpec
from sweep.study import Outcome, SweepStudy
from sweep.trial import TrialRun
from sweep.trial_job import TrialJob
from tests.inline import inline_runner
from tests.offline import read_history
from tests.sweeping import TINY_TRAINER, tiny_spec, trial_folders

pytestmark = pytest.mark.xdist_group("population")  # one population that was not interrupted
METRIC = "objective/value"
PBT = {"parameters": ["alpha", "base_lr"], "quantile": 0.5}
UPDATES = 6  # of an epoch of the tiny trainer
EPOCHS_OF_A_TRIAL = TINY_TRAINER["epochs"]


def population_spec(pbt: dict[str, Any] | None = None, **changes: Any) -> SweepSpec:
    """6 trials, two of them presets, of which up to 3 copy after each epoch."""
    content = {"run_cap": 6, "method": "random", "search": {"pbt": PBT | (pbt or {})}, "wandb": {"mode": "disabled"}}
    return tiny_spec(**content | changes)


class Killed(Exception):
    """The driver dies."""


def searcher_of(folder: Path, spec: SweepSpec) -> tuple[SweepStudy, PopulationSearcher]:
    folder.mkdir(exist_ok=True)
    study = SweepStudy(folder, spec.name, spec.space, sampler="random", first=first_trials(spec))
    ended = sum(record.outcome is not Outcome.RUNNING for record in study.records())
    return study, PopulationSearcher(spec, folder, study, spec.num_trials - ended, lambda number: f"crash of {number}")


def job(folder: Path, suggestion: dict[str, Any]) -> TrialJob:
    shared = {"sweep": "tiny", "sweep_uid": "abcd1234", "results": folder, "project": "tests"}
    return TrialJob.model_validate(shared | {"wandb": {"mode": "disabled"}} | suggestion)


def trained(folder: Path, suggestion: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What a worker reports of a part."""
    part = TrialRun(job(folder, suggestion))
    while True:
        report = part.run_epoch()
        ended = {FINISHED: report.finished, DIVERGED: report.diverged, PAUSED: report.paused}
        yield report.metrics | ended | {EPOCHS: report.epochs, SECONDS: 1.0}


def imagined(folder: Path, suggestion: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The same of a trial without training, which is worse the further alpha is from 0.4."""
    folder = folder / "trials" / suggestion["trial"]
    (folder / LAST).parent.mkdir(parents=True, exist_ok=True)
    done = folder / "done"
    while True:
        epochs = (int(done.read_text()) if done.exists() else 0) + 1
        epochs = min(epochs, suggestion["until"])
        done.write_text(str(epochs))
        (folder / LAST).write_text(f"{suggestion['trial']} after {epochs}")
        finished = epochs == EPOCHS_OF_A_TRIAL
        ended = {FINISHED: finished, DIVERGED: None, PAUSED: not finished and epochs == suggestion["until"]}
        yield {METRIC: abs(suggestion["values"]["alpha"] - 0.4) + 1 / epochs} | ended | {EPOCHS: epochs, SECONDS: 1.0}


def drive(
    folder: Path,
    spec: SweepSpec,
    train: Callable[[Path, dict[str, Any]], Iterator[dict[str, Any]]],
    *,
    workers: int = 1,
    die_after: int | None = None,
    order: int = 0,
) -> SweepStudy:
    """The calls that Ray makes; `order` decides which worker is the faster. Killed before a report it hears no more."""
    study, searcher = searcher_of(folder, spec)
    draws = random.Random(order)
    running: dict[str, Iterator[dict[str, Any]]] = {}
    suggestion: dict[str, Any] | str | None = None
    asked = reports = 0
    while True:
        while len(running) < workers and suggestion != PopulationSearcher.FINISHED:
            asked += 1
            suggestion = searcher.suggest(f"ray-{asked}")
            if not isinstance(suggestion, dict):
                break
            running[f"ray-{asked}"] = train(folder, suggestion)
        if not running:
            assert suggestion == PopulationSearcher.FINISHED, "the population waits for nobody"
            return study
        ray_id = draws.choice(sorted(running))
        result = next(running[ray_id])
        if reports == die_after:
            raise Killed
        reports += 1
        if result[FINISHED] or result[DIVERGED] or result[PAUSED]:
            searcher.on_trial_complete(ray_id, result)
            del running[ray_id]
        else:
            searcher.on_trial_result(ray_id, result)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SweepStudy]:
    """A population that trained without interruption, one worker."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, drive(folder, population_spec(), trained)


def rows(folder: Path) -> dict[str, tuple[str, str]]:
    """The CSV files of each trial, as text."""
    return {
        trial.name: ((trial / "batch.csv").read_text(), (trial / "epoch.csv").read_text())
        for trial in trial_folders(folder)
    }


def test_every_trial_keeps_its_rows_each_once(whole: tuple[Path, SweepStudy]) -> None:
    folder, study = whole
    for trial in trial_folders(folder):
        updates = [row["batch/iteration"] for row in read_csv(trial / "batch.csv")]
        epochs = [row["epoch"] for row in read_csv(trial / "epoch.csv")]
        assert updates == list(range(EPOCHS_OF_A_TRIAL * UPDATES))
        assert epochs == list(range(EPOCHS_OF_A_TRIAL))
    assert [(record.outcome, record.epochs) for record in study.records()] == [
        (Outcome.COMPLETE, EPOCHS_OF_A_TRIAL)
    ] * 6


def test_a_change_shows_in_the_rows_in_the_config_and_in_the_study(whole: tuple[Path, SweepStudy]) -> None:
    folder, study = whole
    changes = Ledger.of(folder).changes
    assert changes
    for record in study.records():
        own = [change for change in changes if change.trial == record.trial]
        alphas = {
            int(row["batch/epoch"]): row["batch/alpha"] for row in read_csv(folder / f"trials/{record.trial}/batch.csv")
        }
        wanted = dict.fromkeys(range(EPOCHS_OF_A_TRIAL), record.values["alpha"])
        for change in own:
            wanted |= dict.fromkeys(range(change.epochs, EPOCHS_OF_A_TRIAL), change.values["alpha"])
        assert alphas == wanted
        text = (folder / f"trials/{record.trial}/config.yaml").read_text()
        assert [line[2:] for line in text.splitlines() if "weights of trial" in line] == [str(change) for change in own]
        assert record.final_values == (record.values | own[-1].values if own else None)


def test_the_objective_goes_on_over_the_trials_own_rows(whole: tuple[Path, SweepStudy]) -> None:
    folder, _ = whole
    for trial in trial_folders(folder):
        epochs = read_csv(trial / "epoch.csv")
        losses = [row["epoch/train_loss"] for row in epochs]
        assert [row["epoch/best_loss_so_far"] for row in epochs] == [
            min(losses[: end + 1]) for end in range(len(losses))
        ]
        best = min(row["eval/reference_loss"] for row in epochs)
        assert epochs[-1]["objective/loss"] == best


def test_presets_never_change(whole: tuple[Path, SweepStudy]) -> None:
    folder, study = whole
    presets = [record.trial for record in study.records() if record.preset is not None]
    assert len(presets) == 2
    assert not [change for change in Ledger.of(folder).changes if change.trial in presets]


def test_a_copy_trains_on_exactly_as_its_source_would_with_the_same_values(tmp_path: Path) -> None:
    """Weights, moments and update number come along; weight decay and learning rate are the new ones."""
    values = {"alpha": 0.3, "base_lr": 0.05, "weight_decay": 0.2}
    trainer = population_spec().trainer.model_dump(mode="json")
    source = {"trial": "0001", "config": trainer, "values": {}, "until": 1}
    other = {"trial": "0002", "config": trainer | {"alpha": 0.8, "weight_decay": 0.0}, "values": {}, "until": 1}
    for suggestion in (source, other):
        next(trained(tmp_path, suggestion))
    (tmp_path / "trials/0002" / LAST).with_name(COPIED).hardlink_to(tmp_path / "trials/0001" / LAST)
    state = torch.load(tmp_path / "trials/0001" / LAST, weights_only=True)
    next(trained(tmp_path, other | {"config": trainer | values, "until": 2}))

    (tmp_path / "trials/0003" / LAST).parent.mkdir(parents=True)
    for name in ("batch.csv", "epoch.csv"):
        (tmp_path / "trials/0003" / name).write_bytes((tmp_path / "trials/0001" / name).read_bytes())
    torch.save(state | {"config": state["config"] | values}, tmp_path / "trials/0003" / LAST)
    next(trained(tmp_path, {"trial": "0003", "config": trainer | values, "values": {}, "until": 2}))

    copy, reference = (torch.load(tmp_path / f"trials/{name}" / LAST, weights_only=True) for name in ("0002", "0003"))
    assert all(torch.equal(copy["model"][name], reference["model"][name]) for name in reference["model"])
    assert [group["weight_decay"] for group in copy["optimiser"]["param_groups"]] == [0.2, 0.0]
    assert (
        read_csv(tmp_path / "trials/0002/batch.csv")[UPDATES:] == read_csv(tmp_path / "trials/0003/batch.csv")[UPDATES:]
    )


def test_pauses_alone_change_no_row(tmp_path: Path) -> None:
    trainer = population_spec().trainer.model_dump(mode="json")
    part = {"trial": "0001", "config": trainer, "values": {}}
    for until in range(1, EPOCHS_OF_A_TRIAL + 1):
        next(trained(tmp_path / "parts", part | {"until": until}))
    run = trained(tmp_path / "one", part)
    while not next(run)[FINISHED]:
        pass
    assert rows(tmp_path / "parts") == rows(tmp_path / "one")


def test_a_copy_that_cannot_be_used_leaves_the_trial_its_own_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = population_spec().trainer.model_dump(mode="json")
    part = {"trial": "0001", "config": trainer, "values": {}}
    next(trained(tmp_path, part | {"until": 1}))
    copied = (tmp_path / "trials/0001" / LAST).with_name(COPIED)
    copied.write_bytes(b"cut short")
    assert next(trained(tmp_path, part | {"config": trainer | {"alpha": 0.3}, "until": 2}))[EPOCHS] == 2
    assert "trial 0001 keeps its own weights" in caplog.text
    assert not copied.exists()


def test_rows_of_all_parts_also_of_a_killed_one_are_in_wandb_each_once(tmp_path: Path) -> None:
    trainer = population_spec().trainer.model_dump(mode="json")
    for until in range(1, EPOCHS_OF_A_TRIAL + 1):
        part = {"trial": "0001", "config": trainer, "values": {}, "until": until, "wandb": {"mode": "offline"}}
        if until == 2:  # a part that is killed sent some rows already
            killed = TrialRun(job(tmp_path, part))
            events = killed._trainer.run_epoch()
            for _ in range(3):
                killed._log(next(events))
            killed._sinks.pop().close(1)
        next(trained(tmp_path, part))
    history = read_history(tmp_path)
    folder = tmp_path / "trials/0001"
    assert [row for row in history if "batch/iteration" in row] == read_csv(folder / "batch.csv")
    assert [row for row in history if "epoch" in row] == read_csv(folder / "epoch.csv")


def test_changes_and_rows_are_the_same_for_any_number_of_workers(
    tmp_path: Path, whole: tuple[Path, SweepStudy]
) -> None:
    drive(tmp_path, population_spec(), trained, workers=3, order=1)
    assert (tmp_path / LEDGER).read_text() == (whole[0] / LEDGER).read_text()
    assert rows(tmp_path) == rows(whole[0])


@pytest.mark.parametrize("die_after", [3, 8])
def test_a_killed_population_goes_on_to_the_same_changes_and_rows(
    tmp_path: Path, whole: tuple[Path, SweepStudy], die_after: int
) -> None:
    with pytest.raises(Killed):
        drive(tmp_path, population_spec(), trained, workers=2, die_after=die_after)
    study = drive(tmp_path, population_spec(), trained, workers=2)
    assert (tmp_path / LEDGER).read_text() == (whole[0] / LEDGER).read_text()
    assert rows(tmp_path) == rows(whole[0])
    assert study.records() == [
        type(record)(**vars(record) | {"seconds": pytest.approx(record.seconds, abs=3)})
        for record in whole[1].records()
    ]


@pytest.mark.parametrize("die_after", range(18))
def test_wherever_the_driver_dies_no_turn_is_lost_or_taken_twice(tmp_path: Path, die_after: int) -> None:
    spec = population_spec()
    drive(tmp_path / "whole", spec, imagined, workers=3)
    with pytest.raises(Killed):
        drive(tmp_path / "parts", spec, imagined, workers=3, die_after=die_after)
    drive(tmp_path / "parts", spec, imagined, workers=3, order=1)
    assert (tmp_path / "parts" / LEDGER).read_text() == (tmp_path / "whole" / LEDGER).read_text()


def test_a_driver_that_dies_within_a_turn_takes_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = population_spec()
    drive(tmp_path / "whole", spec, imagined)

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "add", die)
        with pytest.raises(Killed):
            drive(tmp_path / "parts", spec, imagined)
    drive(tmp_path / "parts", spec, imagined)
    assert (tmp_path / "parts" / LEDGER).read_text() == (tmp_path / "whole" / LEDGER).read_text()


def test_the_copy_is_the_sources_checkpoint_of_that_epoch_though_the_source_trains_on(tmp_path: Path) -> None:
    spec = population_spec()
    _, searcher = searcher_of(tmp_path, spec)
    for number in range(6):
        suggestion = searcher.suggest(f"ray-{number}")
        assert isinstance(suggestion, dict)
        searcher.on_trial_complete(f"ray-{number}", next(imagined(tmp_path, suggestion)))
    change = Ledger.of(tmp_path).changes[0]
    copied = (tmp_path / "trials" / change.trial / LAST).with_name(COPIED)
    assert copied.read_text() == f"{change.source} after 1"
    suggestions = [searcher.suggest(f"ray-again-{number}") for number in range(6)]
    [changed] = [s for s in suggestions if isinstance(s, dict) and s["trial"] == change.trial]
    assert {name: changed["values"][name] for name in change.values} == change.values
    assert changed["config"]["alpha"] == change.values["alpha"]
    assert searcher.suggest("ray-more") is None  # all are at work


def test_a_diverged_and_a_crashed_trial_leave_the_population_which_goes_on(tmp_path: Path) -> None:
    spec = population_spec()
    study, searcher = searcher_of(tmp_path, spec)
    for number in range(6):
        suggestion = searcher.suggest(f"ray-{number}")
        assert isinstance(suggestion, dict)
        if number == 2:
            last = {METRIC: float("nan"), EPOCHS: 0, DIVERGED: "loss_pred = nan", FINISHED: False}
            searcher.on_trial_complete(f"ray-{number}", last)
        elif number == 3:
            searcher.on_trial_complete(f"ray-{number}", error=True)
        else:
            searcher.on_trial_complete(f"ray-{number}", next(imagined(tmp_path, suggestion)))
    assert study.record("0002").outcome is Outcome.DIVERGED
    assert (study.record("0003").outcome, study.record("0003").reason) == (Outcome.FAILED, "crash of 3")
    ledger = Ledger.of(tmp_path)
    assert ledger.turned == 1
    assert not {"0002", "0003"} & {name for change in ledger.changes for name in (change.trial, change.source)}


def test_a_stopped_population_takes_no_turn_without_those_that_were_interrupted(tmp_path: Path) -> None:
    study, searcher = searcher_of(tmp_path, population_spec())
    suggestions = [searcher.suggest(f"ray-{number}") for number in range(6)]
    for number, suggestion in enumerate(suggestions[:5]):
        assert isinstance(suggestion, dict)
        searcher.on_trial_complete(f"ray-{number}", next(imagined(tmp_path, suggestion)))
    searcher.stopping = True
    searcher.on_trial_complete("ray-5", {INTERRUPTED: True, "done": True})
    assert searcher.suggest("ray-6") == PopulationSearcher.FINISHED
    assert Ledger.of(tmp_path).turned == 0
    assert {record.outcome for record in study.records()} == {Outcome.RUNNING}
    assert [record.seconds for record in study.records()] == [1.0] * 5 + [0.0]


def test_a_change_that_the_trainer_would_refuse_is_not_made(tmp_path: Path) -> None:
    content = {
        "parameters": {"alpha": {"min": 0.1, "max": 0.9}, "base_lr": {"min": 0.01, "max": 0.3}},
        "trainer": TINY_TRAINER,
    }
    _, searcher = searcher_of(tmp_path, population_spec(**content))
    make = searcher._config

    def picky(values: dict[str, Any]) -> Any:
        from model.errors import ConfigError

        if searcher._members and values["alpha"] not in {
            m.suggestion["values"]["alpha"] for m in searcher._members.values()
        }:
            raise ConfigError("trial: not these")
        return make(values)

    searcher._config = picky  # type: ignore[method-assign]
    for number in range(6):
        suggestion = searcher.suggest(f"ray-{number}")
        assert isinstance(suggestion, dict)
        searcher.on_trial_complete(f"ray-{number}", next(imagined(tmp_path, suggestion)))
    assert (Ledger.of(tmp_path).turned, Ledger.of(tmp_path).changes) == (1, [])


def test_a_damaged_ledger_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / LEDGER).write_text('{"turned": 1, "chang')
    with pytest.raises(UserError, match=r"population\.json: damaged .* restore it from a copy"):
        Ledger.of(tmp_path)


def test_a_whole_sweep_trains_its_population_in_parts_and_none_stays_running(
    tmp_path: Path, whole: tuple[Path, SweepStudy]
) -> None:
    spec = population_spec(resources={"cpu": 0.5, "max_concurrent": 2})
    results = tmp_path / "results"
    with inline_runner():
        assert run(spec, ResultsFolder(results), Console(quiet=True)) == 0
    assert rows(results) == rows(whole[0])
    assert (results / LEDGER).read_text() == (whole[0] / LEDGER).read_text()
    study = SweepStudy(results, spec.name, spec.space)
    assert [record.outcome for record in study.records()] == [Outcome.COMPLETE] * 6
