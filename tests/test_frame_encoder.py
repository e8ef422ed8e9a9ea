"""The encoder on whole frames of any size, from a checkpoint and from an exported file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoint import CheckpointError
from model.errors import ConfigError, DataError
from model.export import Run, main
from model.frame_encoder import load_encoder
from model.losses import patchify
from model.weight_files import METADATA
from tests.trained import MEAN, SENSORS, STD, checkpoint, config_of, trained


@pytest.fixture
def run() -> Run:
    return trained(config_of())


def exported(run: Run, folder: Path, *options: str) -> Path:
    out = folder / "encoder.safetensors"
    assert main([str(checkpoint(run, folder / "last.pt")), str(out), *options]) == 0
    return out


def raw_frames(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def wanted(run: Run, clips: Tensor, sensors: Tensor | None = None) -> Tensor:
    """Features of uint8 clips [B, T, H, W, 3] of the trained size."""
    normalised = (clips / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    return run.model.encode(patchify(normalised, run.config.encoder.patch), sensors)


@pytest.mark.parametrize("frames", [1, 3, 4])
def test_a_checkpoint_encodes_single_frames_and_clips(run, frames, tmp_path):
    encoder = load_encoder(checkpoint(run, tmp_path / "last.pt"))
    clips = raw_frames(2, frames, 8, 20, 3)
    assert torch.allclose(encoder.encode(clips), wanted(run, clips), atol=1e-5)
    if frames == 1:
        assert torch.allclose(encoder.encode(clips[:, 0]), wanted(run, clips), atol=1e-5)


def test_a_path_as_text_and_frames_as_an_array_will_do(run, tmp_path):
    path = checkpoint(run, tmp_path / "last.pt")
    frames = raw_frames(2, 8, 20, 3)
    assert torch.equal(load_encoder(str(path)).encode(frames.numpy()), load_encoder(path).encode(frames))


def test_the_folder_of_a_run_will_do(run, tmp_path):
    checkpoint(run, tmp_path / "checkpoint" / "last.pt")
    frames = raw_frames(2, 1, 8, 20, 3)
    assert torch.allclose(load_encoder(tmp_path).encode(frames), wanted(run, frames), atol=1e-5)


@pytest.mark.parametrize(("options", "frames"), [((), 1), (("--frames", "tube"), 3), (("--frames", "tube"), 4)])
def test_an_exported_file_encodes_what_it_was_made_for_as_the_checkpoint_does(run, options, frames, tmp_path):
    encoder = load_encoder(exported(run, tmp_path, *options))
    clips = raw_frames(2, frames, 8, 20, 3)
    assert torch.allclose(encoder.encode(clips), wanted(run, clips), atol=1e-5)
    assert not encoder.training
    other = raw_frames(2, 3 if frames == 1 else 1, 8, 20, 3)
    with pytest.raises(DataError, match=r"this export takes the other; export with --frames image or tube"):
        encoder.encode(other)


def test_bytes_and_floats_of_the_same_frames_have_the_same_features(run, tmp_path):
    encoder = load_encoder(checkpoint(run, tmp_path / "last.pt"))
    frames = raw_frames(2, 30, 50, 3)  # of another size
    assert torch.allclose(encoder.encode(frames), encoder.encode(frames.permute(0, 3, 1, 2) / 255), atol=1e-5)


def test_frames_of_another_size_are_resized_to_the_trained_one(run, tmp_path):
    encoder = load_encoder(checkpoint(run, tmp_path / "last.pt"))
    frames = raw_frames(2, 8, 20, 3)
    larger = frames.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    assert encoder.size == (8, 20)
    assert torch.nn.functional.cosine_similarity(encoder.encode(larger), encoder.encode(frames)).min() > 0.95


def test_features_come_without_gradients_and_in_evaluation_mode(run, tmp_path):
    encoder = load_encoder(checkpoint(run, tmp_path / "last.pt"))
    assert not encoder.training
    assert not encoder.encode(raw_frames(1, 8, 20, 3)).requires_grad


def test_a_sensor_is_given_by_name(tmp_path):
    run = trained(config_of(**SENSORS))
    encoder = load_encoder(checkpoint(run, tmp_path / "last.pt"))
    clips = raw_frames(2, 1, 8, 20, 3)
    for name, place in (("gelsight", 0), ("digit", 1), ("unknown", 2), (None, 2)):
        assert torch.allclose(encoder.encode(clips, name), wanted(run, clips, torch.tensor([place] * 2)), atol=1e-5)
    with pytest.raises(ConfigError, match=r"'gelsigth'.*did you mean 'gelsight'\? Known: gelsight, digit, unknown"):
        encoder.encode(clips, "gelsigth")
    exported_one = load_encoder(exported(run, tmp_path, "--sensor", "digit"))
    assert torch.allclose(exported_one.encode(clips), encoder.encode(clips, "digit"), atol=1e-5)
    with pytest.raises(ConfigError, match="has chosen its sensor"):
        exported_one.encode(clips, "digit")


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (
            torch.zeros(2, 3, 8, 20, dtype=torch.uint8),
            r"frames \[2, 3, 8, 20\] of torch.uint8; give uint8 \[B, H, W, 3\]",
        ),
        (torch.zeros(2, 8, 20, 3), r"frames \[2, 8, 20, 3\] of torch.float32; give uint8"),
        (torch.zeros(8, 20, 3, dtype=torch.uint8), r"frames \[8, 20, 3\]"),
        (torch.zeros(2, 2, 8, 20, 3, dtype=torch.uint8), "clips of 2 frames; give single frames, or 3 or more"),
        (torch.zeros(2, 0, 8, 20, 3, dtype=torch.uint8), r"frames \[2, 0, 8, 20, 3\]"),
        (torch.zeros(2, 3, 8, 20, dtype=torch.int64), "frames of torch.int64; give uint8, or float in 0-1"),
        (torch.full((2, 3, 8, 20), 200.0), "float frames of 200 to 200; give them in 0-1, not normalised"),
        (torch.full((2, 3, 8, 20), -0.5), "float frames of -0.5 to -0.5"),
        (torch.full((2, 3, 8, 20), torch.nan), "float frames of nan to nan"),
    ],
)
def test_frames_of_another_shape_type_or_range_are_refused_with_what_is_allowed(frames, message, run, tmp_path):
    with pytest.raises(DataError, match=message):
        load_encoder(checkpoint(run, tmp_path / "last.pt")).encode(frames)


# --- files ---------------------------------------------------------------------------------------------------------


def described(run: Run, folder: Path, **timm: Any) -> Path:
    """An exported file with other arguments for timm."""
    path = exported(run, folder)
    with safe_open(path, framework="pt") as file:
        description = json.loads(file.metadata()[METADATA])
    description["timm"] |= timm
    save_file(load_file(path), path, metadata={METADATA: json.dumps(description)})
    return path


@pytest.mark.parametrize("timm", [{"model_name": "hf-hub:someone/else"}, {"checkpoint_path": "x"}, {"depth": 2}])
def test_a_file_that_describes_another_model_than_an_export_does_is_refused(run, timm, tmp_path):
    with pytest.raises(CheckpointError, match=r"encoder\.safetensors: not an encoder that model\.export wrote"):
        load_encoder(described(run, tmp_path, **timm))


def test_a_file_without_description_a_cut_short_one_and_a_missing_one_are_refused(run, tmp_path):
    path = exported(run, tmp_path)
    whole = path.read_bytes()
    save_file({"a": torch.zeros(1)}, path)
    for content in (path.read_bytes(), whole[:1000], b""):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"not an encoder that model\.export wrote"):
            load_encoder(path)
    with pytest.raises(CheckpointError, match="no such file"):
        load_encoder(tmp_path / "none.safetensors")
