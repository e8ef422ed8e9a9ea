"""Weights from files in, numerically: what the encoder makes of an image is what the ViT of the file made of it."""

from __future__ import annotations

import argparse
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm import create_model
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from model.checkpoint import save_checkpoint
from model.config import TrainConfig
from model.errors import ConfigError
from model.losses import patchify
from model.mae import JointTactileMAE
from model.pretrained import load_pretrained
from tests.tiny import tiny_content

ROOT = Path(__file__).resolve().parents[1]


def named_config(name: str, path: Path, **encoder: Any) -> TrainConfig:
    """A 32-pixel config of a timm name with patches of 16 pixels."""
    block = {"name": name, "patch_size": 16, "pretrained": str(path)} | encoder
    return TrainConfig.model_validate(tiny_content(data={"image_size": 32}) | {"encoder": block, "mask_ratio": 0.5})


def random_vit(name: str, image: int | tuple[int, int] = 32, patch: int = 16, **arguments: Any) -> VisionTransformer:
    """A timm model with weights far from their start, so that no part of it is without effect."""
    vit = create_model(name, img_size=image, patch_size=patch, num_classes=0, global_pool="", **arguments).eval()
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=draw)
    return vit


def saved(vit: nn.Module, path: Path) -> Path:
    save_file(vit.state_dict(), path)
    return path


def loaded(config: TrainConfig) -> JointTactileMAE:
    model = JointTactileMAE(config).eval()
    load_pretrained(model, config)
    return model


@torch.no_grad()
def encoded(model: JointTactileMAE, images: Tensor, patch: int = 16, frames: int = 3) -> Tensor:
    """Tokens of images [B, 3, H, W], each repeated to a clip of so many frames."""
    clips = images.permute(0, 2, 3, 1)[:, None].repeat(1, frames, 1, 1, 1)
    return model.encode_tokens(patchify(clips, patch))


@torch.no_grad()
def wanted(vit: VisionTransformer, images: Tensor) -> Tensor:
    return vit.forward_features(images)[:, vit.num_prefix_tokens :]


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


# --- what is computed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("static_embed", ["tube", "frame"])
@pytest.mark.parametrize("name", ["test_vit", "test_vit3", "vit_wee_patch16_reg1_gap_256"])
def test_a_repeated_frame_is_encoded_as_the_image_was(name, static_embed, frames, tmp_path, images):
    vit = random_vit(name)
    model = loaded(named_config(name, saved(vit, tmp_path / "vit.safetensors"), static_embed=static_embed))
    assert torch.allclose(encoded(model, images, frames=frames), wanted(vit, images), atol=1e-4)


def test_each_frame_of_a_tube_gets_a_third_of_the_weights(tmp_path):
    vit = random_vit("test_vit")
    model = loaded(named_config("test_vit", saved(vit, tmp_path / "vit.safetensors"), static_embed="frame"))
    kernel = vit.patch_embed.proj.weight.permute(0, 2, 3, 1).flatten(1)
    for third in model.embed.project.weight.chunk(3, dim=1):
        assert torch.allclose(third, kernel / 3)
    assert torch.equal(model.embed.frame.weight, kernel)
    assert torch.equal(model.embed.frame.bias, vit.patch_embed.proj.bias)


@pytest.mark.parametrize("image", [(48, 48), (16, 64)], ids=["larger", "wide"])
def test_other_image_and_patch_sizes_are_resampled_as_timm_does(image, tmp_path):
    vit = random_vit("test_vit", image=64, patch=16)
    path = saved(vit, tmp_path / "vit.safetensors")
    config = named_config("test_vit", path, patch_size=8)
    config = config.model_copy(update={"data": config.data.model_copy(update={"image_size": image})})
    model = loaded(config)
    grid = [image[0] // 8, image[1] // 8]
    assert torch.allclose(model.encoder.positions[None], resample_abs_pos_embed(vit.pos_embed, grid, [4, 4], 1))
    kernel = resample_patch_embed(vit.patch_embed.proj.weight.detach(), [8, 8])
    weight, _ = model.embed.single_map()
    assert torch.allclose(weight, kernel.permute(0, 2, 3, 1).flatten(1), atol=1e-5)


def test_a_width_and_depth_of_our_own_take_what_fits_and_keep_their_fixed_positions(tmp_path):
    vit = random_vit("test_vit", embed_dim=32, depth=2, num_heads=2, mlp_ratio=4.0)
    config = tiny_config_of(saved(vit, tmp_path / "vit.safetensors"))
    model = JointTactileMAE(config)
    before = model.encoder.positions.clone()
    report = load_pretrained(model, config)
    assert "left out of the file: cls_token, pos_embed; start at random: nothing" in report
    assert torch.equal(model.encoder.positions, before)
    assert torch.equal(model.encoder.blocks[1].mlp.fc2.weight, vit.blocks[1].mlp.fc2.weight)


def tiny_config_of(path: Path, **encoder: Any) -> TrainConfig:
    block = {"width": 32, "depth": 2, "heads": 2, "patch_size": 16, "pretrained": str(path)} | encoder
    content = tiny_content(data={"image_size": 32})
    return TrainConfig.model_validate(content | {"encoder": block, "mask_ratio": 0.5})


# --- files ---------------------------------------------------------------------------------------------------------


def nested(state: dict[str, Tensor], form: str) -> Any:
    """A state dict as training scripts save it."""
    prefixed = {
        "module": "module.",
        "timm encoder": "module.encoder.",
        "openclip": "visual.trunk.",
        "backbone": "backbone.",
    }
    if form in prefixed:
        return {
            "model": {prefixed[form] + name: tensor for name, tensor in state.items()}
            | {"head.weight": state["norm.bias"]}
        }
    if form == "mae":
        return {"model": state | {"mask_token": torch.zeros(1, 1, 8)}, "args": argparse.Namespace(lr=1e-3), "epoch": 3}
    if form == "ema":
        broken = {name: torch.full_like(tensor, math.nan) for name, tensor in state.items()}
        return {"state_dict": broken, "state_dict_ema": state}
    if form == "flat patches":
        return state | {"patch_embed.proj.weight": state["patch_embed.proj.weight"].flatten(1)}
    return {"state_dict": state} if form == "state_dict" else state


@pytest.mark.parametrize(
    "form",
    ["bare", "state_dict", "module", "timm encoder", "openclip", "backbone", "mae", "ema", "flat patches"],
)
def test_checkpoints_are_read_as_training_scripts_nest_and_name_them(form, tmp_path, images):
    vit = random_vit("test_vit")
    torch.save(nested(vit.state_dict(), form), tmp_path / "weights.pth")
    model = loaded(named_config("test_vit", tmp_path / "weights.pth"))
    assert torch.allclose(encoded(model, images), wanted(vit, images), atol=1e-4)


CLIP = "vit_xsmall_patch16_clip_224"


def openai_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = (
        ("patch_embed.proj", "conv1"),
        ("norm_pre", "ln_pre"),
        (r"^norm\.", "ln_post."),
        (r"^blocks\.", "transformer.resblocks."),
        (r"\.norm(\d)", r".ln_\1"),
        (r"attn\.qkv\.", "attn.in_proj_"),
        (r"attn\.proj", "attn.out_proj"),
        (r"mlp\.fc1", "mlp.c_fc"),
        (r"mlp\.fc2", "mlp.c_proj"),
        ("pos_embed", "positional_embedding"),
        ("cls_token", "class_embedding"),
    )
    result = {"text.positional_embedding": torch.zeros(4), "visual.proj": torch.zeros(32, 8)}
    for name, tensor in state.items():
        for old, new in names:
            name = re.sub(old, new, name)
        squeezed = {"class_embedding": tensor.flatten(), "positional_embedding": tensor[0]}.get(name, tensor)
        result[f"visual.{name}"] = squeezed.half()  # as published
    return result


def hugging_face_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = (
        ("patch_embed.proj", "embeddings.patch_embedding"),
        ("norm_pre", "pre_layrnorm"),
        (r"^norm\.", "post_layernorm."),
        (r"^blocks\.", "encoder.layers."),
        (r"\.norm(\d)", r".layer_norm\1"),
        (r"attn\.proj", "self_attn.out_proj"),
        ("pos_embed", "embeddings.position_embedding.weight"),
        ("cls_token", "embeddings.class_embedding"),
    )
    result = {"text_model.embeddings.position_ids": torch.zeros(4), "logit_scale": torch.zeros(())}
    for name, tensor in state.items():
        for old, new in names:
            name = re.sub(old, new, name)
        shaped = {"embeddings.class_embedding": tensor.flatten(), "embeddings.position_embedding.weight": tensor[0]}
        if ".qkv." in name:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                result["vision_model." + name.replace("attn.qkv", f"self_attn.{part}_proj")] = piece.clone()
        else:
            result[f"vision_model.{name}"] = shaped.get(name, tensor).clone()
    return result


@pytest.mark.parametrize(("renamed", "tolerance"), [(openai_names, 0.02), (hugging_face_names, 1e-4)])
def test_clip_is_read_as_openai_and_hugging_face_name_it(renamed, tolerance, tmp_path, images):
    vit = random_vit(CLIP)
    save_file(renamed(vit.state_dict()), tmp_path / "clip.safetensors")
    config = named_config(CLIP, tmp_path / "clip.safetensors")
    model = JointTactileMAE(config).eval()
    report = load_pretrained(model, config)
    assert "start at random: nothing" in report
    assert torch.allclose(encoded(model, images), wanted(vit, images), atol=tolerance)


def test_a_conv3d_of_an_ancestor_is_taken_as_it_is(tmp_path, images):
    vit = random_vit("test_vit")
    state = dict(vit.state_dict())
    kernel = torch.randn(64, 3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    save_file(state | {"patch_embed.proj.weight": kernel}, tmp_path / "tube.safetensors")
    model = loaded(named_config("test_vit", tmp_path / "tube.safetensors", static_embed="frame"))
    clips = torch.randn(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(2))  # [B, C, T, H, W]
    tokens = nn.functional.conv3d(clips, kernel, vit.patch_embed.proj.bias, stride=(3, 16, 16)).flatten(2).mT
    patches = patchify(clips.permute(0, 2, 3, 4, 1), 16)
    assert torch.allclose(model.embed(patches.flatten(2)), tokens, atol=1e-3)
    weight, _ = model.embed.single_map()
    assert torch.allclose(weight, kernel.sum(2).permute(0, 2, 3, 1).flatten(1), atol=1e-5)


@pytest.mark.parametrize("encoder", [{}, {"static_embed": "frame"}, {"sensors": ["gelsight", "digit"]}])
def test_our_own_checkpoint_gives_the_same_encoder(encoder, tmp_path, images):
    config = named_config("test_vit", tmp_path / "last.pt", **encoder)
    trained = JointTactileMAE(config, seed=8).eval()
    untrained = JointTactileMAE(config, seed=9).state_dict()
    content = {"config": config.model_dump(mode="json"), "model": untrained, "ema": trained.state_dict()}
    save_checkpoint(tmp_path / "last.pt", content)
    model = loaded(config)
    ours, theirs = model.state_dict(), trained.state_dict()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours if n.startswith(("encoder.", "embed.")))
    assert not torch.equal(ours["static_head.weight"], theirs["static_head.weight"])  # the decoder starts afresh


def test_sensors_find_their_tokens_by_name_and_a_new_one_starts_as_the_unknown(tmp_path):
    theirs = tiny_config_of(tmp_path / "last.pt", sensors=["gelsight", "digit"])
    trained = JointTactileMAE(theirs, seed=8)
    content = {"config": theirs.model_dump(mode="json"), "model": trained.state_dict(), "ema": None}
    save_checkpoint(tmp_path / "last.pt", content)
    model = loaded(tiny_config_of(tmp_path / "last.pt", sensors=["duragel", "digit"]))
    _, digit, unknown = trained.encoder.sensor_tokens
    for row, source in zip(model.encoder.sensor_tokens, (unknown, digit, unknown), strict=True):
        assert torch.equal(row, source)


def test_the_report_names_what_was_left_out_and_what_starts_at_random(tmp_path):
    vit = random_vit("test_vit")
    state = {name: tensor for name, tensor in vit.state_dict().items() if name != "cls_token"}
    save_file(state | {"head.weight": torch.zeros(4, 64), "head.bias": torch.zeros(4)}, tmp_path / "v.safetensors")
    config = named_config("test_vit", tmp_path / "v.safetensors", sensors=["gelsight"])
    report = load_pretrained(JointTactileMAE(config), config)
    assert report == (
        f"encoder.pretrained = {tmp_path / 'v.safetensors'}: 77 of the encoder's 79 tensors loaded; left out of the "
        "file: head.bias, head.weight; start at random: encoder.prefix, encoder.sensor_tokens"
    )


@pytest.mark.parametrize(("name", "hinted"), [("clip_224", True), ("clip_quickgelu_224", False)])
def test_weights_in_clips_architecture_come_with_a_word_on_quickgelu(name, hinted, tmp_path):
    name = f"vit_base_patch32_{name}"
    path = saved(random_vit(name), tmp_path / "vit.safetensors")
    config = named_config(name, path)
    assert ("use the clip_quickgelu variant" in load_pretrained(JointTactileMAE(config), config)) == hinted


# --- what is refused -----------------------------------------------------------------------------------------------


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    vit = random_vit("vit_tiny_patch16_224")
    with torch.no_grad():
        vit.blocks[3].mlp.fc1.bias[0] = torch.nan
    path = saved(vit, tmp_path / "broken.safetensors")
    with pytest.raises(ConfigError, match=r"blocks\.3\.mlp\.fc1\.bias hold NaN or infinite numbers"):
        loaded(named_config("vit_tiny_patch16_224", path))


def test_an_encoder_of_another_width_or_depth_is_refused_with_both(tmp_path):
    path = saved(random_vit("test_vit"), tmp_path / "vit.safetensors")
    with pytest.raises(ConfigError, match=r"of width 64 and 6 blocks, but the config's has width 32 and 2 blocks; set"):
        loaded(tiny_config_of(path))


def test_our_own_encoder_of_other_heads_is_refused_though_every_tensor_fits(tmp_path):
    theirs = tiny_config_of(tmp_path / "last.pt", heads=4)
    content = {"config": theirs.model_dump(mode="json"), "model": JointTactileMAE(theirs).state_dict(), "ema": None}
    save_checkpoint(tmp_path / "last.pt", content)
    with pytest.raises(ConfigError, match=r"an encoder of 4 heads, but encoder\.heads = 2; use encoder\.heads=4"):
        loaded(tiny_config_of(tmp_path / "last.pt", heads=2))


def test_blocks_of_another_mlp_ratio_are_refused_with_both_shapes(tmp_path):
    path = saved(random_vit("test_vit", embed_dim=32, depth=2, num_heads=2, mlp_ratio=2.0), tmp_path / "v.safetensors")
    with pytest.raises(ConfigError, match=r"fc1\.\w+ is \[64.*\], but the model's \[128.*\] \(and 5 more\); is it of"):
        loaded(tiny_config_of(path))


def test_a_file_that_lacks_part_of_the_blocks_is_refused(tmp_path):
    state = {n: t for n, t in random_vit("test_vit").state_dict().items() if "blocks.3.attn" not in n}
    save_file(state, tmp_path / "vit.safetensors")
    with pytest.raises(ConfigError, match=r"lacks encoder\.blocks\.3\.attn\.qkv\.weight"):
        loaded(named_config("test_vit", tmp_path / "vit.safetensors"))


@pytest.mark.parametrize(
    ("arguments", "part"), [({"init_values": 0.1}, r"blocks\.0\.ls1\.gamma"), ({"pre_norm": True}, r"norm_pre\.bias")]
)
def test_a_file_whose_encoder_has_a_part_that_ours_lacks_is_refused(arguments, part, tmp_path):
    path = saved(random_vit("test_vit", **arguments), tmp_path / "vit.safetensors")
    with pytest.raises(ConfigError, match=rf"its encoder also has {part}.*; set encoder\.name"):
        loaded(named_config("test_vit", path))


@pytest.mark.parametrize("channels", [(1,), (3, 2)])
def test_a_patch_embedding_of_grey_images_or_of_other_tubes_is_refused(channels, tmp_path):
    state = random_vit("test_vit").state_dict() | {"patch_embed.proj.weight": torch.zeros(64, *channels, 16, 16)}
    save_file(state, tmp_path / "vit.safetensors")
    with pytest.raises(ConfigError, match=r"patch embedding is \[64, .*; can be used: \[D, 3, p, p\]"):
        loaded(named_config("test_vit", tmp_path / "vit.safetensors"))


def test_positions_of_no_square_grid_are_refused(tmp_path):
    path = saved(random_vit("test_vit", image=(32, 80)), tmp_path / "vit.safetensors")
    with pytest.raises(ConfigError, match="position embedding has 11 rows, which fit no square grid"):
        loaded(named_config("test_vit", path))


def test_positions_of_our_own_wide_grid_are_taken_as_they_are(tmp_path):
    vit = random_vit("test_vit", image=(32, 80))
    config = named_config("test_vit", saved(vit, tmp_path / "vit.safetensors"))
    config = config.model_copy(update={"data": config.data.model_copy(update={"image_size": (32, 80)})})
    assert torch.equal(loaded(config).encoder.positions, vit.pos_embed[0])


def test_a_file_without_a_vit_says_what_it_holds(tmp_path):
    save_file({"layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "resnet.safetensors")
    with pytest.raises(ConfigError, match=r"no ViT found in it \(it holds layer1\.0\.conv1\.weight, \.\.\.\)"):
        loaded(named_config("test_vit", tmp_path / "resnet.safetensors"))


def test_a_file_of_two_vits_is_refused_with_their_places(tmp_path):
    state = random_vit("test_vit").state_dict()
    both = {f"{who}.{name}": tensor.clone() for name, tensor in state.items() for who in ("student", "teacher")}
    save_file(both, tmp_path / "both.safetensors")
    with pytest.raises(ConfigError, match=r"holds 2 ViTs, at 'student\.', 'teacher\.'"):
        loaded(named_config("test_vit", tmp_path / "both.safetensors"))


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile_was_here",)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_missing_and_cut_short_files_are_refused_by_name(suffix, tmp_path):
    path = tmp_path / f"vit.{suffix}"
    config = named_config("test_vit", path)
    with pytest.raises(ConfigError, match=rf"encoder\.pretrained = .*vit\.{suffix}: no such file"):
        loaded(config)
    state = random_vit("test_vit").state_dict()
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    for length in (path.stat().st_size // 2, 3, 0):
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(ConfigError, match=r"vit\.\w+: not a (whole safetensors file|checkpoint of plain tensors)"):
            loaded(config)


def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Hostile()}, tmp_path / "vit.pt")
    with pytest.raises(ConfigError, match=r"a pickle of other objects, which could run code and is not opened"):
        loaded(named_config("test_vit", tmp_path / "vit.pt"))
    assert [path.name for path in tmp_path.iterdir()] == ["vit.pt"]


def test_a_file_of_something_else_is_refused_by_its_type(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "vit.pt")
    with pytest.raises(ConfigError, match="holds a list, not a state dict"):
        loaded(named_config("test_vit", tmp_path / "vit.pt"))


# --- timm's hub ----------------------------------------------------------------------------------------------------

FROM_HUB = """
import torch
from model.config import TrainConfig
from model.errors import ConfigError
from model.mae import JointTactileMAE
from model.pretrained import load_pretrained
from tests.tiny import tiny_content

for name in ("test_vit.r160_in1k", "test_vit2.r160_in1k"):
    content = tiny_content(data={"image_size": 32})
    content["encoder"] = {"name": name, "patch_size": 16, "pretrained": True}
    config = TrainConfig.model_validate(content | {"mask_ratio": 0.5})
    model = JointTactileMAE(config)
    try:
        print(load_pretrained(model, config))
        print(model.encoder.norm.bias[:2].tolist())
    except ConfigError as error:
        print(error)
"""


@pytest.mark.process  # the hub's client reads its environment when it is imported
def test_true_takes_timms_weights_from_its_cache_and_without_them_says_how_to_give_a_file(tmp_path):
    vit = create_model("test_vit")
    nn.init.constant_(vit.norm.bias, 0.25)
    cached = tmp_path / "models--timm--test_vit.r160_in1k"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots" / "abc").mkdir(parents=True)
    saved(vit, cached / "snapshots" / "abc" / "model.safetensors")
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", FROM_HUB], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    report, bias, refused = done.stdout.splitlines()
    assert "encoder.pretrained = true: 78 of the encoder's 78 tensors loaded" in report
    assert bias == "[0.25, 0.25]"
    assert "timm cannot get the weights of encoder.name = 'test_vit2.r160_in1k'" in refused
    assert "encoder.pretrained=FILE.safetensors" in refused
