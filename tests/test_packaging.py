"""The wheel holds what is imported, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.process
def test_the_wheel_holds_sweep_and_model_only(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "*.egg-info", "results", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, source, ignore=ignored)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist")]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=600)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"model", "sweep"}
    assert "sweep/report/page.html.jinja" in names
    assert "model/data/store.py" in names
    assert "model/recipes/joint_test.yaml" in names
    assert not [name for name in names if name.endswith(".png")]
    assert {name.rpartition("/")[0] for name in names if name.endswith(".yaml")} == {"model/recipes"}
