"""Finds the commands of this repository, and reads command lines as each of them would, without running it."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import re
import runpy
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
_MAIN = re.compile(r"^if __name__ == .__main__.:", re.MULTILINE)


class Refused(Exception):
    """A command does not take these words; the message is what it says."""


class _Parsed(Exception):
    """Ends a command where its work would begin."""

    def __init__(self, namespace: argparse.Namespace, rest: list[str]) -> None:
        self.namespace, self.rest = namespace, rest


def modules() -> list[str]:
    """Modules of model/ and sweep/ that `python -m` runs."""
    found = []
    for package in ("model", "sweep"):
        for path in (ROOT / package).rglob("*.py"):
            if _MAIN.search(path.read_text(encoding="utf-8")):
                found.append(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__"))
    return sorted(found)


def programs() -> list[Path]:
    """Python files in scripts/ and its folders that are commands."""
    return sorted(p for p in (ROOT / "scripts").rglob("*.py") if _MAIN.search(p.read_text(encoding="utf-8")))


def shell_scripts() -> list[Path]:
    """Shell scripts in scripts/ that are commands."""
    return sorted(p for p in (ROOT / "scripts").glob("*.sh") if not p.name.startswith("_"))


def help_of(command: Sequence[str]) -> str:
    """What a command prints for --help, its lines joined by blanks. AssertionError where it does not end well."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        _run(command, ["--help"])
    assert ended.value.code == 0
    return " ".join(printed.getvalue().split())


def parsed(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """How `python -m MODULE ...`, `python scripts/X.py ...` or `scripts/X.sh ...` reads its words: options, the rest.

    Raises Refused where it does not take them.
    """
    command, arguments = split(words)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            _run(command, arguments)
    except _Parsed as done:
        _check_rest(command, done)
        return done.namespace, done.rest
    except SystemExit as ended:
        raise Refused(f"exit code {ended.code}: {said.getvalue()}") from None
    raise Refused(f"{shlex.join(command)} reads no command line")


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words -> the Python command behind them, and its arguments. Raises Refused for what is no command of ours."""
    first = words[0]
    if first == "python" and words[1:2] == ["-m"]:
        if words[2] not in modules():
            raise Refused(f"there is no command python -m {words[2]}")
        return ["-m", words[2]], list(words[3:])
    if first == "python" and Path(words[1]).parts[0] == "scripts":
        if not (ROOT / words[1]).is_file():
            raise Refused(f"there is no {words[1]}")
        return [words[1]], list(words[2:])
    if first.startswith("scripts/") and first.endswith((".sh", ".sbatch")) and (ROOT / first).is_file():
        return _behind(ROOT / first, list(words[1:]))
    raise Refused(f"{first} is no command of this repository")


def _behind(script: Path, arguments: list[str]) -> tuple[list[str], list[str]]:
    """The module that a shell script runs with its own arguments, which it may lead by a file."""
    line = next(
        line
        for line in script.read_text(encoding="utf-8").splitlines()
        if re.match(r"\s*(exec )?python -m (sweep|model)\.", line)
    )
    module, *before = shlex.split(line.split("python -m ", 1)[1].rstrip(" \\"))
    if before[0] != "$@":  # a recipe, or what an sbatch file takes as its first argument
        arguments = [before[0].replace("$root/", ""), *arguments] if "$root" in before[0] else arguments
    elif script.name == "sweep.sh" and (not arguments or arguments[0].startswith("-")):
        arguments = ["sweeps/alpha_beta.yaml", *arguments]
    return ["-m", module], arguments


def _check_rest(command: Sequence[str], done: _Parsed) -> None:
    """What a command leaves to another reader is read by that."""
    if command[-1] == "sweep.submit":
        from sweep.run_command import parser

        _exits_not(lambda: parser().parse_args([str(done.namespace.spec), *done.rest]))
    elif command[-1] == "sweep.trial":
        from model.errors import ConfigError
        from sweep.arguments import parse_parameters

        try:
            parse_parameters(done.rest)
        except ConfigError as error:
            raise Refused(str(error)) from None
    elif done.rest:
        raise Refused(f"unknown: {done.rest}")


def _exits_not(read: Any) -> None:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            read()
    except SystemExit:
        raise Refused(said.getvalue()) from None


def _run(command: Sequence[str], arguments: Sequence[str]) -> None:
    """Run a command until it has read its command line, which then ends it by _Parsed or SystemExit."""
    with pytest.MonkeyPatch.context() as patch, _reading_only(patch):
        if command[0] == "-m":
            name = command[1]
            package = (ROOT / name.replace(".", "/")).is_dir()
            module = importlib.import_module(f"{name}.__main__" if package else name)
            if hasattr(module, "main"):
                module.main(list(arguments))
            else:  # its main is imported when it is run
                patch.setattr(sys, "argv", [name, *arguments])
                runpy.run_path(str(module.__file__), run_name="__main__")
        else:
            patch.setattr(sys, "argv", [command[0], *arguments])
            patch.syspath_prepend((ROOT / command[0]).parent)
            runpy.run_path(str(ROOT / command[0]), run_name="__main__")


@contextlib.contextmanager
def _reading_only(patch: pytest.MonkeyPatch) -> Iterator[None]:
    read = argparse.ArgumentParser.parse_known_args

    def parse_known_args(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", read)  # parsers of subcommands read as ever
        raise _Parsed(*read(self, args, namespace))

    def parse_args(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", read)
        found, rest = read(self, args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        raise _Parsed(found, rest)

    patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)
    patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    yield
