"""A table of real trials that were trained over a designed set of configs: read, and checked cell by cell."""

from __future__ import annotations

import csv
import gzip
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from model.errors import UserError

PARAMETERS = ("alpha", "base_lr", "mask_ratio")
MEASURED = (  # all positive, so that the surface goes through their logarithms
    "epoch/loss_static",
    "epoch/loss_dynamic",
    "eval/loss_static",
    "eval/loss_recon",
    "eval/loss_pred",
    "ratio_mean",  # of the epoch's batch/loss_ratio
    "ratio_spread",  # their standard deviation / mean
)
MIN_POINTS = 12  # a surface over three parameters, and enough left over to check it

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ReplayTable:
    """The trials of a table, N of them, each of E epochs. A trial that diverged is left out: it has no metrics.

    Attributes:
        path: its file.
        configs: alpha, base_lr and mask_ratio [N, 3].
        points: which point of the design a trial belongs to [N]; trials of one point differ in the seed alone.
        columns: a column's values [N, E]; NaN where a cell is empty, which no column of MEASURED has.
        diverged: how many were left out.
    """

    path: Path
    configs: Array
    points: NDArray[np.int64]
    columns: dict[str, Array]
    diverged: int

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a CSV file, or a compressed one (.gz). Raises UserError with the file, and the line and column."""
        rows = _rows(path)
        diverged = [row for row in rows if row.get("diverged")]
        trials: dict[tuple[str, str], list[dict[str, str]]] = {}
        for row in rows:
            if not row.get("diverged"):
                trials.setdefault((row["point"], row["seed"]), []).append(row)
        epochs = max((len(rows) for rows in trials.values()), default=0)
        for (point, seed), of_trial in trials.items():
            if [_number(path, row, "epoch") for row in of_trial] != list(range(epochs)):
                raise UserError(
                    f"{path}: point {point}, seed {seed} has not the epochs 0 to {epochs - 1}, each once and in order; "
                    "make the table again of whole trials"
                )
        if (found := len({point for point, _ in trials})) < MIN_POINTS:
            raise UserError(
                f"{path}: has {found} points (configs); a surface needs at least {MIN_POINTS}. Train more of them"
            )
        configs = np.array([[_number(path, t[0], name) for name in PARAMETERS] for t in trials.values()])
        for name, values in zip(PARAMETERS, configs.T, strict=True):
            if values.min() == values.max():
                raise UserError(
                    f"{path}: all trials have {name} = {values[0]:g}; a surface needs different values of it"
                )
        needed = {"point", *PARAMETERS, *MEASURED}
        names = [name for name in rows[0] if name not in ("diverged", "line")]
        return cls(
            path=path,
            configs=configs,
            points=np.array([int(_number(path, t[0], "point")) for t in trials.values()]),
            columns={
                name: np.array([[_number(path, row, name, name in needed) for row in t] for t in trials.values()])
                for name in names
            },
            diverged=len(diverged),
        )

    @property
    def epochs(self) -> int:
        """Epochs of a trial, E."""
        return self.columns["epoch"].shape[1]

    @cached_property
    def logs(self) -> Array:
        """Logarithms of MEASURED [N, E, M]."""
        return np.log(np.stack([self.columns[name] for name in MEASURED], axis=-1))


def _rows(path: Path) -> list[dict[str, str]]:
    """The table's rows, each with its `line`."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); make it with python scripts/make_replay_table.py") from None
    reader = csv.DictReader(text.splitlines(), restval="")
    lacking = [
        name for name in ("point", "seed", "epoch", *PARAMETERS, *MEASURED) if name not in (reader.fieldnames or ())
    ]
    if lacking:
        raise UserError(
            f"{path}: line 1 has no column {', '.join(lacking)}; make the table with scripts/make_replay_table.py"
        )
    return [row | {"line": str(reader.line_num)} for row in reader]


def _number(path: Path, row: dict[str, str], name: str, needed: bool = True) -> float:
    """The number in a cell; NaN for an empty one that is not needed."""
    cell = row[name]
    if cell == "" and not needed:
        return math.nan
    try:
        number = float(cell)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or (name in MEASURED and number <= 0):
        what = "a positive number" if name in MEASURED else "a finite number"
        raise UserError(
            f"{path}: line {row['line']}, column {name}: {cell!r} is not {what}; a trial whose loss is not finite has "
            "one row with the reason in a column `diverged`"
        )
    return number
