"""The exported encoder: what timm makes of it is what the trained model computes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors import safe_open
from timm import create_model
from torch import Tensor

from model.checkpoint import CheckpointError, save_checkpoint
from model.config import TrainConfig
from model.errors import ConfigError
from model.export import main, plain_vit, read_run
from model.losses import patchify
from model.mae import JointTactileMAE
from model.pretrained import load_pretrained
from model.trainer import Trainer
from model.weight_files import METADATA
from tests.tiny import tiny_config, tiny_content
from tests.trained import MEAN, SENSORS, STD, checkpoint, config_of, trained


def images(config: TrainConfig) -> Tensor:
    """Normalised clips [2, 3, 3, H, W]."""
    return torch.randn(2, 3, 3, *config.data.height_width, generator=torch.Generator().manual_seed(3))


def patches_of(clips: Tensor, config: TrainConfig) -> Tensor:
    return patchify(clips.permute(0, 1, 3, 4, 2), config.encoder.patch)


ENCODERS: dict[str, dict[str, Any]] = {
    "own": {},
    "own, frame embedding": {"static_embed": "frame"},
    "own, sensors": SENSORS,
    "class token": {"name": "test_vit"},
    "class token, sensors": {"name": "test_vit"} | SENSORS,
    "register token that has a position": {"name": "test_vit3"} | SENSORS,
    "register token without position": {"name": "vit_wee_patch16_reg1_gap_256"} | SENSORS,
    "CLIP, patch embedding without bias": {"name": "vit_xsmall_patch16_clip_224"} | SENSORS,
    "neither class nor register token": {"name": "vit_pwee_patch16_reg1_gap_256", "static_embed": "frame"},
}


@pytest.mark.parametrize("frames", ["image", "tube"])
@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=list(ENCODERS))
@torch.no_grad()
def test_timm_loads_the_export_strictly_and_computes_the_same_tokens_and_features(encoder, frames):
    run = trained(config_of(**encoder))
    state, described = plain_vit(run, frames, "digit" if run.config.encoder.sensors else None)
    vit = create_model(**json.loads(json.dumps(described.timm))).eval()
    vit.load_state_dict(state, strict=True)
    clips = images(run.config)[:, : 1 if frames == "image" else 3]
    sensors = torch.tensor([1, 1]) if run.config.encoder.sensors else None
    patches = patches_of(clips, run.config)
    tokens = vit.forward_features(clips.flatten(1, 2))[:, vit.num_prefix_tokens :]
    assert torch.allclose(tokens, run.model.encode_tokens(patches, sensors), atol=1e-5)
    assert torch.allclose(vit(clips.flatten(1, 2)), run.model.encode(patches, sensors), atol=1e-5)


@torch.no_grad()
def test_without_a_sensor_the_tokens_of_the_unknown_one_are_exported():
    run = trained(config_of(**SENSORS))
    state, described = plain_vit(run)
    assert described.sensor == "unknown"
    assert torch.equal(state["reg_token"][0], run.model.encoder.sensor_tokens[-1])


def test_an_unknown_sensor_gets_a_guess_and_a_model_without_sensors_has_none():
    with pytest.raises(ConfigError, match=r"'digitt'.*did you mean 'digit'\? Known: gelsight, digit, unknown"):
        plain_vit(trained(config_of(**SENSORS)), sensor="digitt")
    with pytest.raises(ConfigError, match=r"'digit': this encoder has no sensor tokens"):
        plain_vit(trained(config_of()), sensor="digit")


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_exports_a_run_and_prints_how_to_load_it(tmp_path, capsys):
    trainer = Trainer(tiny_config(epochs=1))
    list(trainer.train())
    save_checkpoint(tmp_path / "run" / "checkpoint" / "last.pt", trainer.state_dict())
    out = tmp_path / "new" / "encoder.safetensors"
    assert main([str(tmp_path / "run"), str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    names: dict[str, Any] = {}
    exec("\n".join(["import timm, safetensors.torch", *lines[1:]]), names)  # as a user pastes it
    frames = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    normalised = (frames - torch.tensor(names["mean"])[:, None, None]) / torch.tensor(names["std"])[:, None, None]
    wanted = trainer.model.eval().encode(patches_of(normalised[:, None], trainer.config))
    assert torch.allclose(names["vit"].eval()(normalised), wanted, atol=1e-5)
    assert names["mean"] == pytest.approx(trainer.clips.mean.tolist())
    assert [path.name for path in out.parent.iterdir()] == ["encoder.safetensors"]


def test_the_file_describes_itself(tmp_path):
    out = tmp_path / "encoder.safetensors"
    run = checkpoint(trained(config_of(**SENSORS)), tmp_path / "last.pt")
    assert main([str(run), str(out), "--frames", "tube", "--sensor", "gelsight"]) == 0
    with safe_open(out, framework="pt") as file:
        described = json.loads(file.metadata()[METADATA])
    assert (described["frames"], described["sensor"]) == ("tube", "gelsight")
    assert (tuple(described["mean"]), tuple(described["std"])) == (MEAN, STD)
    assert described["timm"]["img_size"] == [8, 20]
    assert described["timm"]["in_chans"] == 9


@pytest.mark.parametrize("frames", ["image", "tube"])
def test_an_export_can_be_trained_on_from(frames, tmp_path):
    run = trained(config_of(name="test_vit"))
    out = tmp_path / "encoder.safetensors"
    main([str(checkpoint(run, tmp_path / "last.pt")), str(out), "--frames", frames])
    config = config_of(name="test_vit", pretrained=str(out))
    model = JointTactileMAE(config)
    assert "78 of the encoder's 78 tensors loaded; left out of the file: nothing" in load_pretrained(model, config)
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, run.model.encoder.state_dict()[name])
    if frames == "tube":
        assert torch.equal(model.embed.project.weight, run.model.embed.project.weight)
    assert torch.allclose(model.embed.single_map()[0], run.model.embed.single_map()[0], atol=1e-6)


def test_a_wide_export_with_sensor_tokens_can_be_trained_on_from_at_another_size(tmp_path):
    config = TrainConfig.model_validate(
        tiny_content(data={"image_size": [32, 80]}, mask_ratio=0.5)
        | {"encoder": {"name": "test_vit", "patch_size": 16} | SENSORS}
    )
    out = tmp_path / "encoder.safetensors"
    main([str(checkpoint(trained(config), tmp_path / "last.pt")), str(out)])
    smaller = config_of(name="test_vit", pretrained=str(out))
    report = load_pretrained(JointTactileMAE(smaller), smaller)
    assert "left out of the file: cls_token, reg_token; start at random: encoder.prefix" in report


# --- what is read --------------------------------------------------------------------------------------------------


def test_averaged_weights_are_taken_where_the_run_kept_them(tmp_path):
    run, other = trained(config_of()), JointTactileMAE(config_of(), seed=7)
    path = checkpoint(run, tmp_path / "last.pt", ema=other.state_dict())
    assert torch.equal(read_run(path).model.static_head.weight, other.static_head.weight)
    assert not read_run(path).model.training


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {}}, "lacks the config, the model or the normalisation"),
        ({"config": {}, "normalisation": {}}, "lacks the config, the model or the normalisation"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(content, message, tmp_path, capsys):
    save_checkpoint(tmp_path / "last.pt", content)
    assert main([str(tmp_path / "last.pt"), str(tmp_path / "out.safetensors")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()


def test_weights_that_do_not_fit_their_config_are_refused(tmp_path):
    path = checkpoint(
        trained(config_of()), tmp_path / "last.pt", model=JointTactileMAE(config_of(width=48)).state_dict()
    )
    with pytest.raises(CheckpointError, match=r"last\.pt: its weights do not fit its config \(.*size mismatch"):
        read_run(path)


def test_a_missing_run_and_another_kind_of_file_name_are_refused(tmp_path, capsys):
    assert main([str(tmp_path), str(tmp_path / "out.safetensors")]) == 2
    assert "no such checkpoint" in capsys.readouterr().err
    run = checkpoint(trained(config_of()), tmp_path / "last.pt")
    assert main([str(run), str(tmp_path / "out.pt")]) == 2
    assert "end its name in .safetensors" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_to_is_named(tmp_path, capsys):
    run = checkpoint(trained(config_of()), tmp_path / "last.pt")
    assert main([str(run), str(tmp_path / "last.pt" / "out.safetensors")]) == 2
    assert "out.safetensors: cannot be written" in capsys.readouterr().err
