"""A stand-in for the W&B server on loopback: as much of its protocol as one client needs to log runs.

Run it as a context manager; point the client at `url`. `behaviour` may be changed while it runs.
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self

Behaviour = Literal["answer", "refuse_key", "error", "hang"]
STATUS = {"answer": 200, "refuse_key": 401, "error": 500}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """Silent: clients part without goodbye when their process ends."""


class WandbDouble:
    """Remembers what clients sent, by run id.

    Attributes:
        behaviour: how requests are met: answered, 401, 500, or accepted and never answered.
        history: rows as the client numbered them: a resumed run goes on behind its earlier rows.
        run: the variables of the last request that created or changed the run.
        exit_code: present once the run has finished.
    """

    def __init__(self, behaviour: Behaviour = "answer") -> None:
        self.behaviour = behaviour
        self.history: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
        self.run: dict[str, dict[str, Any]] = {}
        self.exit_code: dict[str, int] = {}
        self.requests = 0
        self._stopped = threading.Event()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()  # lets go of the hanging requests
        self._server.shutdown()
        self._server.server_close()

    def rows(self, run_id: str) -> list[dict[str, Any]]:
        """History rows of a run in order, without the client's own `_...` columns."""
        rows = sorted(self.history[run_id].items())
        return [{name: value for name, value in row.items() if not name.startswith("_")} for _, row in rows]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                double.requests += 1
                if double.behaviour == "hang":
                    double._stopped.wait()
                    self.close_connection = True
                    return
                status = STATUS[double.behaviour]
                answer = double._answer(self.path, body) if status == 200 else {}
                self._send(status, json.dumps(answer).encode())

            do_GET = do_PUT = do_POST

            def _send(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Silent: the test's output is not the place."""

        return Handler

    def _answer(self, path: str, body: bytes) -> dict[str, Any]:
        if path.endswith("/graphql"):
            request = json.loads(body)
            return {"data": self._graphql(request["operationName"], request["variables"])}
        if path.endswith("/file_stream"):
            self._stream(path.split("/")[-2], json.loads(body))
        return {}  # uploads of files

    def _graphql(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        if operation == "RunResumeStatus":
            return {"model": self._resume_status(variables["name"])}
        if operation == "UpsertBucket":
            run_id = variables["name"]
            inserted = run_id not in self.run
            self.run[run_id] = {**self.run.get(run_id, {}), **{k: v for k, v in variables.items() if v is not None}}
            project = {"id": "project", "name": variables.get("project") or "p", "entity": {"id": "e", "name": "me"}}
            bucket = {"id": f"id-{run_id}", "name": run_id, "displayName": run_id, "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in variables["files"]]
            return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
        return {}

    def _resume_status(self, run_id: str) -> dict[str, Any] | None:
        if run_id not in self.run:
            return None
        rows = self.history[run_id]
        tail = [json.dumps(rows[max(rows)])] if rows else []
        bucket = {
            "id": f"id-{run_id}",
            "name": run_id,
            "displayName": run_id,
            "summaryMetrics": "{}",
            "logLineCount": 0,
            "historyLineCount": len(rows),
            "eventsLineCount": 0,
            "historyTail": json.dumps(tail),
            "eventsTail": "[]",
            "config": "{}",
            "tags": [],
            "wandbConfig": '{"t": 1}',
        }
        return {"id": "project", "name": "p", "entity": {"id": "e", "name": "me"}, "bucket": bucket}

    def _stream(self, run_id: str, content: dict[str, Any]) -> None:
        history = (content.get("files") or {}).get("wandb-history.jsonl")
        if history:
            for line, text in enumerate(history["content"], start=history["offset"]):
                self.history[run_id][line] = json.loads(text)
        if content.get("complete"):
            self.exit_code[run_id] = content["exitcode"]
