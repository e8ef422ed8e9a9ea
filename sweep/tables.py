"""A results folder in a notebook: `from sweep import load_results`, then pandas tables and plotly figures."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

from model.configfile import field_value, load_yaml
from model.errors import UserError
from model.metrics import BATCH_NAMES, EPOCH_COLUMNS
from model.sinks import sound_rows
from sweep.outcome import Outcome
from sweep.report.data import SweepResults, TrialResult, read_results
from sweep.report.lenient import parse_cell, read_trials
from sweep.results import ResultsFolder
from sweep.table_rows import sound_table

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from sweep.conclusion import Conclusion
    from sweep.spec import SweepSpec

HEAD = ("trial", "confirmation", "state", "reason", "preset", "candidate", "epochs_done", "seconds")
COUNTS = ("epoch", "batch/epoch", "batch/iteration", "batch/mode")  # whole numbers, where no cell is empty


class SweepTables:
    """What a results folder holds, as tables. They are read when they are first asked for, and then kept; a folder that
    is still written to is read anew by another `load_results`.

    Args:
        folder: the results folder of a sweep.

    Attributes:
        notes: what is missing or damaged, a sentence each; reading a table may add some.

    Raises:
        UserError: the folder is none of a sweep.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._results = read_results(folder)
        self.notes = self._results.notes

    def __repr__(self) -> str:
        return f"<sweep {self.spec.name}: {len(self._results.trials)} trials in {self.folder}>"

    @property
    def spec(self) -> SweepSpec:
        """The sweep's spec, defaults filled in."""
        return self._results.spec

    @property
    def best(self) -> TrialResult | None:
        """The search's best trial that trained to its end: `name`, `record.values`, `metrics`. None without one, and
        where several metrics are optimised."""
        return self._results.best

    @property
    def conclusion(self) -> Conclusion | None:
        """What the confirmation shows (`answer`, `chosen_row`, `rows`); None where there was none."""
        return self._results.conclusion

    @cached_property
    def trials(self) -> pd.DataFrame:
        """A row per trial: id, state, parameters, and the metrics after its last epoch, by their full names.

        Runs of the confirmation are marked by `confirmation`; their `candidate` is the config that they confirm. A cell
        without a value is NaN or None; a trial that has not ended is `running`.
        """
        return _trials_table(self._results)

    @cached_property
    def batches(self) -> pd.DataFrame:
        """All rows per gradient update of all trials, in order, with a column `trial`.

        A metric that was not computed (the other loss of the alternating modes) and one that was NaN are both NaN.
        """
        return self._rows("batch.csv", BATCH_NAMES)

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """All rows per epoch of all trials, in order, with a column `trial`; metrics that were not computed are NaN."""
        return self._rows("epoch.csv", EPOCH_COLUMNS)

    @cached_property
    def figures(self) -> dict[str, go.Figure]:
        """The report's figures by title, for a white page; where two sections have one title, `section: title`."""
        from sweep.report.figures import figures

        drawn: dict[str, go.Figure] = {}
        for section, shown in figures(self._results).items():
            for figure in shown:
                if figure.figure is not None:
                    name = f"{section}: {figure.title}" if figure.title in drawn else figure.title
                    drawn[name] = _for_notebook(figure.figure, figure.title)
        return drawn

    def _rows(self, file: str, columns: Sequence[str]) -> pd.DataFrame:
        paths = sorted((self.folder / "trials").glob(f"*/{file}"))
        table = _read_all(paths, self.notes)
        missing = [name for name in columns if name not in table]
        return table.reindex(columns=[*table.columns, *missing]) if missing else table


def _trials_table(results: SweepResults) -> pd.DataFrame:
    folder = ResultsFolder(results.folder)
    parameters = list(results.spec.space.parameters)
    search = read_trials(folder.trials_file, [])
    rows = []
    for trial in results.trials:
        record = trial.record
        known = search.get(trial.name, {})
        here = {"trial": trial.name, "confirmation": False, "state": record.outcome.value, "epochs_done": record.epochs}
        values = record.values or _values_of(folder.trial_folder(trial.name), parameters)
        rows.append({**known, **trial.metrics, **values, **here})
    confirming = list(_confirmation(folder, results.notes))
    there = {row["trial"] for row in confirming}
    for path in sorted((results.folder / "trials").glob("c*")):
        if path.name not in there and path.is_dir():  # one enters confirm.csv when it ends
            values = _values_of(path, [*parameters, "seed"])
            confirming.append({"trial": path.name, "state": Outcome.RUNNING.value, **values})
    rows += [{**row, "confirmation": True} for row in confirming]
    table = pd.DataFrame(rows, columns=None if rows else list(HEAD))
    order = dict.fromkeys((*HEAD, *parameters, *table.columns))
    return table.reindex(columns=list(order))


def _confirmation(folder: ResultsFolder, notes: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of confirm.csv; a damaged one is left out and noted."""
    path = folder.confirm_runs_file
    lines, fault = sound_table(path)
    if fault is not None:
        notes.append(f"{path}: damaged ({fault}); of its runs those that can be read are shown as ended")
    for line in lines:
        named = {key: cell for key, cell in line.cells.items() if cell}
        if named.get("state") not in set(Outcome) or "trial" not in named:
            notes.append(f"{path}: a row names no run, or no state that is known here; it is left out")
            continue
        yield {key: cell if key == "candidate" else parse_cell(key, cell) for key, cell in named.items()}


def _values_of(trial: Path, parameters: Iterable[str]) -> dict[str, Any]:
    """The parameters of a trial that is in no table yet, of its config; those that it does not tell are absent."""
    try:
        config = load_yaml(trial / "config.yaml")
    except UserError:
        return {}
    values = {}
    for name in parameters:
        with suppress(LookupError, TypeError):
            if (value := field_value(config, name)) is not None:
                values[name] = value
    return values


def _read_all(paths: Sequence[Path], notes: list[str]) -> pd.DataFrame:
    """The rows of these files (trials/<id>/<file>) one below the other; of a damaged file those before the damage."""
    tables = []
    for header, members in _by_header(paths, notes).items():
        try:
            tables.append(_parsed(header, members))
        except pa.ArrowInvalid:  # one is damaged: find which
            for name, path, body in members:
                try:
                    tables.append(_parsed(header, [(name, path, body)]))
                except pa.ArrowInvalid:
                    rows = sound_rows(path)
                    notes.append(f"{path}: damaged; its {len(rows)} rows before the damage are shown")
                    tables.append(pd.DataFrame(rows, columns=header.split(",")).assign(trial=name))
    if not tables:
        return pd.DataFrame({"trial": pd.Series(dtype="str")})
    table = tables[0] if len(tables) == 1 else pd.concat(tables, ignore_index=True).sort_values("trial", kind="stable")
    table = table[["trial", *(name for name in table.columns if name != "trial")]].reset_index(drop=True)
    whole = [name for name in COUNTS if name in table and len(table) and np.isfinite(table[name]).all()]
    return table.astype(dict.fromkeys(whole, "int64"))


def _by_header(paths: Sequence[Path], notes: list[str]) -> dict[str, list[tuple[str, Path, bytes]]]:
    """(trial, file, its whole lines) by the files' first lines: another version has other columns."""
    files: dict[str, list[tuple[str, Path, bytes]]] = defaultdict(list)
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError as error:
            notes.append(f"{path}: cannot be read ({error.strerror})")
            continue
        head, _, body = content.partition(b"\n")
        header = head.decode(errors="replace").rstrip("\r")
        if "/" not in header or len(set(header.split(","))) != header.count(",") + 1:
            notes.append(f"{path}: damaged, its first line names no metrics; the trial's rows are left out")
            continue
        files[header].append((path.parent.name, path, body[: body.rfind(b"\n") + 1]))  # a half-written line is none
    return files


def _parsed(header: str, files: Sequence[tuple[str, Path, bytes]]) -> pd.DataFrame:
    """The rows of files of one header. Raises ArrowInvalid where a cell is no number, or a row has more or fewer."""
    columns = header.split(",")
    body = b"".join(content for _, _, content in files)
    if not body:
        return pd.DataFrame({name: pd.Series(dtype="float64") for name in columns}).assign(trial="")
    table = pyarrow.csv.read_csv(
        io.BytesIO(body),
        read_options=pyarrow.csv.ReadOptions(column_names=columns),
        parse_options=pyarrow.csv.ParseOptions(quote_char=False),
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.float64()), null_values=[""]),
    )
    counts = [content.count(b"\n") for _, _, content in files]
    if table.num_rows != sum(counts):
        raise pa.ArrowInvalid("lines are empty, or hold a carriage return")
    names = np.repeat(np.array([name for name, _, _ in files], dtype=object), counts)
    return table.to_pandas().assign(trial=pd.Series(names, dtype="str"))


def _for_notebook(figure: go.Figure, title: str) -> go.Figure:
    """A copy that needs no page around it: the report's have the page's colours, and their titles beside them."""
    import plotly.graph_objects as go

    white = {"template": "plotly_white", "paper_bgcolor": "white", "plot_bgcolor": "white"}
    return go.Figure(figure).update_layout(**white, title=title, margin={"t": 90})
