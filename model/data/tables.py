"""Tables that users or publishers write: rows with their line numbers, and cells that are checked before use."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from model.errors import DataError


def read_rows(path: Path, what: str) -> list[tuple[str, list[str]]]:
    """The rows of a CSV file as (`file, line N`, cells without surrounding blanks); empty lines are left out.

    Args:
        what: names the file in errors: the field that gave it, or its role.

    Raises:
        DataError: it is missing, not UTF-8 text, not CSV, or has no row.
    """
    rows: list[tuple[str, list[str]]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # -sig: spreadsheets write a byte-order mark
            reader = csv.reader(file)
            for cells in reader:
                stripped = [cell.strip() for cell in cells]
                if any(stripped):
                    rows.append((f"{path}, line {reader.line_num}", stripped))
    except FileNotFoundError:
        raise DataError(f"{what} = {path} does not exist; give a CSV file.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{what} = {path} cannot be read as a CSV file in UTF-8: {error}") from None
    if not rows:
        raise DataError(f"{what} = {path} is empty; it needs at least one row.")
    return rows


def check_inside(name: str, where: str) -> None:
    """Raises DataError where a name would lead out of the folder that it is looked up in, or is no name at all."""
    parts = re.split(r"[/\\]", name)
    if not name or ".." in parts or re.match(r"[/\\~]|[A-Za-z]:[/\\]", name):
        raise DataError(
            f"{where}: {name!r} points outside data.root; names must be relative to it, without '..' and without a "
            "slash, '~' or drive at the start."
        )


def whole_number(text: str, what: str, where: str, least: int = 0) -> int:
    """The number in a cell. Raises DataError unless it is a whole one, at least `least`."""
    if re.fullmatch(r"-?[0-9]{1,18}", text) is None or int(text) < least:
        raise DataError(f"{where}: {what} = {text!r}; must be a whole number, {least} or more.")
    return int(text)


def listed(names: list[str], at_most: int = 5) -> str:
    """Some names for a message: `a, b, c and 4 more`."""
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more
