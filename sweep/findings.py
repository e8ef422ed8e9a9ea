"""What a sweep found, written to its folder: best.yaml or the Pareto front, confirm.json, report.html."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from model.config import TrainConfig
from model.sinks import write_json, write_text
from sweep.candidates import how_to_confirm
from sweep.conclusion import Conclusion
from sweep.results import ResultsFolder
from sweep.spec import SweepSpec
from sweep.study import Record
from sweep.trial_table import TrialTable


def write_best(
    spec: SweepSpec, folder: ResultsFolder, winner: Record, conclusion: Conclusion | None = None
) -> TrainConfig:
    """best.yaml, and its config: the confirmed one, else what the search picked. The file's head says which."""
    from sweep.trial import config_text  # imports torch

    row = conclusion.chosen_row if conclusion is not None and conclusion.confirmed else None
    if conclusion is not None and row is not None:
        values = row.params
        head = "".join(f"# {line}\n" for line in (f"confirmed: {conclusion.answer}", *conclusion.notes))
        about = f"{row.name} of sweep {spec.name}"
    else:
        values = winner.final_values or winner.values
        head = f"# {how_to_confirm(spec)}\n"
        about = f"best of sweep {spec.name} (trial {winner.trial}, {spec.metric.name} {winner.value:.6g})"
    config = spec.space.to_config(spec.trainer, values)
    folder.write_best(head + config_text(config, about))
    return config


def write_front(spec: SweepSpec, folder: ResultsFolder, table: TrialTable, front: Sequence[Record]) -> None:
    """pareto.csv, and in pareto/ a config for each trial of the front; those of an earlier front go."""
    from sweep.trial import config_text  # imports torch

    table.write_front(front)
    folder.front_folder.mkdir(exist_ok=True)
    for file in folder.front_folder.glob("*.yaml"):
        file.unlink()
    names = [metric.name for metric in spec.metrics]
    for record in front:
        reached = ", ".join(f"{name} {value:.6g}" for name, value in zip(names, record.objectives, strict=True))
        config = spec.space.to_config(spec.trainer, record.final_values or record.values)
        about = f"trial {record.trial}, on the Pareto front of sweep {spec.name} ({reached}; one seed)"
        write_text(folder.front_folder / f"{record.trial}.yaml", config_text(config, about))


def write_conclusion(folder: ResultsFolder, conclusion: Conclusion) -> Conclusion:
    """confirm.json; returns the conclusion."""
    write_json(folder.conclusion_file, conclusion.model_dump(mode="json"))
    return conclusion


def write_report_or_say_why_not(folder: ResultsFolder, console: Console) -> None:
    """report.html; a page that fails must not hide what the sweep found."""
    from sweep.report.page import write_report

    try:
        write_report(folder.path)
    except Exception as error:
        console.print(f"note: no report: {type(error).__name__}: {error}", style="yellow", markup=False)
