"""What the log of a W&B agent says, line by line as it is written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

# not where the details are, nor what W&B's agent says after each run under a shared service (a fault of its own)
_ERROR_LINE = re.compile(
    r"(?!wandb: ERROR Find detailed|\S*AlreadyJoinedError)(?:wandb: ERROR |[Ee]rror: |[\w.]+(?:Error|Exception): )\S.*"
)
_DECIMAL = re.compile(r"[-+]?\d+(?:\.\d*(?:[eE][-+]?\d+)?|[eE][-+]?\d+)")


class LogReader:
    """What an agent's log says since the last look.

    Attributes:
        heard: the server has taken the agent.
        runs_ended: how many of its runs have ended.
        gave_up: the agent ended by its own decision, after failures or since its sweep is gone.
        trouble: the last line that names an error.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0
        self._running: set[str] = set()
        self._parameters: list[str] | None = None  # while the lines of a run's config follow
        self._latest: list[str] = []  # parameters of the run that was begun last
        self.heard = False
        self.runs_ended = 0
        self.gave_up = False
        self.trouble = ""

    def news(self) -> list[str]:
        """Lines for the terminal: runs that began or ended."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        return [news for line in whole.decode("utf-8", "replace").splitlines() for news in self._take(line)]

    def _take(self, line: str) -> Iterator[str]:
        if self._parameters is not None and (found := re.fullmatch(r"\t(\S+): (.*)", line)):
            self._parameters.append(f"{found[1]} {_short(found[2])}")
            return
        if self._parameters is not None:
            self._latest, self._parameters = self._parameters, None
        if line.endswith("Agent starting run with config:"):
            self._parameters, self.trouble = [], ""
        elif found := re.search(r" - Running runs: \[(.*)\]$", line):
            self.heard = True
            running = set(re.findall(r"'([^']+)'", found[1]))
            for run in sorted(running - self._running):
                yield f"run {run} began: {', '.join(self._latest) or 'no parameters'}"
            self._running = running
        elif found := re.search(r" - Cleaning up finished run: (\S+)$", line):
            self.runs_ended += 1
            self._running.discard(found[1])
            yield f"run {found[1]} ended" + (f" ({self.trouble})" if self.trouble else "")
        elif re.search(r"Detected \d+ (consecutive )?failed runs|Sweep was deleted or agent was not found", line):
            self.gave_up = True
            yield line.rpartition(" - ")[2].removeprefix("wandb: ERROR ")
        elif _ERROR_LINE.fullmatch(line):
            self.trouble = line.removeprefix("wandb: ERROR ")


def _short(value: str) -> str:
    """A number with a decimal point or exponent in at most 6 digits; anything else as it is."""
    return f"{float(value):.6g}" if _DECIMAL.fullmatch(value) else value
