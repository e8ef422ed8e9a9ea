"""Any bytes in place of a file that people write or that a bad day leaves behind: an error that names it, or a result.

Never a traceback, never a hang, never a file outside the folder that was given.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.errors import UserError
from model.sinks import read_csv, read_json
from sweep import diagnose, rescore, run
from sweep.report.__main__ import main as report_main
from sweep.report.page import write_report
from sweep.results import ResultsFolder
from sweep.spec import SweepSpec, load_spec
from sweep.warm_start import load_warm_start
from tests.past_sweeps import Past, past_sweep
from tests.sweeping import tiny_content, tiny_spec

many = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
few = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=30)
    | st.sampled_from(
        ["auto", "1e-3", ".inf", "../x", "<script>", "=cmd", "", "~", "s3://b/x", 10**400, -1, 0, 1e308, 2**63]
    )
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
# bytes with the signs that YAML, CSV and JSON are made of are worse than any bytes
written = st.binary(max_size=300) | st.text(
    st.sampled_from("abc019.,:;-+eE\n\r\t \"'{}[]<>&*!|#%=\\/\0~\ufeff\u2028é"), max_size=120
).map(str.encode)
csv_files = written | st.lists(
    st.lists(st.sampled_from(["1", "nan", "-inf", "", "x", "1e999", '"', "0" * 400, "=cmd", "<b>"]), max_size=5).map(
        ",".join
    ),
    max_size=5,
).map(lambda lines: "\n".join(["epoch,epoch/train_loss,batch/epoch,objective/value", *lines, ""]).encode())
json_files = written | anything.map(lambda content: json.dumps(content).encode())


def check_error(error: UserError, *each_one_of: Path | str | tuple[str, ...]) -> None:
    """Raise AssertionError unless the message names each of these: of a tuple, one of its words."""
    for words in each_one_of:
        assert any(word in str(error) for word in (words if isinstance(words, tuple) else (str(words),)))


@contextmanager
def nothing_outside(folder: Path) -> Iterator[None]:
    """Raises AssertionError where something beside `folder` comes or goes."""
    before = sorted(folder.parent.iterdir())
    yield
    assert sorted(folder.parent.iterdir()) == before


# --- specs


@many
@given(written)
def test_any_bytes_as_a_spec_are_a_spec_or_an_error_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(content)
    try:
        assert isinstance(load_spec(path), SweepSpec)
    except UserError as error:
        check_error(error, path)


PLACES = [
    (key,) if inner is None else (key, inner)
    for key, block in tiny_spec().resolved().items()
    for inner in [None, *(block if isinstance(block, dict) else ())]
]


@many
@given(st.sampled_from(PLACES), anything)
def test_any_value_in_a_spec_is_taken_or_refused_by_its_key(tmp_path: Path, place: tuple[str, ...], value: Any) -> None:
    content = json.loads(json.dumps(tiny_spec().resolved()))
    *outer, last = place
    block = content[outer[0]] if outer else content
    block[last] = value
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    try:
        spec = load_spec(path)
    except UserError as error:
        check_error(error, path)
        return
    spec.warnings()
    assert spec.space.distributions is not None
    folder = ResultsFolder(tmp_path / "results" / spec.name)
    assert folder.path.parent == tmp_path / "results"  # no name leads out of it
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(spec.resolved(), allow_unicode=True), encoding="utf-8")
    assert load_spec(again) == spec


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        "a: " * 500,
        "{a: " * 3000,
        "a: &a [*a]",
        "a: &a {b: *a}\nparameters: *a",
        "\n".join(
            ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
            + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
        ),
        "!!python/object/apply:os.system ['touch owned']",
        "!!binary x",
        "a: !!timestamp 2020",
        "? [a]\n: b",
        "parameters: {alpha: {min: 0x, max: 1}}",
        "parameters: {alpha: {value: 1:30}}",
        "name: 12\nparameters: {alpha: {min: 1e-400, max: 1}}",
        "\ufeffparameters: {alpha: {min: 0.1, max: 0.9}}",
        "parameters: {alpha: {values: " + str(list(range(3000))) + "}}",
        "run_cap: " + "9" * 5000,
        "parameters: {alpha: {min: 0.1, max: 0." + "9" * 5000 + "}}",
        "---\na: 1\n---\nb: 2",
        "\0",
        "'\\ud800': 1",
    ],
    ids=lambda text: text[:20],
)
def test_texts_made_to_break_readers_do_no_harm(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "s.yaml"
    path.write_bytes(text.encode())
    code = run.main([str(path), "--results", str(tmp_path / "results"), "--dry-run", "--no-measure"])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert len(printed.err) < 20_000
    assert (code == 2) == (str(path) in printed.err)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["s.yaml"]


@many
@given(st.text(max_size=40))
def test_any_option_is_applied_or_refused(tmp_path: Path, option: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(tiny_content()), encoding="utf-8")
    for text in (option, f"trainer.{option}", f"name={option}", f"parameters.alpha={option}"):
        try:
            load_spec(path, [text])
        except UserError as error:
            check_error(error, (str(path), "--set"))


# --- what a trial leaves behind


@many
@given(csv_files)
def test_any_bytes_as_rows_are_numbers_or_an_error_that_names_file_and_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "epoch.csv"
    path.write_bytes(content)
    try:
        rows = read_csv(path)
    except UserError as error:
        check_error(error, path, ("line", "byte"))
        return
    assert all(isinstance(value, int | float) for row in rows for value in row.values())


@many
@given(json_files)
def test_any_bytes_as_a_summary_are_an_object_or_an_error_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "summary.json"
    path.write_bytes(content)
    try:
        assert isinstance(read_json(path), dict)
    except UserError as error:
        check_error(error, path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of a small finished sweep."""
    folder = tmp_path_factory.mktemp("sound") / "tiny"
    trials = [Past({"alpha": 0.5, "base_lr": 0.03}, preset="equal-weights"), Past({"alpha": 0.3, "base_lr": 0.1})]
    past_sweep(folder, tiny_spec(), *trials)
    (folder / "trials/0000/summary.json").write_text('{"summary/best_loss": 0.5}', encoding="utf-8")
    (folder / "provenance.json").write_text('{"uid": "u", "sessions": []}', encoding="utf-8")
    return folder


def warm(folder: Path) -> int:
    load_warm_start([folder], tiny_spec(), own=folder.parent / "other")
    return 0


COMMANDS: dict[str, Callable[[Path], int]] = {
    "report": lambda folder: report_main([str(folder)]),
    "diagnose": lambda folder: diagnose.main([str(folder / "trials" / "0000")]),
    "rescore": lambda folder: rescore.main([str(folder), "--set", "objective.ratio_weight=0"]),
    "warm start": warm,
}
FILES = {
    "spec.yaml": written,
    "trials.csv": csv_files,
    "provenance.json": json_files,
    "confirm.json": json_files,
    "trials/0000/epoch.csv": csv_files,
    "trials/0000/batch.csv": csv_files,
    "trials/0000/summary.json": json_files,
    "trials/0000/config.yaml": written | anything.map(lambda content: yaml.safe_dump(content).encode()),
}


@few
@given(st.data())
@pytest.mark.parametrize("command", COMMANDS)
def test_no_file_of_a_results_folder_makes_a_command_fall_over(
    tmp_path: Path, sound: Path, capsys: pytest.CaptureFixture[str], command: str, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(FILES)))
    folder = tmp_path / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder)
    (folder / name).write_bytes(data.draw(FILES[name]))
    with nothing_outside(folder):
        try:
            code = COMMANDS[command](folder)
        except UserError as error:
            check_error(error, folder)
            return
    printed = capsys.readouterr()
    assert code in (0, 1, 2)
    if code == 2:
        assert str(folder) in printed.err
    assert "Traceback" not in printed.err


# --- hostile names


HOSTILE = [
    "<script>alert(1)</script>",
    "=cmd|' /C calc'!A0",
    "../../outside",
    "a\nb",
    "@SUM(A1)",
    "+1+1",
    "-2+3",
    "\tx",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_of_a_sweep_stays_a_name(tmp_path: Path, name: str) -> None:
    try:
        spec = tiny_spec(name=name)
    except UserError as error:
        check_error(error, repr(name))
        return
    assert set(spec.name).isdisjoint("<>=|/\\\n\t@+'")
    assert (tmp_path / spec.name).resolve().parent == tmp_path.resolve()


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_in_a_table_are_no_formulas_and_no_markup(tmp_path: Path, sound: Path, text: str) -> None:
    folder = tmp_path / "hostile"
    shutil.copytree(sound, folder)
    spec = yaml.safe_load((folder / "spec.yaml").read_text(encoding="utf-8"))
    spec["description"] = text
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    (folder / "trials/0000/summary.json").write_text(json.dumps({text: 1, "summary/best_loss": text}), encoding="utf-8")
    page = Path(write_report(folder)).read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page


def test_the_fuzzed_folder_is_a_sound_one_before_it_is_damaged(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codes = {name: command(sound) for name, command in COMMANDS.items()}
    assert codes == {"report": 0, "diagnose": 1, "rescore": 0, "warm start": 0}  # made-up rows are no healthy run
    assert "error" not in capsys.readouterr().err
