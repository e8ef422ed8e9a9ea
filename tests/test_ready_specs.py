"""The specs in sweeps/ for GPUs: a dry run with stand-in data says what holds, and what it cannot tell."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from sweep.memory import most_demanding
from sweep.run import main
from sweep.spec import SweepSpec, load_spec

SPECS = Path(__file__).parents[1] / "sweeps"
GPU, CLUSTER = SPECS / "alpha_beta_gpu.yaml", SPECS / "alpha_beta_cluster.yaml"


def images(folder: Path, names: list[str], seed: int) -> None:
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(seed)
    for name in names:
        Image.fromarray(pixels.integers(0, 255, (24, 32, 3), np.uint8)).save(folder / name)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames and the three data sets, in their layouts, a few tiny images each."""
    root = tmp_path_factory.mktemp("data")
    for number in range(5):
        images(root / f"frames/press_{number}", [f"{index:04d}.png" for index in range(8)], number)
        images(root / f"go/dataset/2022051{number}_120000/gelsight_frame", [f"{i:010d}.jpg" for i in range(8)], number)
        images(root / f"ycb/real/00{number}_thing/dataset_0/frames", [f"frame_{i:07d}.jpg" for i in range(9)], number)
        for sensor in ("gelsight", "digit", "duragel"):
            images(root / f"quad/data_indoor/item_{number}/{sensor}", [f"{index}.png" for index in range(6)], number)
    rows = [f"item_{number},0,5,0,5,0,5\n" for number in range(5)]
    (root / "quad/contact_indoor.csv").write_text("".join(rows))
    return root


def options(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def parts(data: Path) -> str:
    """The mixture of the spec, with the roots that a user would write."""
    content = yaml.safe_load(CLUSTER.read_text(encoding="utf-8"))["trainer"]["data"]["parts"]
    roots = {"tacquad": "quad", "touch_and_go": "go", "ycb_slide": "ycb"}
    return yaml.safe_dump([part | {"root": str(data / roots[part["source"]])} for part in content], width=10_000)


def test_the_gpu_spec_passes_a_dry_run_and_says_what_only_a_gpu_can_tell(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edits = options(f"trainer.data.root={data / 'frames'}", "project=touch", "trainer.data.clips_per_epoch=null")
    smaller = options("trainer.batch_size=8", "trainer.accum_iter=1")  # the stand-in has 20 training clips
    assert main([str(GPU), *edits, *smaller, "--results", str(tmp_path / "results"), "--dry-run", "--no-measure"]) == 0
    printed = capsys.readouterr().out
    assert "224 x 224" in printed
    assert "nothing was started" in printed
    assert "not checked: that a node has 4 CPU and 0.5 GPU for a trial" in printed
    assert "memory together" in printed
    assert not (tmp_path / "results").exists()


def test_the_cluster_spec_passes_a_dry_run_on_a_machine_without_gpu_and_network(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edits = options(f"trainer.data.parts={parts(data)}", "project=touch")
    smaller = options("trainer.data.clips_per_epoch=512")
    arguments = [str(CLUSTER), *edits, *smaller, "--results", str(tmp_path / "results"), "--dry-run", "--no-measure"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "8 at a time" in printed
    assert "2 updates (64 x 4 clips)" in printed
    assert "that timm can fetch the weights of vit_large_patch14_clip_quickgelu_224.openai on each node" in printed
    weights = tmp_path / "clip.safetensors"
    assert main([*arguments, *options(f"trainer.encoder.pretrained={weights}")]) == 2
    assert f"encoder.pretrained = {weights}: no such file" in capsys.readouterr().err
    weights.write_bytes(b"a stand-in: a dry run looks whether it is there")
    assert main([*arguments, *options(f"trainer.encoder.pretrained={weights}")]) == 0
    assert "fetch the weights" not in capsys.readouterr().out


@pytest.mark.parametrize("spec", [GPU, CLUSTER], ids=lambda path: path.stem)
def test_a_spec_that_was_not_edited_names_the_folder_that_is_missing(
    spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(spec), "--results", str(tmp_path / "results"), "--dry-run", "--no-measure"]) == 2
    error = capsys.readouterr().err
    assert "/data/tactile/" in error
    assert "does not exist" in error


@pytest.mark.parametrize("spec", [GPU, CLUSTER], ids=lambda path: path.stem)
def test_what_is_to_be_edited_is_marked_and_every_line_of_a_choice_says_why(spec: Path) -> None:
    lines = spec.read_text(encoding="utf-8").splitlines()
    marked = {match.group(1): line for line in lines if (match := re.search(r"# EDIT (\d)", line))}
    assert list(marked) == ["1", "2", "3"]
    assert [line.split(":")[0].strip() for line in marked.values()][:2] == ["project", "results"]
    for name in ("betas", "weight_decay", "batch_size", "accum_iter", "precision", "epochs", "gpu", "image_size"):
        line = next(line for line in lines if line.strip().startswith(f"{name}:"))
        assert "#" in line, line


def spec_of(path: Path) -> SweepSpec:
    return load_spec(path)


def test_an_update_is_of_256_clips_so_that_base_lr_is_the_peak_itself() -> None:
    for path in (GPU, CLUSTER):
        assert spec_of(path).trainer.peak_lr == spec_of(path).trainer.base_lr


def test_the_most_demanding_config_of_the_specs_masks_least() -> None:
    assert most_demanding(spec_of(GPU)).mask_ratio == 0.5
    assert most_demanding(spec_of(CLUSTER)).mask_ratio == 0.5
