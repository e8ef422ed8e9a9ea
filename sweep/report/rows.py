"""Some rows of a long CSV file of numbers: only those are parsed, since a trial's batch.csv may have 100,000."""

from __future__ import annotations

import csv
from pathlib import Path

from model.errors import UserError


def sampled_rows(path: Path, most: int) -> list[dict[str, float]]:
    """At most `most` (2 or more) rows, evenly spread, the first and the last among them; none where there is no file.

    Empty cells are absent from a row, a half-written last line is left out. Raises UserError, with the line, where a
    cell of these rows is no number, and where the file is no text.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            head, *lines = [line for line in file if line.endswith("\n")] or [""]
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: damaged, it is no text ({error.reason} at byte {error.start})") from None
    places = spread(len(lines), most)
    rows = []
    for place, cells in zip(places, csv.DictReader([head, *(lines[place] for place in places)]), strict=False):
        try:
            rows.append({name: float(cell) for name, cell in cells.items() if cell})
        except (TypeError, ValueError) as error:  # TypeError: of cells without a column
            raise UserError(f"{path}: line {place + 2} is damaged ({error}): each cell must be a number") from None
    return rows


def spread(count: int, most: int) -> list[int]:
    """At most `most` (2 or more) of the places 0 to count - 1, evenly spread, both ends among them."""
    if count <= most:
        return list(range(count))
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]
