"""What all tests share: frame stores in a temporary folder, one thread for torch, trials with the priority of other
processes, Hypothesis' examples the same in every run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.needs import lack_of

# read when torch is imported, here and in subprocesses: tests run side by side, and these tensors are tiny
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray's default is nice 15, with which a trial gets next to nothing while anything else on the machine computes
os.environ.setdefault("RAY_worker_niceness", "0")

# a loaded machine is no fault of the code, and a change does not fail for an example that nobody has seen before it;
# new ones: python -m pytest -m hypothesis --hypothesis-profile=random --hypothesis-seed=SEED
settings.register_profile("tests", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None, print_blob=True)
settings.load_profile("tests")


# what takes longest begins first, so that the two workers end together
_ORDER = ("ray", "browser", "process")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ray's tests and pages are processes too; what is exclusive shares a worker; the longest first."""
    for item in items:
        if any(item.get_closest_marker(name) for name in ("ray", "browser")):
            item.add_marker("process")
        if item.get_closest_marker("exclusive") and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group("exclusive"))
    items.sort(
        key=lambda item: next((n for n, name in enumerate(_ORDER) if item.get_closest_marker(name)), len(_ORDER))
    )


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fails where pytest-xdist does not keep groups together, as with a pytest that it does not know."""
    option = session.config.option
    grouped = [item for item in session.items if item.get_closest_marker("xdist_group")]
    if getattr(option, "loadgroup", False) and not all("@" in item.nodeid for item in grouped):
        raise pytest.UsageError("pytest-xdist keeps no group of tests together; install the versions of pyproject.toml")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that needs what this machine lacks is skipped, with what is lacking."""
    if (lacking := next(filter(None, map(lack_of, tools_of(item))), None)) is not None:
        pytest.skip(lacking)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a test is not skipped where all that it needs is there."""
    report = yield
    tools = tools_of(item)
    skipped = report.skipped and not hasattr(report, "wasxfail")
    if skipped and tools and "CI" in os.environ and not any(map(lack_of, tools)):
        report.outcome, report.longrepr = "failed", f"skipped, although {' and '.join(tools)} are here"
    return report


def tools_of(item: pytest.Item) -> list[str]:
    """What its `needs` markers name."""
    return [tool for marker in item.iter_markers("needs") for tool in marker.args]


@pytest.fixture(scope="module", autouse=True)
def no_client_of_wandb_left() -> Iterator[None]:
    """wandb keeps what it read of the environment for the whole process; the next module's tests have another one."""
    yield
    if "wandb" in sys.modules:
        from sweep.wandb_client import reset_client

        reset_client()


@pytest.fixture(scope="session", autouse=True)
def frame_stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where this worker's frame stores are made, once each; the user's cache folder stays as it is."""
    folder = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TACTILE_SWEEP_STORE", str(folder))
        yield folder
