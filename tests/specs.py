"""Sweep specs, and a check of values, that several test modules share."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from model.errors import ConfigError
from sweep.spec import SweepSpec, load_spec

ALPHA: dict[str, Any] = {"alpha": {"min": 0.1, "max": 0.9}}
GRID: dict[str, Any] = {"alpha": {"values": [0.25, 0.5, 0.75]}, "seed": {"min": 0, "max": 1}}


def make(**content: Any) -> SweepSpec:
    """A spec of this content; alpha is searched and 16 trials run unless it says otherwise."""
    return SweepSpec.model_validate({"name": "s", "parameters": ALPHA, "run_cap": 16} | content)


def load(folder: Path, text: str, *overrides: str, name: str = "alpha_beta.yaml") -> SweepSpec:
    """The spec of a file with this text."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return load_spec(path, overrides)


def fails(folder: Path, **content: Any) -> str:
    """The message that the file s.yaml with this content is refused with."""
    with pytest.raises(ConfigError) as caught:
        load(folder, yaml.safe_dump({"parameters": ALPHA} | content), name="s.yaml")
    return str(caught.value)


def is_multiple(value: float, q: float) -> bool:
    """Whether a value is a whole number of q, to the last digit that is shown."""
    return Decimal(repr(value)) % Decimal(repr(q)) == 0
