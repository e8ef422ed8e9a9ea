"""What W&B's server keeps of runs, as far as the client that logs them asks: GraphQL operations and the file stream."""

from __future__ import annotations

import json
import threading
from collections import Counter, defaultdict
from typing import Any

ENTITY, PROJECT = "me", "p"


class RunServer:
    """Remembers what clients sent, by run id.

    Attributes:
        history: rows as the client numbered them: a resumed run goes on behind its earlier rows.
        run: the variables of all requests that created or changed the run; the last value of each.
        sent_twice: (run id, line) of rows that were sent once more after they had been taken.
        system_metrics: W&B's own metrics of the machine, in the order in which they came.
        starts: how often a client began with the run: 2 for one that was resumed.
        summary: as last sent.
        exit_code: present once the run has ended; gone again while it is resumed.
        preempting: runs whose client said that it is being preempted; until they are resumed.
        stopped: runs that were asked to stop.
        alerts: (run id, title, text, level) of each alert that was sent, in order.
        operations: how often each GraphQL operation was asked.
        unknown: operations that this double has no answer to; they were answered with nothing.
    """

    def __init__(self) -> None:
        self.history: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
        self.sent_twice: list[tuple[str, int]] = []
        self.system_metrics: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.run: dict[str, dict[str, Any]] = {}
        self.starts: Counter[str] = Counter()
        self.summary: dict[str, dict[str, Any]] = defaultdict(dict)
        self.exit_code: dict[str, int] = {}
        self.preempting: set[str] = set()
        self.stopped: set[str] = set()
        self.alerts: list[tuple[str, str, str, str]] = []
        self.operations: Counter[str] = Counter()
        self.unknown: set[str] = set()
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.url = ""

    # --- what tests read

    def rows(self, run_id: str) -> list[dict[str, Any]]:
        """History rows of a run in order, without the client's own `_...` columns."""
        rows = sorted(self.history[run_id].items())
        return [{name: value for name, value in row.items() if not name.startswith("_")} for _, row in rows]

    def config(self, run_id: str) -> dict[str, Any]:
        """The run's config, without the client's own `_wandb`."""
        content = json.loads(self.run[run_id].get("config") or "{}")
        return {name: entry["value"] for name, entry in content.items() if name != "_wandb"}

    def group(self, run_id: str) -> str | None:
        return self.run[run_id].get("groupName")

    def sweep_of(self, run_id: str) -> str | None:
        """The id of the sweep that the run's client named."""
        return self.run[run_id].get("sweep")

    def state(self, run_id: str) -> str:
        """In W&B's words: running, finished, failed, preempting, preempted."""
        if run_id not in self.exit_code:
            return "preempting" if run_id in self.preempting else "running"
        if self.exit_code[run_id] == 0:
            return "finished"
        return "preempted" if run_id in self.preempting else "failed"

    # --- what tests do

    def stop(self, run_id: str) -> None:
        """Ask a run to stop, as its page on the web does; the client hears it with its next rows."""
        self.stopped.add(run_id)

    # --- GraphQL

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of one operation: what the method `on_<operation>` returns, nothing where there is none."""
        self.operations[operation] += 1
        method = getattr(self, f"on_{operation}", None)
        if method is None:
            self.unknown.add(operation)
            return {}
        result: dict[str, Any] = method(variables)
        return result

    def on_Viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        user = {"id": "user", "entity": ENTITY, "username": ENTITY, "name": ENTITY, "email": "", "flags": "{}"}
        return {"viewer": {**user, "admin": False, "teams": teams, "apiKeys": {"edges": []}}}

    on_viewer = on_Viewer

    def on_NotifyScriptableRunAlert(self, sent: dict[str, Any]) -> dict[str, Any]:
        self.alerts.append((sent["runName"], sent["title"], sent["text"], sent["severity"]))
        return {"notifyScriptableRunAlert": {"success": True}}

    def on_ServerFeaturesQuery(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def on_OrganizationCoreWeaveOrganizationID(self, _: dict[str, Any]) -> dict[str, Any]:
        return {}  # asked, but nothing that a test sees depends on it

    on_OrgFeatureFlags = on_OrganizationCoreWeaveOrganizationID

    def on_UpsertBucket(self, variables: dict[str, Any]) -> dict[str, Any]:
        run_id = variables["name"] or variables["id"].removeprefix("id-")
        known = self.run.get(run_id, {})
        inserted = not known
        if run_id not in self.starts or run_id in self.exit_code:
            self.starts[run_id] += 1
            self.exit_code.pop(run_id, None)
            self.preempting.discard(run_id)
        self.run[run_id] = {**known, **{k: v for k, v in variables.items() if v is not None}}
        if variables.get("summaryMetrics"):
            self.summary[run_id] = json.loads(variables["summaryMetrics"])
        bucket = {
            "id": f"id-{run_id}",
            "name": run_id,
            "displayName": self.run[run_id].get("displayName") or run_id,
            "config": self.run[run_id].get("config") or "{}",
            "sweepName": self.sweep_of(run_id),
            "project": self.project_node(self.run[run_id].get("project")),
            "historyLineCount": len(self.history[run_id]),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def on_CreateRunFiles(self, variables: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in variables["files"]]
        return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}

    def on_MarkRunFilesUploaded(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"markRunFilesUploaded": {"success": True}}

    def on_RunResumeStatus(self, variables: dict[str, Any]) -> dict[str, Any]:
        run_id = variables["name"]
        if run_id not in self.starts:  # never begun: one that waits in a queue has nothing to resume
            return {"model": None}
        rows = self.history[run_id]
        tail = [json.dumps(rows[max(rows)])] if rows else []
        bucket = {
            "id": f"id-{run_id}",
            "name": run_id,
            "displayName": self.run[run_id].get("displayName") or run_id,
            "summaryMetrics": json.dumps(self.summary[run_id]),
            "logLineCount": 0,
            "historyLineCount": len(rows),
            "eventsLineCount": 0,
            "historyTail": json.dumps(tail),
            "eventsTail": "[]",
            "config": self.run[run_id].get("config") or "{}",
            "tags": [],
            "wandbConfig": '{"t": 1}',
        }
        return {"model": {**self.project_node(self.run[run_id].get("project")), "bucket": bucket}}

    def on_RunState(self, variables: dict[str, Any]) -> dict[str, Any]:
        run_id = variables["run"]
        return {"project": {"run": self.node(run_id) if run_id in self.run else None}}

    on_RunStopped = on_RunState

    def on_StopRun(self, variables: dict[str, Any]) -> dict[str, Any]:
        self.stop(variables["id"].removeprefix("id-"))
        return {"stopRun": {"success": True}}

    def project_node(self, name: str | None, entity: str | None = None) -> dict[str, Any]:
        return {"id": "project", "name": name or PROJECT, "entity": {"id": "e", "name": entity or ENTITY}}

    def node(self, run_id: str, specs: Any = ()) -> dict[str, Any]:
        """A run as queries see it; `specs` are those of sampledHistory, as JSON texts."""
        texts = [specs] if isinstance(specs, str) else specs
        state = self.state(run_id)
        return {
            "id": f"id-{run_id}",
            "name": run_id,
            "displayName": self.run[run_id].get("displayName") or run_id,
            "state": state,
            "config": self.run[run_id].get("config") or "{}",
            "summaryMetrics": json.dumps(self.summary[run_id]),
            "sampledHistory": [self._sampled(run_id, json.loads(text)) for text in texts],
            "exitcode": self.exit_code.get(run_id),
            "heartbeatAt": "2026-01-01T00:00:00",
            "group": self.group(run_id),
            "sweepName": self.sweep_of(run_id),
            "shouldStop": run_id in self.stopped,
            "stopped": run_id in self.stopped,
            "failed": state == "failed",
            "running": run_id not in self.exit_code,
        }

    def _sampled(self, run_id: str, spec: dict[str, Any]) -> list[dict[str, Any]]:
        keys = spec.get("keys", [])
        rows = [row for _, row in sorted(self.history[run_id].items())]
        return [{key: row[key] for key in keys} for row in rows if all(key in row for key in keys)]

    # --- file stream

    def stream(self, run_id: str, content: dict[str, Any]) -> dict[str, Any]:
        """Take one request of a run's file stream; returns the answer."""
        files = content.get("files") or {}
        if history := files.get("wandb-history.jsonl"):
            for line, text in enumerate(history["content"], start=history["offset"]):
                if line in self.history[run_id]:
                    self.sent_twice.append((run_id, line))
                self.history[run_id][line] = json.loads(text)
        if events := files.get("wandb-events.jsonl"):
            self.system_metrics[run_id] += map(json.loads, events["content"])
        if summary := files.get("wandb-summary.json"):
            self.summary[run_id] = json.loads(summary["content"][-1])
        if content.get("preempting"):
            self.preempting.add(run_id)
        if content.get("complete"):
            self.exit_code[run_id] = content["exitcode"]
            self.on_ended(run_id)
        self.on_rows(run_id)
        return {"stopped": True} if run_id in self.stopped else {}

    def on_rows(self, run_id: str) -> None:
        """Rows of a run may have arrived."""

    def on_ended(self, run_id: str) -> None:
        """A run has told its exit code."""
