"""A stand-in for the W&B server on loopback: its protocol as far as runs, sweeps and agents of the real client need it.

Run it as a context manager; point the client at `url` (WANDB_BASE_URL). `behaviour` may be changed while it runs.
What it keeps of runs is in double_runs.py, of sweeps and agents in double_sweeps.py. Subclasses add GraphQL operations
as methods `on_<operation>(variables)`.
"""

from __future__ import annotations

import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self

from double_sweeps import SweepServer

Behaviour = Literal["answer", "refuse_key", "error", "rate_limit", "hang"]
STATUS = {"answer": 200, "refuse_key": 401, "error": 500, "rate_limit": 429}
RETRY_AFTER_S = 1
WAIT_LIMIT_S = 240.0


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """Silent: clients part without goodbye when their process ends."""


class WandbDouble(SweepServer):
    """Remembers what clients sent; see RunServer and SweepServer.

    Attributes:
        behaviour: how requests are met: answered, 401, 500, 429, or accepted and not answered until it changes.
        behaviour_of: the same for some requests only: by GraphQL operation, or file_stream or upload.
        requests: how many came, answered or not.
        refused: how many were met as `refuse` says, by kind.
        authorized: how many of them came with credentials.
        bodies: what was sent, but for the credentials, in order.
    """

    def __init__(self, behaviour: Behaviour = "answer") -> None:
        super().__init__()
        self.behaviour: Behaviour = behaviour
        self.behaviour_of: dict[str, Behaviour] = {}
        self.requests = 0
        self.refused: Counter[str] = Counter()
        self._to_refuse: dict[str, tuple[int, Behaviour]] = {}
        self.authorized = 0
        self.bodies: list[bytes] = []
        self._stopped = threading.Event()
        self._server: _Server | None = _Server(("127.0.0.1", 0), self._handler())
        self._port = self._server.server_port
        self._connections: set[socket.socket] = set()
        self.url = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self._serve()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()  # lets go of the hanging requests
        self.close()

    def close(self) -> None:
        """Be gone: nobody listens at the port, and open connections are cut."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        server.server_close()
        for connection in list(self._connections):
            with suppress(OSError):  # the client was faster
                connection.shutdown(socket.SHUT_RDWR)

    def reopen(self) -> None:
        """Be back at the same port, with all that was kept."""
        self._server = _Server(("127.0.0.1", self._port), self._handler())
        self._serve()

    def refuse(self, kind: str, count: int, behaviour: Behaviour) -> None:
        """Meet the next `count` requests of a kind (as in `behaviour_of`) in this way."""
        self._to_refuse[kind] = (count, behaviour)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Until something that clients send makes it true."""
        with self.changed:
            assert self.changed.wait_for(condition, WAIT_LIMIT_S)

    def _serve(self) -> None:
        assert self._server is not None
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                double._connections.add(self.connection)

            def finish(self) -> None:
                double._connections.discard(self.connection)
                super().finish()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                with double.lock:
                    double.requests += 1
                    double.authorized += "authorization" in self.headers
                    double.bodies.append(body)
                kind = double._kind(self.path, body)
                if double._behaviour(kind) == "hang":
                    while double._behaviour(kind) == "hang" and not double._stopped.wait(0.05):
                        pass
                    self.close_connection = True
                    return
                status = STATUS[double._met_with(kind)]
                content = double._content(kind, self.path, body) if status == 200 else {}
                self._send(status, json.dumps(content).encode())
                with double.changed:
                    double.changed.notify_all()

            do_GET = do_PUT = do_POST

            def _send(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                if status == 429:
                    self.send_header("retry-after", str(RETRY_AFTER_S))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Silent: the test's output is not the place."""

        return Handler

    def _behaviour(self, kind: str) -> Behaviour:
        return self.behaviour_of.get(kind, self.behaviour)

    def _met_with(self, kind: str) -> Behaviour:
        with self.lock:
            count, behaviour = self._to_refuse.get(kind, (0, "answer"))
            if self.refused[kind] < count:
                self.refused[kind] += 1
                return behaviour
        return self._behaviour(kind)

    @staticmethod
    def _kind(path: str, body: bytes) -> str:
        """A GraphQL operation's name, file_stream, or upload."""
        if path.endswith("/graphql"):
            request = json.loads(body)
            named = re.search(r"(?:query|mutation)\s+(\w+)", request.get("query") or "")
            return request.get("operationName") or (named[1] if named else "unnamed")
        return "file_stream" if path.endswith("/file_stream") else "upload"

    def _content(self, kind: str, path: str, body: bytes) -> dict[str, Any]:
        if path.endswith("/graphql"):
            with self.lock:
                return {"data": self.answer(kind, json.loads(body).get("variables") or {})}
        if kind == "file_stream":
            with self.lock:
                return self.stream(path.split("/")[-2], json.loads(body))
        return {}  # uploads of files
