"""What stands in the Markdown documents of this repository: fenced blocks, and the command lines in them."""

from __future__ import annotations

import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

from tests.command_lines import ROOT

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`((?:python -m (?:sweep|model)|scripts/\w+\.sh|python scripts/)[^`]*)`(?!`)", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a document, or a piece of inline code (language `inline`)."""

    document: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """As `model/README.md:12`."""
        return f"{self.document.relative_to(ROOT).as_posix()}:{self.line}"


def documents() -> list[Path]:
    """All Markdown files of the repository, what is made by running it aside."""
    folders = (ROOT / name for name in ("model", "sweep", "sweeps", "scripts", "tests"))
    return sorted([*ROOT.glob("*.md"), *(path for folder in folders for path in folder.rglob("*.md"))])


def blocks(document: Path, *languages: str) -> list[Block]:
    """The fenced blocks in these languages."""
    text = document.read_text(encoding="utf-8")
    return [
        Block(document, text.count("\n", 0, found.start()) + 2, found[2], textwrap.dedent(found[3]))
        for found in _FENCE.finditer(text)
        if found[2] in languages
    ]


def inline_commands(document: Path) -> list[Block]:
    """Commands of ours in running text."""
    text = document.read_text(encoding="utf-8")
    outside = _FENCE.sub(lambda found: "\n" * found[0].count("\n"), text)
    return [
        Block(document, outside.count("\n", 0, found.start()) + 1, "inline", " ".join(found[1].split()))
        for found in _INLINE.finditer(outside)
    ]


def command_lines(block: Block) -> list[tuple[str, list[str]]]:
    """The commands of a block of bash: where each stands, and its words.

    Comments go, continued lines are joined, `[--option]` of a synopsis counts as given, dots and what sets a variable
    do not count, and what follows `&&`, `|` or `>` is no argument.
    """
    found = []
    for number, line in enumerate(block.text.replace("\\\n", "\0").splitlines()):
        for part in _parts(line.replace("\0", " ")):
            while part and re.fullmatch(r"\w+=\S*", part[0]):
                part = part[1:]
            if part:
                found.append((f"{block.document.relative_to(ROOT).as_posix()}:{block.line + number}", part))
    return found


def _parts(line: str) -> list[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    parts: list[list[str]] = [[]]
    to_file = False
    for word in lexer:
        if set(word) <= set("&|;"):
            parts.append([])
            to_file = False
        elif set(word) <= set("<>"):
            to_file = True
        elif not to_file and word not in ("...", "...]"):
            parts[-1].append(_given(word))
    return parts


def _given(word: str) -> str:
    """A word of a synopsis without its brackets; those of lists and mappings stay."""
    if re.fullmatch(r"\[--?\w[\w-]*\]?", word):
        return word.strip("[]")
    return word.removesuffix("]") if re.fullmatch(r"[\w=./-]+\]", word) else word
