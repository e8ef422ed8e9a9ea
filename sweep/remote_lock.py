"""Who drives the sweep at a URL: an object that its driver writes again and again as a sign of life."""

from __future__ import annotations

import json
import os
import platform
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from model.errors import ConfigError
from sweep.remote import Store

LOCK = ".driver.json"
BEAT_S = 15.0  # between two signs of life
STALE_S = 90.0  # without a sign for so long its driver is taken for dead; by the store's clock, not by ours
SETTLE_S = 1.0  # two that take over at once: the last one to write has it


class DriverLock:
    """Keeps a second driver from the results at a URL. Call `beat` every BEAT_S seconds."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._content = {
            "token": uuid.uuid4().hex,
            "host": platform.node(),
            "machine": _machine(),
            "pid": os.getpid(),
            "created": psutil.Process().create_time(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }

    def acquire(self) -> str | None:
        """Take it; says whose it was where it was taken over from a dead driver.

        Raises:
            ConfigError: another driver has it; says who, and when it may be taken over.
            StoreError: the store cannot be used.
        """
        if self._store.create(LOCK, self._text()):
            return None
        holder, age_s = self._holder(), self._store.age_s(LOCK)
        who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}, since {holder.get('started', '?')}"
        if age_s is not None and age_s < STALE_S and not self._is_dead(holder):
            raise ConfigError(
                f"results: another process is running this sweep in {self._store.url} ({who}; its last sign of life is "
                f"{max(age_s, 0):.0f} s old); wait for it, or give another place with --results. If it was killed, the "
                f"sweep can be taken over in {STALE_S - age_s:.0f} s"
            )
        self._store.write(LOCK, self._text())
        time.sleep(SETTLE_S)
        if not self.is_ours():
            raise ConfigError(f"results: another process has just taken over {self._store.url}; wait for it")
        return f"took over {self._store.url} from {who}, which ended without closing it"

    def beat(self) -> bool:
        """A sign of life; False where somebody else has taken over. Raises StoreError."""
        if not self.is_ours():
            return False
        self._store.write(LOCK, self._text())
        return True

    def is_ours(self) -> bool:
        """Whether no other driver has taken over: one that is not there was taken by nobody. Raises StoreError."""
        return self._holder().get("token", self._content["token"]) == self._content["token"]

    def release(self) -> None:
        """Let others in, where it is still ours. Raises StoreError."""
        if self.is_ours():
            self._store.remove([LOCK])

    def _text(self) -> bytes:
        return json.dumps(self._content).encode()

    def _holder(self) -> dict[str, Any]:
        try:
            content = json.loads(self._store.read(LOCK) or b"{}")
        except ValueError:
            return {}
        return content if isinstance(content, dict) else {}

    def _is_dead(self, holder: dict[str, Any]) -> bool:
        """Whether the holder was a process of this machine that has ended: then nobody need wait."""
        if holder.get("machine") != self._content["machine"]:
            return False
        try:
            process = psutil.Process(int(holder["pid"]))
            alive = process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - holder["created"]) < 2
        except (psutil.NoSuchProcess, KeyError, TypeError, ValueError):
            return True
        return not alive


def _machine() -> str:
    """What tells this machine from others of its name (containers are often called alike), and from its last boot."""
    known = [platform.node()]
    with suppress(OSError):  # not on Linux
        known += [Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()]
        known += [str(Path("/proc/self/ns/pid").readlink())]  # process numbers mean something within it only
    return " ".join(known)
