"""Lines in a terminal and in a file."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sweep.lines import FILE_WIDTH, open_console, print_pairs, say

LONG = " ".join(["word"] * 30)


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=80, color_system=None)


def lines(shown: Console) -> list[str]:
    assert isinstance(shown.file, io.StringIO)
    return shown.file.getvalue().splitlines()


def test_a_file_keeps_long_texts_in_one_line_without_spaces_at_the_end() -> None:
    shown = console(terminal=False)
    print_pairs({"a": LONG, "longer": "short"}, shown, width=8)
    say(LONG, shown)
    assert lines(shown) == [f"a         {LONG}", "longer    short", LONG]


def test_a_terminal_breaks_long_texts_between_words_below_their_beginning() -> None:
    shown = console(terminal=True)
    print_pairs({"longer": LONG}, shown)
    first, second, *_ = (line.rstrip() for line in lines(shown))
    assert first.startswith("longer  word")
    assert second.startswith("        word")
    said = console(terminal=True)
    say(LONG, said)
    assert all(set(line.split()) == {"word"} for line in lines(said))


def test_tables_in_a_file_are_not_folded_to_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert open_console().width == FILE_WIDTH
