"""Progress bars of long steps. They vanish when the step ends; where the output is no terminal there are none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def bar(console: Console, text: str) -> Progress:
    """A bar with a text before it, a count and the time left behind it."""
    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def decoding(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A callback (done, of) for `load_clips`; the bar appears with its first call, so not where a store is there."""
    with bar(console, "decoding frames") as shown:
        task = shown.add_task("", total=None, visible=False)
        yield lambda done, of: shown.update(task, completed=done, total=of, visible=True)
