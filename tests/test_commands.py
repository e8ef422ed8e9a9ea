"""Every command answers --help, with an example that it would take."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.command_lines import ROOT, Refused, help_of, modules, parsed, programs, shell_scripts

INNER = {
    "model.team": "a process of a data-parallel trial, started by the others",
    "sweep.probe": "the short run that measures a trial's time and memory, started by the driver",
}
# their example is that of the script that people start
BY_SCRIPT = {"sweep.agents": "scripts/agents.sh", "sweep.submit": "scripts/submit.sh"}


def examples_in(text: str) -> list[str]:
    """The command lines behind "example:", each up to the end of its sentence."""
    return re.findall(r"[Ee]xamples?: (.+?)(?:[.;] |[.;]?$)", " ".join(text.split()))


def without_optional(line: str) -> list[str]:
    """A synopsis as words: what stands in brackets is given, dots are not."""
    return [word for word in shlex.split(re.sub(r"[\[\]]", "", line), comments=True) if word != "..."]


@pytest.mark.parametrize("module", [name for name in modules() if name not in INNER])
def test_the_help_of_a_module_has_an_example_that_it_takes(module):
    examples = examples_in(help_of(["-m", module]))
    assert examples, "its parser needs an epilog: example: python -m ..."
    for example in examples:
        assert example.startswith((f"python -m {module}", BY_SCRIPT.get(module, "python -m ")))
        parsed(shlex.split(example.partition(" > ")[0]))


@pytest.mark.parametrize("program", programs(), ids=lambda path: path.stem)
def test_the_head_of_a_program_in_scripts_has_a_command_line_that_it_takes(program):
    head = ast.get_docstring(ast.parse(program.read_text(encoding="utf-8")), clean=False) or ""
    lines = [line.strip() for line in head.splitlines() if line.startswith("    python scripts/")]
    assert lines
    assert "__doc__" in program.read_text(encoding="utf-8"), "the head is what --help prints"
    if program.name == "draw_objective.py":
        pytest.importorskip("matplotlib", reason="pip install 'tactile-sweep[evidence]'")
    for line in lines:
        assert line.split()[1] == str(program.relative_to(ROOT))
        parsed(without_optional(line))


@pytest.mark.parametrize("script", shell_scripts(), ids=lambda path: path.name)
@pytest.mark.process
def test_the_help_of_a_script_needs_no_install_and_its_example_is_taken(script: Path, tmp_path: Path):
    # an environment in which nothing is installed: the script's own head answers
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to("/bin/false")
    environment = os.environ | {"VIRTUAL_ENV": str(tmp_path), "PATH": f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", script, "--help"], env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.strip() for line in done.stdout.splitlines()]
    shown = [line for line in lines if line.startswith("scripts/")]
    shown += [line.removeprefix("example: ") for line in lines if line.startswith("example: ")]
    assert len(shown) > 0
    for line in shown:
        line = re.sub(r"  +.*|\[options of .*", "", line)  # what follows in another column explains it
        words = without_optional(line)
        assert words[0] == f"scripts/{script.name}"
        if script.name != "test.sh":  # its options are pytest's
            parsed(words)


def test_a_command_line_with_an_unknown_option_a_missing_value_or_an_unknown_module_is_refused():
    for line in (
        "python -m sweep.report results/x --colour",
        "python -m sweep.rescore",
        "python -m sweep.reports results/x",
        "python -m sweep.trial sweeps/alpha_beta.yaml --alfa=0.3",
        "scripts/submit.sh sweeps/alpha_beta.yaml --address http://head:8265 --resumee",
        "scripts/sweeps.sh",
        "python scripts/bench_load.py --trials many",
    ):
        with pytest.raises(Refused):
            parsed(shlex.split(line))


def test_no_command_of_another_process_is_exempt_in_vain():
    assert set(INNER) <= set(modules())
    assert (ROOT / "scripts/agents.sh").exists()
