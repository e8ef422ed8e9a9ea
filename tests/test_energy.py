"""sweep/energy.py: what counters add up to. Their files are made here, as Linux has them; no GPU is needed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from sweeping import TINY_TRAINER

from model.config import TrainConfig
from sweep import energy
from sweep.blocks import WandbSettings
from sweep.energy import COST_FILE, CPU_JOULES, GPU_JOULES, Counters, EnergyMeter
from sweep.trial import TrialRun
from sweep.trial_job import TrialJob


class Counting:
    """Counters that a test sets."""

    def __init__(self, **joules: float) -> None:
        self.joules = joules

    def __call__(self) -> dict[str, float]:
        return dict(self.joules)


def used(folder: Path) -> dict[str, float]:
    return json.loads((folder / COST_FILE).read_bytes())


def powercap(root: Path, microjoules: int) -> Path:
    """A folder as Linux makes it: two processors, a part of one, and the whole board."""
    for domain, name in (
        ("intel-rapl:0", "package-0"),
        ("intel-rapl:0:0", "core"),
        ("intel-rapl:1", "package-1"),
        ("intel-rapl:2", "psys"),
    ):
        (root / domain).mkdir(parents=True, exist_ok=True)
        for file, text in (("name", name), ("energy_uj", microjoules), ("max_energy_range_uj", 1_000_000_000)):
            (root / domain / file).write_text(f"{text}\n", encoding="ascii")
    return root


def test_energy_adds_up_over_the_parts_of_a_trial_and_what_ran_between_does_not_count(tmp_path):
    counters = Counting(gpu0=1000.0, gpu1=50.0, cpu0=7.0)
    first = EnergyMeter(tmp_path, read=counters)
    counters.joules = {"gpu0": 1100.0, "gpu1": 80.0, "cpu0": 17.0}
    first.write()
    first.write()
    assert used(tmp_path) == {GPU_JOULES: 130.0, CPU_JOULES: 10.0, "cost/cpu_cores": os.cpu_count()}
    counters.joules = {"gpu0": 5000.0, "gpu1": 80.0, "cpu0": 17.0}  # another trial's
    second = EnergyMeter(tmp_path, read=counters)
    counters.joules = {"gpu0": 5001.0, "gpu1": 80.0, "cpu0": 18.0}
    second.write()
    assert (used(tmp_path)[GPU_JOULES], used(tmp_path)[CPU_JOULES]) == (131.0, 11.0)


def test_counter_that_begins_anew_counts_on_and_one_that_is_reset_or_gone_counts_nothing(tmp_path):
    counters = Counting(cpu0=990.0, gpu0=500.0, gpu1=1.0)
    meter = EnergyMeter(tmp_path, read=counters, ranges={"cpu0": 1000.0})
    counters.joules = {"cpu0": 5.0, "gpu0": 3.0}
    meter.write()
    assert used(tmp_path)[CPU_JOULES] == 15.0
    assert GPU_JOULES not in used(tmp_path)
    counters.joules = {"cpu0": 6.0, "gpu0": 10.0}
    meter.write()
    assert used(tmp_path)[GPU_JOULES] == 7.0


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"cost/cpu_joules": "much"}', '{"cost/cpu_joules": NaN}'])
def test_damaged_file_of_an_earlier_part_counts_nothing(tmp_path, text):
    (tmp_path / COST_FILE).write_text(text, encoding="utf-8")
    counters = Counting(cpu0=1.0)
    meter = EnergyMeter(tmp_path, read=counters)
    counters.joules = {"cpu0": 3.0}
    meter.write()
    assert used(tmp_path)[CPU_JOULES] == 2.0


def test_file_that_cannot_be_written_costs_the_figure_only(tmp_path):
    (tmp_path / COST_FILE).mkdir()
    counters = Counting(cpu0=1.0)
    meter = EnergyMeter(tmp_path, read=counters)
    counters.joules = {"cpu0": 3.0}
    meter.write()
    assert list((tmp_path / COST_FILE).iterdir()) == []


def test_processors_are_counted_each_once_and_their_parts_and_the_board_not(tmp_path):
    counters = Counters(powercap(tmp_path, 2_500_000))
    assert counters.read() == {"cpu0": 2.5, "cpu1": 2.5}
    assert counters.ranges == {"cpu0": 1000.0, "cpu1": 1000.0}


def test_machine_without_readable_counters_has_none(tmp_path):
    assert Counters(tmp_path / "absent").read() == {}
    root = powercap(tmp_path, 1)
    for file in root.glob("*/energy_uj"):
        file.write_text("no number", encoding="ascii")
    assert Counters(root).read() == {}


def test_trial_keeps_the_energy_of_all_its_parts_beside_its_summary(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "POWERCAP", powercap(tmp_path / "powercap", 1_000_000))
    job = TrialJob(
        trial="0000",
        sweep="tiny",
        sweep_uid="abcd1234",
        results=tmp_path / "r",
        config=TrainConfig.model_validate(TINY_TRAINER),
        values={},
        wandb=WandbSettings(mode="disabled"),
        project="tests",
        until=1,
    )
    run = TrialRun(job)
    powercap(tmp_path / "powercap", 4_000_000)
    assert run.run_epoch().paused
    powercap(tmp_path / "powercap", 50_000_000)  # while it waited
    run = TrialRun(job.model_copy(update={"until": None}))
    powercap(tmp_path / "powercap", 51_000_000)
    while not run.run_epoch().finished:
        pass
    assert used(job.folder)[CPU_JOULES] == pytest.approx(2 * (3 + 1))
    assert not [name for name in json.loads((job.folder / "summary.json").read_bytes()) if name.startswith("cost/")]


def test_trial_on_a_machine_without_counters_leaves_no_such_file(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "absent")
    EnergyMeter(tmp_path).write()
    assert list(tmp_path.iterdir()) == []


def test_gpus_of_a_process_are_counted_in_joules_where_it_has_any():
    torch = pytest.importorskip("torch")
    counters = Counters(Path("absent"), gpus=True)
    before = counters.read()
    if not torch.cuda.is_available():
        assert before == {}
        return
    if not before:
        pytest.skip("this GPU has no counter of its energy that can be read")
    give_up = time.monotonic() + 60
    while counters.read()["gpu0"] == before["gpu0"]:
        assert time.monotonic() < give_up, "a GPU uses energy all the time"
        time.sleep(0.05)
    # 60 s of the largest GPU's 2 kW, and nothing of its years before
    assert 0 < counters.read()["gpu0"] - before["gpu0"] < 120_000
