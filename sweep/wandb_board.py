"""Saved views of W&B's page, by the library wandb-workspaces. wandb is imported inside functions (0.4 s)."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass
from typing import Any

from model.errors import UserError, one_line
from sweep.wandb_client import bounded, without_inherited_identity

RETRIES = 3  # of wandb's own, for each question; by default they go on for hours
LIMIT_S = 120.0  # for all questions together
MAX_RUNS = 100  # in a panel; W&B's default of 10 would hide most trials


class ServerError(UserError):
    """W&B's server refused, or did not answer."""


@dataclass(frozen=True)
class Panel:
    """A line for each run: a metric over its axis."""

    metric: str
    axis: str


@dataclass(frozen=True)
class Section:
    """Panels under a title."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Place:
    """A project on the server, and which of its runs are shown.

    Attributes:
        entity: the account's default one if None.
        group: W&B's group of the runs, which is the sweep's name; all runs if None.
    """

    entity: str | None
    project: str
    group: str | None

    @property
    def title(self) -> str:
        """The view's name on the page; W&B takes no symbols in it."""
        text = f"sweep {self.group}" if self.group is not None else "sweeps"
        return "".join("-" if unicodedata.category(char) in ("So", "Sk", "Sm", "Sc", "Cs") else char for char in text)

    @property
    def key(self) -> str:
        """The view's own name in its address: the same each time, so that a repetition finds it. W&B's have 11 letters
        and digits."""
        return "sw" + hashlib.sha256((self.group or "").encode()).hexdigest()[:9]


@dataclass(frozen=True)
class Saved:
    """A view on the server; `updated` where it was there before."""

    title: str
    url: str
    updated: bool


def save_view(place: Place, sections: list[Section]) -> Saved:
    """Make the view, or bring it up to date: sections of these titles are replaced, the user's other ones stay.

    Raises:
        UserError: the library is not installed, or the account has no default entity.
        ServerError: the server refuses (no such project, a key that it does not know) or does not answer.
    """
    try:
        import wandb_workspaces.workspaces  # noqa: F401
    except ImportError:
        raise UserError(
            "the library wandb-workspaces is not installed; it is in the extra board: pip install -e '.[board]'"
        ) from None
    try:
        with without_inherited_identity():
            return bounded(lambda: _save(place, sections), LIMIT_S)
    except UserError:
        raise
    except Exception as error:
        raise ServerError(
            f"{place.entity or 'your entity'}/{place.project}: W&B did not take the view: {one_line(error, 300)}"
        ) from None


def _save(place: Place, sections: list[Section]) -> Saved:
    import wandb
    from wandb_workspaces import workspaces as ws

    wandb.setup(
        wandb.Settings(
            silent=True,
            x_graphql_retry_max=RETRIES,
            x_graphql_retry_wait_min_seconds=0.5,
            x_graphql_retry_wait_max_seconds=5.0,
        )
    )
    entity = place.entity or wandb.Api().default_entity
    if not entity:
        raise UserError(f"{place.project}: your W&B account has no default entity; give ENTITY/PROJECT")
    view = _existing(place, entity)
    updated = view is not None
    if view is None:
        settings = ws.WorkspaceSettings(max_runs=MAX_RUNS)
        view = ws.Workspace(entity=entity, project=place.project, name=place.title, settings=settings)
        view._internal_name = f"nw-{place.key}-v"  # else the library draws one, and a repetition could not find it
        if place.group is not None:
            # a text in Python's grammar: the library's own expressions do not escape quotes
            view.runset_settings = ws.RunsetSettings(filters=f"Metric('Group') = {place.group!r}")
    ours = {section.title for section in sections}
    view.sections = [*map(_section, sections), *(section for section in view.sections if section.name not in ours)]
    view.save()
    return Saved(place.title, view.url, updated)


def _existing(place: Place, entity: str) -> Any:
    """The view as it is on the server; None where there is none. Raises ServerError where the project is not there."""
    from wandb_workspaces import workspaces as ws

    try:
        return ws.Workspace.from_url(f"https://server/{entity}/{place.project}?nw={place.key}")
    except ValueError as error:
        if str(error).startswith("Workspace") and "not found" in str(error):
            return None
        if str(error).startswith("Project"):
            raise ServerError(
                f"{entity}/{place.project}: W&B has no such project, or not for your key; upload a run first "
                "(scripts/sync.sh RESULTS), or give another ENTITY/PROJECT"
            ) from None
        raise


def _section(section: Section) -> Any:
    from wandb_workspaces import workspaces as ws
    from wandb_workspaces.reports import v2 as wr

    panels = [wr.LinePlot(title=panel.metric, x=panel.axis, y=[panel.metric]) for panel in section.panels]
    return ws.Section(name=section.title, panels=panels, is_open=True)
