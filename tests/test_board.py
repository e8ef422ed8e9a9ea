"""sweep/board.py: the saved view that arrives at a double of W&B's server on loopback."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from past_sweeps import Past, past_sweep
from sweeping import tiny_spec
from wandb_double import WandbDouble

from model.metrics import CONTRACT
from sweep.board import SECTIONS, main, sections
from sweep.wandb_client import reset_client

KEY = "0123456789012345678901234567890123456789"
# part 4 of the metric text
EXPECTED = [
    [
        ("batch/loss_total", "batch/iteration"),
        ("batch/loss_static", "batch/iteration"),
        ("batch/loss_dynamic", "batch/iteration"),
        ("batch/loss_ratio", "batch/iteration"),
    ],
    [
        ("batch/static_contribution", "batch/iteration"),
        ("batch/dynamic_contribution", "batch/iteration"),
        ("epoch/actual_static_contribution", "epoch"),
        ("epoch/actual_dynamic_contribution", "epoch"),
    ],
    [
        ("batch/weighted_static", "batch/iteration"),
        ("batch/weighted_dynamic", "batch/iteration"),
        ("batch/lr", "batch/iteration"),
        ("epoch/best_loss_so_far", "epoch"),
    ],
]


class ViewDouble(WandbDouble):
    """Keeps the saved views of projects, as W&B does: one without an id is new.

    Attributes:
        views: by id.
        projects: that there are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.views: dict[str, dict[str, Any]] = {}
        self.projects = {"me/tactile-sweep", "me/p"}

    def on_GetDefaultEntity(self, variables: dict[str, Any]) -> dict[str, Any]:
        return self.on_Viewer(variables)

    def on_View(self, variables: dict[str, Any]) -> dict[str, Any]:
        place = f"{variables['entityName']}/{variables['name']}"
        if place not in self.projects:
            return {"project": None}
        there = [view for view in self.views.values() if self._is(view, place, variables["viewName"])]
        return {"project": {"allViews": {"edges": [{"node": view} for view in there]}}}

    def on_UpsertView2(self, variables: dict[str, Any]) -> dict[str, Any]:
        known = variables.get("id")
        view_id = known or f"view{len(self.views)}"
        self.views[view_id] = {**self.views.get(view_id, {}), **variables, "id": view_id}
        return {"upsertView": {"view": {"id": view_id, "name": variables["name"]}, "inserted": not known}}

    @staticmethod
    def _is(view: dict[str, Any], place: str, name: str) -> bool:
        return f"{view['entityName']}/{view['projectName']}" == place and view["name"] == name

    def section(self, view_id: str = "view0") -> dict[str, Any]:
        section: dict[str, Any] = json.loads(self.views[view_id]["spec"])["section"]
        return section

    def panels(self, view_id: str = "view0") -> list[tuple[str, list[tuple[list[str], str]]]]:
        """(section, [(metrics, axis) of each panel]) in the order of the page."""
        return [
            (section["name"], [(panel["config"]["metrics"], panel["config"]["xAxis"]) for panel in section["panels"]])
            for section in self.section(view_id)["panelBankConfig"]["sections"]
        ]

    def filters(self, view_id: str = "view0") -> list[tuple[str, str, str]]:
        (runs,) = self.section(view_id)["runSets"]
        return [(entry["key"]["name"], entry["op"], entry["value"]) for entry in runs["filters"]["filters"]]


@pytest.fixture(autouse=True)
def bare_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.chdir(tmp_path / "home")
    yield
    reset_client()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ViewDouble]:
    with ViewDouble() as double:
        monkeypatch.setenv("WANDB_BASE_URL", double.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setattr("sweep.wandb_board.RETRIES", 0)
        yield double


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return past_sweep(tmp_path / "results", tiny_spec(), Past({"alpha": 0.5, "base_lr": 0.03}))


def expected_panels() -> list[tuple[str, list[tuple[list[str], str]]]]:
    return [
        (title, [([metric], axis) for metric, axis in panels]) for title, panels in zip(SECTIONS, EXPECTED, strict=True)
    ]


def test_the_sections_are_those_of_the_metric_text_and_name_metrics_that_are_logged():
    assert [[(panel.metric, panel.axis) for panel in section.panels] for section in sections()] == EXPECTED
    assert {panel.metric for section in sections() for panel in section.panels} <= {m.name for m in CONTRACT}


def test_the_view_of_a_sweep_arrives_with_its_panels_in_order_for_its_own_runs(results, server, capsys):
    assert main([str(results)]) == 0
    (view,) = server.views.values()
    assert (view["entityName"], view["projectName"], view["type"]) == ("me", "tactile-sweep", "project-view")
    assert view["displayName"] == "sweep tiny"
    assert server.panels() == expected_panels()
    assert server.filters() == [("group", "=", "tiny")]
    url = f"{server.url}/me/tactile-sweep?nw={view['name'].removeprefix('nw-').removesuffix('-v')}"
    assert capsys.readouterr().out == f"view 'sweep tiny' made: {url}\n"
    assert server.unknown == set()


def test_a_repetition_brings_the_view_up_to_date_and_keeps_what_the_user_added(results, server, capsys):
    assert main([str(results)]) == 0
    spec = json.loads(server.views["view0"]["spec"])
    bank = spec["section"]["panelBankConfig"]["sections"]
    mine = {**bank[0], "name": "mine", "panels": bank[2]["panels"][:1]}
    spec["section"]["panelBankConfig"]["sections"] = [mine, bank[2], bank[1]]  # moved, and one removed
    server.views["view0"]["spec"] = json.dumps(spec)
    assert main([str(results)]) == 0
    assert list(server.views) == ["view0"]
    assert server.panels() == [*expected_panels(), ("mine", [(["batch/weighted_static"], "batch/iteration")])]
    assert server.filters() == [("group", "=", "tiny")]
    assert "brought up to date: " in capsys.readouterr().out


def test_a_project_is_shown_as_a_whole_or_one_sweep_of_it(server, capsys):
    assert main(["me/p"]) == 0
    assert main(["me/p", "--sweep", 'it\'s "mine" + 你好']) == 0
    assert main(["me/p"]) == 0
    assert len(server.views) == 2  # one for each choice of runs
    assert server.filters("view0") == []
    assert server.filters("view1") == [("group", "=", 'it\'s "mine" + 你好')]
    assert server.views["view1"]["displayName"] == 'sweep it\'s "mine" - 你好'


def test_a_project_that_is_not_there_is_named(server, capsys):
    assert main(["me/typo"]) == 1
    assert "me/typo: W&B has no such project" in capsys.readouterr().err
    assert server.views == {}


@pytest.mark.parametrize("behaviour", ["refuse_key", "error"])
def test_a_server_that_refuses_costs_one_line_without_the_key(server, capsys, behaviour):
    server.behaviour = behaviour
    assert main(["me/p"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert [line for line in err.splitlines() if line.startswith("error: me/p: W&B did not take the view")]
    assert KEY not in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("environment", "says"), [({}, "no credentials"), ({"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "WANDB_MODE")]
)
def test_offline_or_without_a_key_one_line_says_so(results, monkeypatch, capsys, environment, says):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main([str(results)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: W&B is offline here: ")
    assert says in line


def test_a_dry_run_prints_the_panels_and_asks_nothing(results, server, capsys):
    assert main([str(results), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "view 'sweep tiny' of the project (your default entity)/tactile-sweep: runs of the group tiny"
    assert [tuple(line.split("  over ")) for line in lines if "  over " in line] == [
        (f"  {metric}", axis) for panels in EXPECTED for metric, axis in panels
    ]
    assert server.requests == 0


@pytest.mark.parametrize("target", ["nothing", "a/b/c", "/a", "./x", ""])
def test_what_is_neither_a_folder_nor_a_project_is_refused(target, capsys, server, monkeypatch):
    assert main([target, "--dry-run"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_folder_without_a_sweep_is_refused(tmp_path, capsys):
    assert main([str(tmp_path), "--dry-run"]) == 2
    assert "holds no sweep" in capsys.readouterr().err


def test_without_the_library_the_extra_is_named(server, monkeypatch, capsys):
    for module in ("wandb_workspaces", "wandb_workspaces.workspaces"):
        monkeypatch.setitem(sys.modules, module, None)
    assert main(["me/p"]) == 2
    assert "pip install -e '.[board]'" in capsys.readouterr().err
