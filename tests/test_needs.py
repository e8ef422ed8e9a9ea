"""Tests that need a tool are skipped with its name, and in CI only where it is lacking."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SUITE = """
import pytest

@pytest.mark.needs("chromium")
def test_of_pages():
    pytest.skip("for another reason")
"""


def outcome(folder: Path, path: str, **env: str) -> str:
    """What pytest says of a suite whose only test needs Chromium and is skipped, where only these programs are."""
    (folder / "test_pages.py").write_text(SUITE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider", "-rs"]
    command += ["-c", os.devnull, "--rootdir", str(folder), str(folder)]
    clean = {name: value for name, value in os.environ.items() if name != "CI"}
    done = subprocess.run(
        command, env=clean | {"PATH": path, "PYTHONPATH": str(ROOT)} | env, capture_output=True, text=True, check=False
    )
    return done.stdout


@pytest.mark.process
def test_a_missing_browser_skips_with_the_packages_name_in_ci_too(tmp_path: Path) -> None:
    assert "Debian's package chromium" in (said := outcome(tmp_path, "/nowhere", CI="true")), said
    assert "1 skipped" in said


@pytest.mark.process
def test_ci_fails_where_a_test_is_skipped_although_its_browser_is_here(tmp_path: Path) -> None:
    browser = tmp_path / "bin/chromium"
    browser.parent.mkdir()
    browser.write_text("#!/bin/sh\n")
    browser.chmod(0o755)
    assert "1 skipped" in outcome(tmp_path, str(browser.parent))
    assert "skipped, although chromium" in (said := outcome(tmp_path, str(browser.parent), CI="true")), said
    assert "1 failed" in said
