"""Every command in the documents runs here, or is at least one that would be taken; every piece of YAML loads.

A new command in a document either matches a line of RUNS, and then runs on a small stand-in for what it names (a tiny
sweep, a tiny run), or one of PARSED, which says why it cannot run here, and then its own parser reads it.
"""

from __future__ import annotations

import ast
import contextlib
import html
import importlib
import io
import re
import shlex
import tomllib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from model.config import TrainConfig
from model.configfile import parse_yaml, validated, with_overrides
from model.errors import ConfigError
from sweep.run import main as run
from sweep.schema import schema
from sweep.spec import SweepSpec
from tests.command_lines import ROOT, Refused, parsed, split
from tests.documents import Block, blocks, command_lines, documents, inline_commands
from tests.inline import inline_runner
from tests.inline import sweep as run_inline
from tests.sweeping import table, tiny_content
from tests.tiny import tiny_content as trainer_content

# what runs here, and the exit codes that are no failure
RUNS: dict[str, set[int]] = {
    r"python -m sweep\.run (?!.*--address).*--dry-run": {0},
    r"python -m sweep\.agent \S+ --print": {0},
    r"python -m sweep\.trial ": {0},
    r"python -m sweep\.doctor ": {0, 1},
    r"python -m sweep\.report (?!.*--(watch|png))": {0},
    r"python -m sweep\.rescore ": {0},
    r"python -m sweep\.diagnose ": {0, 1},
    r"python -m sweep\.tensorboard (?!.*--follow)": {0},
    r"python -m sweep\.board .*--dry-run": {0},
    r"python -m sweep\.schema": {0},
    r"python -m model\.train ": {0},
    r"python -m model\.judge ": {0},
    r"python -m model\.export ": {0},
    r"python -m model\.metric_table": {0},
}
# what is only parsed, and why
PARSED: dict[str, str] = {
    r"scripts/(sweep|test|train_\w+)\.sh": "installs, then trains or tests for minutes; tests/test_scripts.py",
    r"python -m sweep\.run .*--address": "needs a Ray cluster; tests/test_cluster.py starts one",
    r"python -m sweep\.run ": "a whole sweep; the stand-in is one, and tests/test_run.py has many",
    r"python -m sweep\.report .*--watch": "goes on while a sweep runs; tests/test_report*.py",
    r"python -m sweep\.report .*--png": "needs a browser; tests/test_report_browser.py",
    r"python -m sweep\.tensorboard .*--follow": "goes on until Ctrl-C; tests/test_tensorboard.py",
    r"python -m sweep\.agent .*--(create|count)": "needs W&B's server; tests/test_agent.py has a double of it",
    r"python -m sweep\.board ": "needs W&B's server; tests/test_board.py has a double of it",
    r"python -m sweep\.import_wandb ": "needs W&B's server; tests/test_import_wandb.py has a double of it",
    r"python -m sweep\.remote ": "needs an object store; tests/test_remote.py has a double of it",
    r"python -m sweep\.sync ": "needs W&B's server; tests/test_sync.py has a double of it",
    r"scripts/(agents|sync)\.sh": "needs W&B's server; tests/test_agents.py and test_sync.py have a double of it",
    r"scripts/submit\.sh": "needs a Ray cluster that takes jobs; tests/test_cluster.py starts one",
    r"sbatch ": "needs Slurm; tests/test_cluster_scripts.py has a double of it",
    r"kubectl ": "needs Kubernetes; tests/test_cluster_scripts.py checks the manifest",
    r"ray ": "needs a cluster of several machines",
    r"wandb (agent|login|sync|sweep|leet)": "needs W&B's server, or a terminal of its own",
    r"optuna-dashboard ": "serves a page until Ctrl-C",
    r"tensorboard ": "serves a page until Ctrl-C",
    r"jupyter ": "opens a notebook in a browser; the notebook has a test of its own",
    r"torchrun ": "tests/test_distributed.py starts such processes",
    r"python scripts/\w+\.py": "measures for minutes or hours",
    r"python -m model\.data\.verify": "looks at the user's own frame stores; tests/test_store.py",
    r"pip install ": "needs a network",
    r"bash scripts/_env\.sh": "installs; tests/test_scripts.py",
    r"(cd|export|source|\.|git clone|ssh|apt-get install|sudo apt-get install) ?": "of the shell and the system",
    r"(mkdir|cp|systemctl|loginctl) ": "of the system; tests/test_agents.py reads the unit that they take",
}
NO_SPEC: dict[str, str] = {}  # YAML that is neither a spec nor a config, by its place: what it is
SAMPLE = {"alpha": {"min": 0.1, "max": 0.9}}

ALL = [
    (place, words)
    for document in documents()
    for block in blocks(document, "bash", "sh", "console", "shell")
    for place, words in command_lines(block)
]
RUN_HERE = {
    shlex.join(words): words for _, words in ALL if any(re.match(pattern, shlex.join(words)) for pattern in RUNS)
}


def by_click(load: Callable[[], Any]) -> Callable[[list[str]], None]:
    """A reader of command lines by the program's own parser, which is made with click."""

    def read(words: list[str]) -> None:
        import click

        command, rest = load(), words[1:]
        context = None
        try:
            while isinstance(command, click.Group):
                context = click.Context(command, parent=context, info_name=words[0])
                _, inner, rest = command.resolve_command(context, rest)
                assert inner is not None
                command = inner
            if "ignore_unknown_options" not in command.context_settings:
                command.make_context(words[0], list(rest), parent=context)
        except click.exceptions.ClickException as error:
            raise Refused(error.format_message()) from None

    return read


def wandb_cli() -> Any:
    return importlib.import_module("wandb.cli.cli").cli


def ray_cli() -> Any:
    scripts = importlib.import_module("ray.scripts.scripts")
    return scripts.cli


def of_slurm(words: list[str]) -> None:
    parsed(words[1:])


def of_kubectl(words: list[str]) -> None:
    assert words[1:3] == ["create", "-f"]
    assert (ROOT / words[3]).is_file()


def of_torchrun(words: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    options = get_args_parser().parse_args(words[1:])
    parsed(["python", "-m", options.training_script, *options.training_script_args])


def of_pip(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra in re.findall(r"\[(.*?)\]", shlex.join(words)):
        assert set(extra.split(",")) <= set(project["optional-dependencies"]), extra


def of_bash(words: list[str]) -> None:
    assert (ROOT / words[1]).is_file()


def as_it_is(words: list[str]) -> None:
    """A program whose parser is not ours: it is enough that it is one word and arguments."""


OTHERS: dict[str, Callable[[list[str]], None]] = {
    "wandb": by_click(wandb_cli),
    "ray": by_click(ray_cli),
    "sbatch": of_slurm,
    "kubectl": of_kubectl,
    "torchrun": of_torchrun,
    "pip": of_pip,
    "bash": of_bash,
}
AS_THEY_ARE = (
    "optuna-dashboard",
    "tensorboard",
    "jupyter",
    "cd",
    "export",
    "source",
    ".",
    "git",
    "ssh",
    "apt-get",
    "mkdir",
    "cp",
    "systemctl",
    "loginctl",
    "sudo",
)


def read_by_its_parser(words: list[str]) -> None:
    """Raises Refused or AssertionError where the command would not take its words."""
    if words[0] in AS_THEY_ARE:
        return
    if words[0] == "scripts/test.sh":  # its options are pytest's
        return
    OTHERS.get(words[0], parsed)(words)


def standing_for(words: list[str]) -> list[str]:
    """A synopsis with the stand-ins for what it leaves open."""
    given = {
        "SPEC": "sweeps/alpha_beta.yaml",
        "RESULTS": "results/alpha_beta",
        "N": "2",
        "SECONDS": "5",
        "ENTITY/PROJECT/SWEEP": "me/tactile/abcd1234",
        "KEY=VALUE": "epochs=2",
        "DIR": "runs/joint_equal_weights",
        "CHECKPOINT": "runs/joint_equal_weights/checkpoint/last.pt",
    }
    return [given.get(word, word) for word in words]


def test_every_document_is_looked_at():
    names = {path.relative_to(ROOT).as_posix() for path in documents()}
    assert {"README.md", "model/README.md", "sweep/README.md", "sweeps/README.md"} <= names
    assert "scripts/cluster/README.md" in names
    assert len(ALL) > 20


@pytest.mark.parametrize(("place", "words"), ALL, ids=[f"{place}" for place, _ in ALL])
def test_a_command_in_a_document_is_one_that_its_parser_takes(place, words):
    line = shlex.join(words)
    known = any(re.match(pattern, line) for pattern in (*RUNS, *PARSED))
    assert known, f"{place}: add {line!r} to RUNS, or to PARSED with the reason why it cannot run here"
    read_by_its_parser(standing_for(words))


def test_a_command_in_running_text_exists_and_takes_its_options():
    refused = []
    for document in documents():
        for block in inline_commands(document):
            _, words = command_lines(block)[0]
            try:
                # `python -m sweep.report` alone names the command
                if words[0] != "scripts/test.sh" and (len(words) > 3 or len(split(words)[1]) > 0):
                    parsed(standing_for(words))
            except Refused as error:
                refused.append(f"{block.place}: {block.text}: {error}")
    assert refused == []


def test_the_chinese_readme_has_no_command_that_the_english_one_has_not():
    def commands(name: str) -> set[str]:
        found = [line for block in blocks(ROOT / name, "bash") for line in command_lines(block)]
        return {shlex.join(words) for _, words in found}

    assert commands("README.zh.md") <= commands("README.md")
    assert len(commands("README.zh.md")) > 10


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_link_to_a_file_of_this_repository_leads_somewhere(document):
    text = document.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (document.parent / link).exists()] == []


# --- YAML and Python -----------------------------------------------------------------------------------------------

YAML = [block for document in documents() for block in blocks(document, "yaml", "yml")]
PYTHON = [block for document in documents() for block in blocks(document, "python", "py")]


def alternatives(block: Block) -> list[dict[str, Any]]:
    """The content of a block; of one that gives a key several times, each line by itself, as a choice."""
    text = block.text.replace(", ...}", "}")
    try:
        contents = [parse_yaml(text, block.place)]
    except ConfigError as error:
        if "given twice" not in str(error):
            raise
        contents = [parse_yaml(line, block.place) for line in text.splitlines() if line.strip()]
    assert all(isinstance(content, dict) for content in contents), block.place
    return contents


@pytest.mark.parametrize("block", YAML, ids=lambda block: block.place)
def test_a_piece_of_yaml_in_a_document_is_a_spec_or_a_part_of_one_that_loads(block):
    if block.place in NO_SPEC:
        parse_yaml(block.text, block.place)
        return
    for content in alternatives(block):
        if set(content) <= set(TrainConfig.model_fields) - set(SweepSpec.model_fields):
            validated(TrainConfig, content, block.place)
            content = {"trainer": content}
        # accelerator_hours and GPUs go together; the rest does not mind
        whole = {"parameters": SAMPLE, "resources": {"gpu": 1}, **content}
        assert [error.message for error in jsonschema.Draft7Validator(schema()).iter_errors(whole)] == []
        validated(SweepSpec, {"name": "x", **whole}, block.place)


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.place)
def test_python_in_a_document_compiles_and_imports_what_exists(block):
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name), f"{block.place}: {node.module} has no {alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)


# --- what runs -----------------------------------------------------------------------------------------------------


def spec_content(name: str) -> dict[str, Any]:
    return tiny_content(name=name, run_cap=3, trainer=trainer_content())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the documents' commands name: specs, a finished sweep, a finished run, a config; all of them tiny."""
    root = tmp_path_factory.mktemp("site")
    for kind in ("sweeps", "model"):
        (root / kind).mkdir()
    for spec in (ROOT / "sweeps").glob("*.yaml"):
        (root / "sweeps" / spec.name).write_text(yaml.safe_dump(spec_content(spec.stem)), encoding="utf-8")
    for document in ("README.md", "model/README.md"):
        (root / document).write_bytes((ROOT / document).read_bytes())
    (root / "CONFIG.yaml").write_text(yaml.safe_dump(trainer_content()), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        ran = run_inline(Path("sweeps/alpha_beta.yaml"), Path("results/alpha_beta"))
        assert ran.code == 0, ran.err
        code, said = run_here(["python", "-m", "model.train", "CONFIG.yaml", "--out", "runs/joint_equal_weights"])
        assert code == 0, said
    return root


def run_here(words: list[str]) -> tuple[int, str]:
    """Run a command of ours in this process: its exit code, and what it said."""
    command, arguments = split(words)
    name = command[1]
    package = (ROOT / name.replace(".", "/")).is_dir()
    module = importlib.import_module({"sweep.trial": "sweep.single"}.get(name, f"{name}.__main__" if package else name))
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = int(module.main(arguments) or 0)
        except SystemExit as ended:
            code = int(ended.code or 0)
    return code, said.getvalue()


def in_the_site(words: list[str]) -> list[str]:
    """Places that are not here are those of the stand-ins: data are made up, object stores are folders."""
    result = []
    for word in standing_for(words):
        word = re.sub(r"^(s3|gs)://", "results/", word)
        if re.match(r"(trainer\.)?data\.(root|source)=", word):
            word = f"{'trainer.' * word.startswith('trainer')}data.frame_stride=1"
        result.append(word)
    return [*result, "--no-measure"] if "--dry-run" in result and "sweep.run" in result else result


@pytest.mark.xdist_group("site")
@pytest.mark.parametrize("line", RUN_HERE)
def test_a_command_in_a_document_runs(site: Path, line: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(site)
    codes = next(codes for pattern, codes in RUNS.items() if re.match(pattern, line))
    code, said = run_here(in_the_site(RUN_HERE[line]))
    assert code in codes, said
    assert "Traceback" not in said


# The README's sweep, with its own space, sampler, presets, early stopping, objective, seeds and confirmation. 3 of its
# 8 epochs are the fewest in which a trial can be stopped early. With the spec's own clips and model that would take
# minutes on one core: both are small here.
SHORTENED = (
    "epochs=3",
    "data.synthetic.sequences=8",
    "data.eval_clips=8",
    "data.image_size=32",
    "encoder.width=32",
    "encoder.depth=1",
    "decoder.width=32",
)


@pytest.fixture(scope="module")
def readme_sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path, str]:
    """The exit code of `python -m sweep.run sweeps/alpha_beta.yaml`, the results folder, and what it printed."""
    root = tmp_path_factory.mktemp("readme")
    said = io.StringIO()
    options = [word for change in SHORTENED for word in ("--set", f"trainer.{change}")]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.chdir(root)
        patch.delenv("WANDB_API_KEY", raising=False)
        patch.setenv("NETRC", str(root / "none"))  # no account, as README says
        with inline_runner():
            code = run([str(ROOT / "sweeps/alpha_beta.yaml"), *options])
    return code, root / "results/alpha_beta", said.getvalue()


def shown_in_readme(name: str) -> list[str]:
    """The lines of README's output that begin with this word."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    output = text.split("You see (some lines are left out here):", 1)[1].split("```")[1]
    return [line for line in output.splitlines() if line.startswith(name)]


@pytest.mark.xdist_group("readme")
def test_the_readmes_sweep_says_at_first_what_readme_shows(readme_sweep: tuple[int, Path, str]):
    code, _, said = readme_sweep
    assert code == 0
    for name in ("sweep  ", "searched", "first", "goal", "confirm  ", "starting"):
        [line] = shown_in_readme(name)
        assert line in said.splitlines()
    assert "wandb      offline: no credentials" in said


@pytest.mark.xdist_group("readme")
def test_the_readmes_sweep_tries_the_presets_first_and_stops_none_of_them(readme_sweep: tuple[int, Path, str]):
    _, results, said = readme_sweep
    trials = table(results)
    assert len(trials) == 16
    assert [(row["preset"], float(row["alpha"])) for row in trials[:2]] == [
        ("equal-weights", 0.5),
        ("balanced-weights", 0.75),
    ]
    assert {row["state"] for row in trials[:2]} == {"complete"}
    assert any(row["state"] == "pruned" for row in trials)
    for part in ("trial 0000", "alpha 0.5  base_lr 0.008  mask_ratio 0.75", "[equal-weights]"):
        assert part in next(line for line in said.splitlines() if line.startswith(" 1/16"))


@pytest.mark.xdist_group("readme")
def test_the_readmes_sweep_confirms_its_best_two_and_the_presets_and_tells_it_in_the_report(
    readme_sweep: tuple[int, Path, str],
):
    _, results, said = readme_sweep
    runs = table(results, "confirm.csv")
    assert {row["state"] for row in runs} == {"complete"}
    assert {"equal-weights", "balanced-weights"} < {row["candidate"] for row in runs}
    assert len(runs) == len({row["candidate"] for row in runs}) * 3 == 12
    *_, answer, train, report = said.strip().splitlines()
    assert answer.rpartition(": ")[2] in ("better.", "worse.", "no difference shown.")
    page = (results / "report.html").read_text(encoding="utf-8")
    assert html.escape(answer.partition(":")[0]) in html.unescape(page)
    assert report == f"report: {results / 'report.html'}"
    assert train.startswith(f"train it longer: python -m model.train {results / 'best.yaml'} --set epochs=")


@pytest.mark.xdist_group("readme")
def test_the_readmes_sweep_leaves_a_best_config_that_the_trainer_takes(
    readme_sweep: tuple[int, Path, str], tmp_path: Path
):
    _, results, said = readme_sweep
    line = next(line for line in said.splitlines() if line.startswith("train it longer: "))
    words = shlex.split(line.removeprefix("train it longer: "))
    code, printed = run_here([*words[:-1], "epochs=1", "--set", "warmup_epochs=0", "--out", str(tmp_path)])
    assert code == 0, printed
    confirmed = yaml.safe_load((results / "best.yaml").read_text(encoding="utf-8"))
    trained = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    assert [trained[key] for key in ("alpha", "base_lr")] == [confirmed[key] for key in ("alpha", "base_lr")]


def test_overrides_in_documents_name_keys_that_exist():
    """`--set KEY=VALUE` of the specs and configs that the documents name."""
    wrong = []
    for place, words in ALL:
        for flag, option in pairwise(words):
            if flag == "--set" and "=" in option and option != "KEY=VALUE":
                wrong += [f"{place}: {option}: {said}" for said in [refusal_of(option)] if said]
    assert wrong == []


def refusal_of(option: str) -> str:
    """Why neither a spec nor a config has this key with such a value; empty where one has."""
    base = {"data": {"source": "frames", "root": "/data"}} if option.startswith("data.") else {}
    said = ""
    for model, content in ((SweepSpec, {"name": "x", "parameters": SAMPLE}), (TrainConfig, base)):
        try:
            validated(model, with_overrides(content, [option]), "--set")
        except ConfigError as error:
            said = str(error)
            if "unknown key" not in said:  # the key is there; what it needs beside it is given by other options
                return ""
        else:
            return ""
    return said
