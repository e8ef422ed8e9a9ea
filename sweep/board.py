"""`python -m sweep.board RESULTS`: W&B's saved view of a sweep, with the panels that the metric text recommends.

    python -m sweep.board results/alpha_beta
    python -m sweep.board ENTITY/PROJECT --sweep alpha_beta

The view has three sections in the order of the metric text (its part 4): what to watch first, what to tune by, details;
in each, every metric over its own axis. A repetition brings the view up to date: our sections are made anew, what you
added to the view stays.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from model.errors import UserError
from model.metrics import BATCH_NAMES, BATCH_STEP, EPOCH_STEP
from sweep.spec import load_spec
from sweep.wandb_board import Panel, Place, Section, ServerError, save_view
from sweep.wandb_mode import resolve_mode

SECTIONS = {  # part 4 of the metric text, in its order
    "1 Watch first": ("batch/loss_total", "batch/loss_static", "batch/loss_dynamic", "batch/loss_ratio"),
    "2 Tune alpha and beta": (
        "batch/static_contribution",
        "batch/dynamic_contribution",
        "epoch/actual_static_contribution",
        "epoch/actual_dynamic_contribution",
    ),
    "3 Details": ("batch/weighted_static", "batch/weighted_dynamic", "batch/lr", "epoch/best_loss_so_far"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 done, 1 W&B's server failed, 2 bad input, offline or no key."""
    options = parser().parse_args(arguments)
    try:
        place = _place(options.target, options.sweep)
        if options.dry_run:
            print("\n".join(_shown(place)))
            return 0
        mode, reason = resolve_mode("auto")
        if mode != "online":
            raise UserError(f"W&B is offline here: {reason}. --dry-run shows the panels without it")
        saved = save_view(place, sections())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, ServerError) else 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(f"view {saved.title!r} {'brought up to date' if saved.updated else 'made'}: {saved.url}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m sweep.board`."""
    result = argparse.ArgumentParser(
        prog="python -m sweep.board",
        description="Make W&B's saved view of a sweep with the panels of the metric text, or bring it up to date.",
        epilog="example: python -m sweep.board results/alpha_beta",
    )
    result.add_argument(
        "target", metavar="RESULTS|ENTITY/PROJECT", help="results folder of a sweep whose runs are on W&B, or a project"
    )
    result.add_argument(
        "--sweep",
        metavar="NAME",
        help="show the runs of this sweep (W&B's group; default: that of RESULTS, or all runs of the project)",
    )
    result.add_argument("--dry-run", action="store_true", help="print the panels, ask W&B nothing")
    return result


def sections() -> list[Section]:
    """The sections of the view, in their order, every metric over its own axis."""
    return [
        Section(title, tuple(Panel(name, BATCH_STEP if name in BATCH_NAMES else EPOCH_STEP) for name in names))
        for title, names in SECTIONS.items()
    ]


def _place(target: str, sweep: str | None) -> Place:
    """Where the view goes. Raises UserError for what is neither a results folder nor ENTITY/PROJECT."""
    folder = Path(target).expanduser()
    if (folder / "spec.yaml").is_file():
        spec = load_spec(folder / "spec.yaml")
        return Place(spec.entity, spec.project, spec.name if sweep is None else sweep)
    if folder.is_dir():
        raise UserError(
            f"{target} holds no sweep (it has no spec.yaml); give a sweep's results folder, or ENTITY/PROJECT"
        )
    entity, slash, project = target.partition("/")
    if not (entity and slash and project) or "/" in project or target.startswith(("~", ".")):
        raise UserError(
            f"{target!r} is no results folder, nor ENTITY/PROJECT of W&B; for example results/alpha_beta or me/tactile"
        )
    return Place(entity, project, sweep)


def _shown(place: Place) -> Iterator[str]:
    runs = f"runs of the group {place.group}" if place.group is not None else "all runs"
    yield f"view {place.title!r} of the project {place.entity or '(your default entity)'}/{place.project}: {runs}"
    for section in sections():
        yield section.title
        for panel in section.panels:
            yield f"  {panel.metric}  over {panel.axis}"


if __name__ == "__main__":
    sys.exit(main())
