"""The double of W&B's server, with what `wandb sweep-scheduler` asks beside what agents do."""

from __future__ import annotations

import json
import math
import random
from typing import Any

from double_sweeps import Sweep
from wandb_double import WandbDouble


class SchedulerDouble(WandbDouble):
    """A server that has the feature of local schedulers.

    Attributes:
        queued: the configs that schedulers put in line, {name: value}, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.queued: list[dict[str, Any]] = []

    def on_ServerFeaturesQuery(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": [{"name": "SWEEPS_LOCAL_SCHEDULER", "isEnabled": True}]}}

    def on_EnqueueSweepRun(self, variables: dict[str, Any]) -> dict[str, Any]:
        """The payload's id is the run's name: the client looks for the run by it."""
        answer = super().on_EnqueueSweepRun(variables)
        name = answer["enqueueSweepRun"]["id"].removeprefix("id-")
        self.queued.append({key: entry["value"] for key, entry in self.run_args(name).items()})
        return {"enqueueSweepRun": {**answer["enqueueSweepRun"], "id": name}}

    def run_args(self, run_id: str) -> dict[str, dict[str, Any]]:
        """A queued run's parameters as its agent will get them."""
        (command,) = [c for sweep in self.sweeps.values() for c in sweep.queue if c.run_id == run_id]
        return command.args

    def _sampled(self, run_id: str, spec: dict[str, Any]) -> list[dict[str, Any]]:
        """At most so many rows as are asked for, picked at random, but for the last one."""
        rows, most = super()._sampled(run_id, spec), spec.get("samples", 500)
        if len(rows) <= most:
            return rows
        picked = random.Random(len(rows)).sample(range(len(rows) - 1), most - 1)
        return [rows[place] for place in [*sorted(picked), len(rows) - 1]]

    def node(self, run_id: str, specs: Any = ()) -> dict[str, Any]:
        """As that of any run; NaN is a text, as the server writes it, since JSON has no such number."""
        node = super().node(run_id, specs)
        summary = json.dumps(_spelled(json.loads(node["summaryMetrics"])))
        return node | {"summaryMetrics": summary, "sampledHistory": _spelled(node["sampledHistory"])}

    def state(self, run_id: str) -> str:
        """As that of any run; one that waits for an agent is pending."""
        return super().state(run_id) if run_id in self.starts else "pending"

    def _sweep_node(self, sweep: Sweep) -> dict[str, Any]:
        return super()._sweep_node(sweep) | {"controllerRunName": f"{sweep.id}-controller"}


def _spelled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _spelled(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_spelled(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
