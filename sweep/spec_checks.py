"""Does every point of a spec's space train? Tries TrainConfig on values that stand for all, before a trial starts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from model.errors import ConfigError

if TYPE_CHECKING:  # sweep.spec imports this module
    from model.config import TrainConfig
    from sweep.spec import SweepSpec

MAX_GRID = 10_000  # combinations; more is a slip, since no one trains so many, and each is checked at load
MAX_CORNERS = 64  # combinations of ends that are tried: all of them for up to 6 parameters


def check_space(spec: SweepSpec) -> None:
    """Try the presets, single values of each parameter, and combinations: of a grid all, else those of the ends.

    Raises ValueError that names the preset, value or combination, and what TrainConfig says to it.
    """
    for index, preset in enumerate(spec.presets):
        try:
            spec.space.from_values(preset)
        except ValueError as error:
            raise ValueError(f"search.presets.{index}: {error}") from None
    if "batch_size" not in spec.parameters:
        _check_share(spec, spec.trainer, "trainer.")
    probes = {name: parameter.probes() for name, parameter in spec.space.parameters.items()}
    usual = {name: values[-1] for name, values in probes.items()} | spec.space.fill_preset({}, spec.trainer)
    _check_usual(spec, usual)
    for index, preset in enumerate(spec.presets):
        _check(spec, usual | spec.space.fill_preset(preset, spec.trainer), f"search.presets.{index}: {preset}")
    for name, values in probes.items():
        for value in values:
            point = usual | spec.space.needed(name) | {name: value}
            _check(spec, point, f"parameters.{name}: the value {value!r}")
    if spec.method == "grid":
        _check_grid(spec)
    else:
        _check_corners(spec, {name: values[:2] for name, values in probes.items()})


def _check_usual(spec: SweepSpec, usual: Mapping[str, Any]) -> None:
    """Check the trial that the others are variations of; blame the constants, or one parameter's value, if at fault."""
    try:
        _check_combination(spec, usual)
    except ConfigError:
        _check(spec, {}, f"parameters: the constant {spec.space.constants}")
        for name, value in usual.items():
            _check(spec, {name: value}, f"parameters.{name}: the value {value!r}")
        raise


def _check_grid(spec: SweepSpec) -> None:
    space = spec.space
    for name, entry in spec.parameters.items():
        if name in space.parameters and space.parameters[name].count is None:
            raise ValueError(
                f"parameters.{name}: a grid needs single values, but {entry} is continuous; "
                "give values, whole numbers as min and max, or a q_ distribution, or use method random"
            )
        if "probabilities" in entry:
            raise ValueError(f"parameters.{name}: a grid tries each value once; leave probabilities out")
    size = space.grid_size
    if size is not None and size > MAX_GRID:
        raise ValueError(f"the grid has {size} combinations; must be at most {MAX_GRID}. Use method random")
    for point in space.grid():
        _check_combination(spec, point)


def _check_corners(spec: SweepSpec, ends: Mapping[str, list[Any]]) -> None:
    """Values that train one at a time may not together: check every combination of the ends, where these are few."""
    if math.prod(map(len, ends.values())) > MAX_CORNERS:
        return
    for point in itertools.product(*ends.values()):
        corner = dict(zip(ends, point, strict=True))
        try:
            _check_combination(spec, corner)
        except ConfigError:
            # alpha = 0 and beta = 0 fail, but not the numbers beside them, and a search never draws just that corner
            if not _trains_beside(spec, corner):
                raise


def _trains_beside(spec: SweepSpec, corner: Mapping[str, Any]) -> bool:
    """Whether a corner trains once its continuous values have moved into their ranges by the least step."""
    beside = dict(corner)
    for name, parameter in spec.space.parameters.items():
        if parameter.count is None:
            beside[name] = math.nextafter(corner[name], parameter.value_at(1))
    try:
        _check_combination(spec, beside)
    except ConfigError:
        return False
    return True


def _check_combination(spec: SweepSpec, values: Mapping[str, Any]) -> None:
    _check(spec, values, f"parameters: the combination {values}")


def _check(spec: SweepSpec, values: Mapping[str, Any], what: str) -> None:
    where = f"{what} cannot be trained"
    config = spec.space.to_config(spec.trainer, spec.space.that_matter(values), where)
    _check_share(spec, config, f"{where}: ")


def _check_share(spec: SweepSpec, config: TrainConfig, before: str) -> None:
    try:
        config.batch_share(spec.resources.num_processes)
    except ConfigError as error:
        raise ConfigError(f"{before}{error} (see resources)") from None
