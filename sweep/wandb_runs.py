"""The runs of a sweep as W&B's server has them. wandb is imported inside functions (0.4 s)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from model.errors import UserError, one_line
from sweep.wandb_files import PastRun
from sweep.wandb_mode import resolve_mode

ANSWER_LIMIT_S = 30  # for each question
RETRIES = 3  # of wandb's own, for each question; by default they go on for hours
PAGE_RUNS, PAGE_ROWS = 50, 5_000

_SWEEP = re.compile(r"(?P<entity>[^/]+)/(?P<project>[^/]+)/(?:sweeps/)?(?P<sweep>[^/]+)")


_NOT_THERE = "W&B has no such sweep, or not for your key; give ENTITY/PROJECT/SWEEP as the sweep's page shows it"
# as W&B's agent asks, without what only its page needs
_CONFIG_QUERY = """
query SweepWithRuns($entity: String, $project: String, $sweep: String!) {
    project(name: $project, entityName: $entity) { sweep(sweepName: $sweep) { id name state config } }
}
"""


class NoSuchSweepError(UserError):
    """The server says that it has no such sweep."""


@dataclass(frozen=True)
class SweepName:
    """Where a sweep is on the server."""

    entity: str
    project: str
    sweep: str

    @classmethod
    def parse(cls, text: str) -> SweepName | None:
        """ENTITY/PROJECT/SWEEP, or the address of the sweep's page; None for anything else."""
        path = re.sub(r"^https?://[^/]+/(wandb/)?", "", text).partition("?")[0].strip("/")
        found = _SWEEP.fullmatch(path)
        return cls(**found.groupdict()) if found else None

    def __str__(self) -> str:
        return f"{self.entity}/{self.project}/{self.sweep}"


def config_of(sweep: str) -> dict[str, Any]:
    """The W&B config of a sweep, by the question that W&B's agent asks when it starts.

    Args:
        sweep: [[ENTITY/]PROJECT/]SWEEP; what is left out is taken from where W&B's agent takes it.

    Raises:
        NoSuchSweepError: the server says so.
        UserError: no answer, or none that tells a config.
    """
    import yaml

    *place, name = sweep.split("/")
    api = _api(sweep, dict(zip(("project", "entity"), reversed(place), strict=False)))
    asked = {"entity": api.settings["entity"], "project": api.settings["project"], "sweep": name}
    try:
        answer = api._service_api.execute_graphql(_CONFIG_QUERY, variables=asked)
    except Exception as error:
        raise _server_error(sweep, error) from None
    try:
        project = answer["project"]
        found = None if project is None else project["sweep"]
        config = None if found is None else yaml.safe_load(found["config"])
    except (LookupError, TypeError, AttributeError, yaml.YAMLError):
        raise UserError(f"{sweep}: W&B's server gave an answer without its config") from None
    if found is None:
        raise NoSuchSweepError(f"{sweep}: {_NOT_THERE}")
    if not isinstance(config, dict):
        raise UserError(f"{sweep}: W&B's server gave an answer without its config")
    return config


class ServerSweep:
    """A sweep on the server: its W&B config, and its runs.

    Attributes:
        config: as it was registered.

    Raises:
        UserError: no credentials, no such sweep, or a server that does not answer.
    """

    def __init__(self, name: SweepName) -> None:
        mode, reason = resolve_mode("online")
        if mode != "online":
            raise UserError(f"{name}: {reason}")
        self.name = name
        self._api = _api(name, {"entity": name.entity, "project": name.project})
        try:
            self.config: dict[str, Any] = dict(self._api.sweep(str(name)).config or {})
        except Exception as error:
            if "Could not find" in str(error):
                raise NoSuchSweepError(f"{name}: {_NOT_THERE}") from None
            raise _server_error(name, error) from None

    def runs(self) -> Iterator[PastRun]:
        """The sweep's runs, by the time of their start. Raises UserError where the server fails."""
        path = f"{self.name.entity}/{self.name.project}"
        filters = {"$and": [{"sweep": self.name.sweep}]}
        try:
            for run in self._api.runs(path, filters=filters, order="+created_at", per_page=PAGE_RUNS, lazy=False):
                yield PastRun(
                    run_id=run.id,
                    name=run.name or run.id,
                    state=str(run.state).lower(),
                    config=dict(run.config),
                    summary=dict(run.summary_metrics or {}),
                    read_rows=_RowsOf(self.name, run),
                )
        except Exception as error:
            raise _server_error(self.name, error) from None


@dataclass(frozen=True)
class _RowsOf:
    sweep: SweepName
    run: Any

    def __call__(self) -> tuple[list[dict[str, Any]], str | None]:
        try:
            # not from wandb's cache: the run may have gone on since
            rows = list(self.run.scan_history(page_size=PAGE_ROWS, use_cache=False))
            there = self.run.history_line_count
        except Exception as error:
            raise _server_error(self.sweep, error) from None
        lost = isinstance(there, int) and len(rows) < there
        return rows, f"W&B's server gave {len(rows)} of its {there} rows" if lost else None


def _api(name: SweepName | str, place: dict[str, str]) -> Any:
    import wandb

    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    wandb.setup(
        wandb.Settings(
            silent=True,
            x_graphql_retry_max=RETRIES,
            x_graphql_retry_wait_min_seconds=0.5,
            x_graphql_retry_wait_max_seconds=5.0,
        )
    )
    try:
        return wandb.Api(overrides=place, timeout=ANSWER_LIMIT_S)
    except Exception as error:
        raise _server_error(name, error) from None


def _server_error(name: SweepName | str, error: Exception) -> UserError:
    text = one_line(error, 300)
    key = os.environ.get("WANDB_API_KEY")
    return UserError(f"{name}: W&B's server did not give it: {text.replace(key, '<the key>') if key else text}")
