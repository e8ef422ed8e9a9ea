"""All figures of report.html, by section of the page; each kind is drawn in a module of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial

from sweep.report.as_study import as_study
from sweep.report.base import MARKS, MAX_POINTS, Figure, number, state_name, thin
from sweep.report.cost_figures import cost_figure
from sweep.report.curve_figures import core_triangle, reference_loss
from sweep.report.data import SweepResults
from sweep.report.importance_figures import importance_figure, importances
from sweep.report.parameter_figures import contour_figures, parallel_figure, slice_figure
from sweep.report.search_figures import confirmation_figure, front, history, parts_figures
from sweep.report.stopping_figures import ladder

__all__ = ["MARKS", "MAX_POINTS", "Figure", "confirmation_figure", "figures", "number", "state_name", "thin"]

Made = Figure | None | Iterable[Figure]


def figures(results: SweepResults) -> dict[str, list[Figure]]:
    """All figures, by section of the page, in its order; a section without any is absent.

    A figure without `html` says why it is not drawn. One that fails costs the page no more than itself.
    """
    trials, names = results.trials, list(results.spec.space.parameters)
    if not trials:
        return {}
    study = cache(lambda: as_study(results))
    shares = cache(lambda: importances(results, study()))

    def importance() -> Figure | None:
        return importance_figure(results, shares(), len(study().get_trials(deepcopy=False))) if names else None

    def pairs() -> list[Figure]:
        known = shares()
        return contour_figures(results, study(), names if isinstance(known, str) else [*known])

    sections: dict[str, list[tuple[str, Callable[[], Made]]]] = {
        "Pareto front": [("Pareto front", lambda: front(results) if results.front else None)],
        "Core triangle": [("Curves of the updates", lambda: core_triangle(results))],
        "Search": [
            ("Value by trial", lambda: history(results)),
            ("Importance of the parameters", importance),
        ],
        "All parameters at once": [("Parallel coordinates", lambda: parallel_figure(results))],  # it needs the width
        "Searched parameters": [(name, partial(slice_figure, results, name)) for name in names],
        "Pairs of parameters": [("Pairs of parameters", pairs)],
        "Parts of the objective": [("Parts of the objective", lambda: parts_figures(results))],
        "Held-out clips": [("Reference loss by epoch", lambda: reference_loss(results))],
        "Early stopping": [("Early stopping's ladder", lambda: ladder(results))],
        "Cost": [("Cost", lambda: cost_figure(results))],
    }
    made = {title: [figure for one in wanted for figure in _made(*one)] for title, wanted in sections.items()}
    return {title: there for title, there in made.items() if there}


def _made(title: str, make: Callable[[], Made]) -> list[Figure]:
    """The figures that `make` gives; one that says what went wrong where it fails: the others are worth the page."""
    try:
        made = make()
    except Exception as error:
        return [Figure(title, f"Not drawn, which is a fault of this program: {type(error).__name__}: {error}", "")]
    if made is None:
        return []
    return [made] if isinstance(made, Figure) else list(made)
