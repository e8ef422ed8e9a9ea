"""How lines go to a terminal, which breaks them, and to a file or a pipe, which keeps them whole for searching."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

FILE_WIDTH = 160  # of tables in a file or a pipe, where nothing says how wide they may be


def open_console() -> Console:
    """The console of a command: as wide as the terminal; elsewhere wide enough for its tables."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else FILE_WIDTH)


def say(text: str, console: Console, style: str | None = None) -> None:
    """Prose: a terminal breaks it between words. Not for commands and paths, which are copied."""
    console.print(text, style=style, markup=False, soft_wrap=not console.is_terminal)


def print_pairs(lines: Mapping[str, str], console: Console, width: int = 0) -> None:
    """A name and a text in each line; on a terminal long texts go on below their beginning.

    Args:
        width: of the names, where others stand above or below these.
    """
    width = max(width, *map(len, lines))
    if not console.is_terminal:
        for name, text in lines.items():
            console.print(f"{name:<{width}}  {text}", markup=False, soft_wrap=True)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, text in lines.items():
        table.add_row(f"{name:<{width}}", text)
    console.print(table, markup=False)
