"""What W&B's server does with sweeps and their agents: hands out configs, stops runs early, requeues preempted ones."""

from __future__ import annotations

import itertools
import json
import math
import random
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from double_runs import ENTITY, PROJECT, RunServer


@dataclass
class Command:
    """A run to hand out: type is run, or resume for one that was preempted."""

    run_id: str
    args: dict[str, dict[str, Any]]
    type: str = "run"


@dataclass
class Sweep:
    """A sweep as the server keeps it.

    Attributes:
        config: as registered.
        queue: runs that wait for an agent, first those that were preempted.
        endless: make random configs from `parameters` where the queue is empty, up to run_cap.
        handed_out: every run that an agent was told to run, in order; resumed ones are there twice.
        runs: run id -> its parameters as they were handed out.
    """

    id: str
    config: dict[str, Any]
    project: str
    entity: str = ENTITY
    state: str = "RUNNING"
    endless: bool = True
    queue: deque[Command] = field(default_factory=deque)
    handed_out: list[str] = field(default_factory=list)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return f"{self.entity}/{self.project}/{self.id}"


@dataclass
class Agent:
    """An agent as the server knows it: `running` is what it said in its last heartbeat."""

    id: str
    sweep: str
    running: set[str] = field(default_factory=set)
    told: set[str] = field(default_factory=set)
    commands: list[str] = field(default_factory=list)
    heard_at_s: float = 0.0


class SweepServer(RunServer):
    """Runs, and sweeps with their agents.

    Attributes:
        sweeps: by id.
        agents: by id.
        configs: what the next new sweep hands out, in order; where it is empty, random configs of its parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sweeps: dict[str, Sweep] = {}
        self.agents: dict[str, Agent] = {}
        self.configs: list[dict[str, Any]] = []

    # --- what tests do

    def hand_out(self, configs: Iterable[Mapping[str, Any]], sweep_id: str | None = None) -> None:
        """These are the configs of a sweep, and no others: {name: value}. Without an id, of the next new sweep."""
        if sweep_id is None:
            self.configs = [dict(config) for config in configs]
            return
        sweep = self.sweeps[sweep_id]
        sweep.endless = False
        for config in configs:
            self._enqueue(sweep, {name: {"value": value} for name, value in config.items()})

    def lose(self, run_id: str) -> None:
        """A run has not been heard of for five minutes: preempted where it said so before, else crashed."""
        self.exit_code[run_id] = 255
        self.on_ended(run_id)

    # --- GraphQL

    def on_UpsertSweep(self, variables: dict[str, Any]) -> dict[str, Any]:
        known = (variables.get("id") or "").removeprefix("id-")
        if known:
            sweep = self.sweeps[known]
        else:
            project, entity = variables.get("projectName") or PROJECT, variables.get("entityName") or ENTITY
            sweep = Sweep(f"sweep{len(self.sweeps)}", {}, project, entity)
            self.sweeps[sweep.id] = sweep
        if variables.get("config"):
            sweep.config = yaml.safe_load(variables["config"])
        if variables.get("state"):
            sweep.state = variables["state"]
        if not known and self.configs:
            self.hand_out(self.configs, sweep.id)
            self.configs = []
        node = {"name": sweep.id, "state": sweep.state, "project": self.project_node(sweep.project, sweep.entity)}
        return {"upsertSweep": {"sweep": node, "configValidationWarnings": []}}

    def on_UpsertSweepState(self, variables: dict[str, Any]) -> dict[str, Any]:
        return self.on_UpsertSweep(variables)

    def on_SweepWithRuns(self, variables: dict[str, Any]) -> dict[str, Any]:
        sweep = self.sweeps.get(variables["sweep"])
        if sweep is None:
            return {"project": {"sweep": None}}
        return {"project": {"sweep": {**self._sweep_node(sweep), "runs": self._edges(sweep.runs, variables)}}}

    def on_GetSweepState(self, variables: dict[str, Any]) -> dict[str, Any]:
        return self.on_SweepWithRuns(variables)

    def on_SweepConfig(self, variables: dict[str, Any]) -> dict[str, Any]:
        return self.on_SweepWithRuns(variables)

    def on_SweepRunsWithHistory(self, variables: dict[str, Any]) -> dict[str, Any]:
        return self.on_SweepWithRuns(variables)

    def on_SweepWatchedRuns(self, variables: dict[str, Any]) -> dict[str, Any]:
        sweep = self.sweeps[variables["sweep"]]
        wanted = [run_id for run_id in self.run if f'"{run_id}"' in variables["filters"]]
        return {"project": {"sweep": self._sweep_node(sweep), "runs": self._edges(wanted, variables)}}

    def on_EnqueueSweepRun(self, variables: dict[str, Any]) -> dict[str, Any]:
        sweep = self.sweeps[variables["id"].removeprefix("id-")]
        sweep.endless = False
        config = json.loads(variables["config"])
        args = {k: v if isinstance(v, dict) and "value" in v else {"value": v} for k, v in config.items()}
        command = self._enqueue(sweep, args)
        self.run[command.run_id] = {
            "name": command.run_id,
            "config": json.dumps(args),
            "sweep": sweep.id,
            "displayName": variables.get("displayName"),
        }
        return {"enqueueSweepRun": {"id": f"id-{command.run_id}", "runQueueItemId": command.run_id}}

    def on_CreateAgent(self, variables: dict[str, Any]) -> dict[str, Any]:
        agent = Agent(f"agent{len(self.agents)}", variables["sweep"])
        self.agents[agent.id] = agent
        return {"createAgent": {"agent": {"id": agent.id}}}

    def on_Heartbeat(self, variables: dict[str, Any]) -> dict[str, Any]:
        agent = self.agents[variables["id"]]
        agent.running = set(json.loads(variables["runState"]))
        agent.heard_at_s = time.monotonic()
        commands = self._commands(agent, self.sweeps[agent.sweep])
        agent.commands += [command["type"] for command in commands]
        return {"agentHeartbeat": {"agent": {"id": agent.id}, "commands": json.dumps(commands)}}

    def _commands(self, agent: Agent, sweep: Sweep) -> list[dict[str, Any]]:
        stops = sorted(agent.running & self.stopped)
        if stops:
            return [{"type": "stop", "run_id": run_id} for run_id in stops]
        if agent.running or sweep.state == "PAUSED":
            return []
        command = self._next(sweep)
        if command is None:
            preempted_soon = any(self.state(run_id) == "preempting" for run_id in sweep.runs if run_id in self.run)
            if sweep.state == "RUNNING" and preempted_soon:
                return []
            if self._is_custom(sweep) and sweep.state == "RUNNING":
                return []  # its scheduler will queue more
            return [{"type": "exit"}]
        sweep.handed_out.append(command.run_id)
        agent.told.add(command.run_id)
        program = sweep.config.get("program") or "train.py"
        return [{"type": command.type, "run_id": command.run_id, "program": program, "args": command.args}]

    def _next(self, sweep: Sweep) -> Command | None:
        if sweep.state != "RUNNING":
            return None
        new = not sweep.queue or sweep.queue[0].type == "run"
        if new and len(set(sweep.handed_out)) >= (sweep.config.get("run_cap") or math.inf):
            return None
        if not sweep.queue and sweep.endless and not self._is_custom(sweep):
            self._enqueue(sweep, _random_args(sweep.config["parameters"], random.Random(len(sweep.runs))))
        return sweep.queue.popleft() if sweep.queue else None

    @staticmethod
    def _is_custom(sweep: Sweep) -> bool:
        return sweep.config.get("method") == "custom"

    def _enqueue(self, sweep: Sweep, args: dict[str, dict[str, Any]]) -> Command:
        command = Command(f"{sweep.id}-run{len(sweep.runs)}", args)
        sweep.runs[command.run_id] = {name: entry["value"] for name, entry in args.items()}
        sweep.queue.append(command)
        return command

    def _sweep_node(self, sweep: Sweep) -> dict[str, Any]:
        return {
            "id": f"id-{sweep.id}",
            "name": sweep.id,
            "displayName": sweep.config.get("name"),
            "method": sweep.config.get("method"),
            "state": sweep.state,
            "config": yaml.safe_dump(sweep.config),
            "controllerRunName": None,
            "runCount": len(sweep.runs),
        }

    def _edges(self, run_ids: Iterable[str], variables: dict[str, Any]) -> dict[str, Any]:
        specs = variables.get("historySpecs") or variables.get("specs") or []
        nodes = [self.node(run_id, specs) for run_id in run_ids if run_id in self.run]
        return {"edges": [{"node": node} for node in nodes], "pageInfo": {"hasNextPage": False, "endCursor": None}}

    # --- what rows and ends of runs set going

    def on_ended(self, run_id: str) -> None:
        super().on_ended(run_id)
        for sweep in self.sweeps.values():
            if run_id in sweep.runs and self.state(run_id) == "preempted":
                args = {name: {"value": value} for name, value in sweep.runs[run_id].items()}
                sweep.queue.appendleft(Command(run_id, args, "resume"))

    def on_rows(self, run_id: str) -> None:
        super().on_rows(run_id)
        for sweep in self.sweeps.values():
            if run_id in sweep.runs and "early_terminate" in sweep.config:
                self._hyperband(sweep)

    def _hyperband(self, sweep: Sweep) -> None:
        """W&B's rule: a run goes on if its best value so far is within the best 1/eta of all runs at the last band.

        An iteration is a row that has the metric.
        """
        rule, metric = sweep.config["early_terminate"], sweep.config["metric"]
        bands, sign = _bands(rule), -1.0 if metric.get("goal") == "maximize" else 1.0
        values = {run_id: [sign * value for value in self.logged(run_id, metric["name"])] for run_id in sweep.runs}
        for run_id, own in values.items():
            passed = [band for band in bands if band <= len(own)]
            if not passed or run_id in self.exit_code:
                continue
            band = passed[-1]
            at_band = sorted(other[band - 1] for other in values.values() if len(other) >= band)
            judged = own[band - 1] if rule.get("strict") else min(own)
            if judged > at_band[int(len(at_band) / rule.get("eta", 3))]:
                self.stop(run_id)

    def logged(self, run_id: str, name: str) -> list[float]:
        """The values of a metric, one for each row that has it; those that are no number are left out."""
        values = (row.get(name) for _, row in sorted(self.history[run_id].items()))
        return [value for value in values if isinstance(value, int | float) and math.isfinite(value)]


def _bands(rule: Mapping[str, Any]) -> list[int]:
    eta = rule.get("eta", 3)
    if "max_iter" in rule:
        return sorted(int(rule["max_iter"] / eta**i) for i in range(1, rule["s"] + 1) if rule["max_iter"] / eta**i >= 1)
    return [int(rule["min_iter"] * eta**i) for i in range(20)]


def _random_args(parameters: Mapping[str, Any], rng: random.Random) -> dict[str, dict[str, Any]]:
    """One random config, nested names as mappings, in the form in which an agent gets it."""
    return {name: {"value": _random_value(entry, rng)} for name, entry in parameters.items()}


def _random_value(entry: Mapping[str, Any], rng: random.Random) -> Any:
    if "parameters" in entry:
        return {name: _random_value(inner, rng) for name, inner in entry["parameters"].items()}
    if "value" in entry:
        return entry["value"]
    if "values" in entry:
        return rng.choices(entry["values"], entry.get("probabilities"))[0]
    distribution = entry.get("distribution") or (
        "int_uniform" if isinstance(entry["min"], int) and isinstance(entry["max"], int) else "uniform"
    )
    if distribution == "int_uniform":
        return rng.randint(entry["min"], entry["max"])
    if distribution == "log_uniform_values":
        return math.exp(rng.uniform(math.log(entry["min"]), math.log(entry["max"])))
    if distribution == "q_uniform":
        return round(rng.uniform(entry["min"], entry["max"]) / entry["q"]) * entry["q"]
    assert distribution == "uniform", f"the double draws no {distribution}: give the configs to hand_out"
    return rng.uniform(entry["min"], entry["max"])


def grid(**axes: Iterable[Any]) -> list[dict[str, Any]]:
    """All combinations, for `hand_out`."""
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]
