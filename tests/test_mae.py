"""The fast model against a naive one that reads as the definitions do, and what it may and may not see."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from model.config import TrainConfig
from model.errors import ConfigError
from model.losses import patchify, random_order, unpatchify
from model.mae import JointTactileMAE, sincos_positions
from tests.tiny import tiny_config, tiny_content

TIMM_NAMES = (
    "test_vit",  # class token; learned positions that count it
    "test_vit3",  # register token, layer scale; positions that count it
    "vit_wee_patch16_reg1_gap_256",  # register token; positions without it
)


def named_config(name: str) -> TrainConfig:
    content = tiny_content(data={"image_size": 32})
    return TrainConfig.model_validate(content | {"encoder": {"name": name, "patch_size": 16}})


TINY_CONFIGS = {
    "square": tiny_config(),
    "wide image": tiny_config(data={"image_size": [8, 20]}, mask_ratio=0.6),
    "one visible patch": tiny_config(mask_ratio=0.94),
    "one masked patch": tiny_config(mask_ratio=0.06),
    "deeper": tiny_config(encoder={"depth": 3, "heads": 4, "mlp_ratio": 2.0}, decoder={"width": 24, "depth": 2}),
}


def batch(config: TrainConfig, size: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random clips [B, 4, H, W, 3] and two orders [B, N]."""
    draw = torch.Generator().manual_seed(1)
    clips = torch.randn(size, 4, *config.data.height_width, 3, generator=draw)
    return clips, *(random_order(size, config.num_patches, draw) for _ in range(2))


def visible(config: TrainConfig) -> int:
    return config.num_patches - config.num_masked


# --- a naive model with the same weights ---------------------------------------------------------------------------


def naive_losses(model: JointTactileMAE, config: TrainConfig, clips, static_order, dynamic_order) -> list[float]:
    """Static, recon and pred loss: one pass per branch, explicit masks, nothing shuffled, loops over patches."""
    static = naive_reconstruction(model, config, clips[:, [0, 0, 0]], naive_mask(config, static_order), "static")
    mask = naive_mask(config, dynamic_order)
    dynamic = naive_reconstruction(model, config, clips[:, :3], mask, "dynamic")
    return [
        naive_error(config, static[:, :1], clips[:, :1], naive_mask(config, static_order)),
        naive_error(config, dynamic[:, :3], clips[:, :3], mask),
        naive_error(config, dynamic[:, 3:], clips[:, 3:], torch.ones_like(mask)),
    ]


def naive_mask(config: TrainConfig, order: torch.Tensor) -> torch.Tensor:
    """order [B, N] -> [B, N], True where a patch is masked."""
    mask = torch.ones_like(order, dtype=torch.bool)
    for clip in range(len(order)):
        for patch in order[clip, : visible(config)]:
            mask[clip, patch] = False
    return mask


def naive_reconstruction(model, config: TrainConfig, frames, mask, head: str) -> torch.Tensor:
    """3 frames [B, 3, H, W, 3] and a mask [B, N] -> what the head makes of them [B, T, H, W, 3]."""
    patch, width = config.encoder.patch, model.encoder.width
    kernel = model.embed.project.weight.reshape(width, 3, patch, patch, 3).permute(0, 4, 1, 2, 3)
    tubes = F.conv3d(frames.permute(0, 4, 1, 2, 3), kernel, model.embed.project.bias, stride=(3, patch, patch))
    tokens = tubes.flatten(2).transpose(1, 2)  # [B, N, D]
    encoder, prefix = model.encoder, model.encoder.prefix
    positions = encoder.positions
    if prefix is not None and len(positions) > config.num_patches:
        prefix, positions = prefix + positions[: prefix.shape[1]], positions[prefix.shape[1] :]
    tokens = tokens + positions
    clips = []
    for clip in range(len(frames)):
        kept = tokens[clip][~mask[clip]][None]
        kept = kept if prefix is None else torch.cat((prefix, kept), dim=1)
        encoded = encoder.norm(encoder.blocks(encoder.norm_pre(kept)))[0]
        encoded = model.to_decoder(encoded if prefix is None else encoded[prefix.shape[1] :])
        full = model.mask_token[0].repeat(config.num_patches, 1)
        full[~mask[clip]] = encoded
        decoded = model.decoder_norm(model.decoder_blocks((full + model.decoder_positions)[None]))
        clips.append(model.static_head(decoded) if head == "static" else model.dynamic_head(decoded))
    pixels = torch.cat(clips).unflatten(-1, (-1, 3 * patch * patch))
    return unpatchify(pixels, patch, config.grid)


def naive_error(config: TrainConfig, made, wanted, mask) -> float:
    """Mean squared error of frames [B, T, H, W, 3] over the patches where mask [B, N] is True."""
    patch, (rows, columns) = config.encoder.patch, config.grid
    errors = []
    for clip in range(len(made)):
        for row in range(rows):
            for column in range(columns):
                if mask[clip, row * columns + column]:
                    ys, xs = (slice(i * patch, (i + 1) * patch) for i in (row, column))
                    for frame in range(made.shape[1]):
                        errors.append(((made[clip, frame, ys, xs] - wanted[clip, frame, ys, xs]) ** 2).mean().item())
    return math.fsum(errors) / len(errors)


def fast_losses(model: JointTactileMAE, config: TrainConfig, clips, static_order, dynamic_order) -> list[float]:
    losses = model(patchify(clips, config.encoder.patch), static_order, dynamic_order, visible(config))
    return torch.stack(losses).tolist()


@pytest.mark.parametrize("name", TINY_CONFIGS)
@torch.no_grad()
def test_the_three_losses_are_those_of_a_naive_model_with_the_same_weights(name):
    config = TINY_CONFIGS[name]
    model = JointTactileMAE(config, seed=3).eval()
    assert fast_losses(model, config, *batch(config)) == pytest.approx(
        naive_losses(model, config, *batch(config)), abs=1e-5
    )


@pytest.mark.parametrize("name", TIMM_NAMES)
@torch.no_grad()
def test_the_losses_of_a_timm_model_with_extra_tokens_are_those_of_the_naive_model(name):
    config = named_config(name)
    model = JointTactileMAE(config, seed=3).eval()
    assert model.encoder.prefix is not None
    assert fast_losses(model, config, *batch(config)) == pytest.approx(
        naive_losses(model, config, *batch(config)), abs=1e-5
    )


def test_gradients_are_those_of_the_naive_definition():
    config = tiny_config()
    model = JointTactileMAE(config, seed=3)
    clips, static_order, dynamic_order = batch(config)
    fast = model(patchify(clips, 4), static_order, dynamic_order, visible(config))
    fast.static.backward()
    got = model.embed.project.weight.grad.clone()
    model.zero_grad()
    mask = naive_mask(config, static_order)
    made = naive_reconstruction(model, config, clips[:, [0, 0, 0]], mask, "static")[:, :1]
    ((patchify(made, 4) - patchify(clips[:, :1], 4))[:, :, 0][mask] ** 2).mean().backward()
    assert torch.allclose(got, model.embed.project.weight.grad, atol=1e-6)


# --- what it sees --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_neither_masked_patches_nor_frame_4_are_seen():
    config = tiny_config()
    model = JointTactileMAE(config).eval()
    clips, static_order, dynamic_order = batch(config)
    shown = visible(config)
    patches = patchify(clips, 4)
    changed = patches.clone()
    for clip in range(len(patches)):
        hidden = set(range(16)) - set(dynamic_order[clip, :shown].tolist()) - set(static_order[clip, :shown].tolist())
        changed[clip, list(hidden), :3] += 10.0  # masked in both branches
    changed[:, :, 3] += 10.0
    before = model.predict(patches, static_order, dynamic_order, shown)[:3]
    after = model.predict(changed, static_order, dynamic_order, shown)[:3]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("frame", [0, 1, 2])
@torch.no_grad()
def test_visible_patches_are_seen_in_each_of_the_3_frames_but_by_the_static_branch_only_in_the_first(frame):
    config = tiny_config()
    model = JointTactileMAE(config).eval()
    clips, static_order, dynamic_order = batch(config)
    patches = patchify(clips, 4)
    changed = patches.clone()
    changed[:, :, frame] += 1.0
    before = model.predict(patches, static_order, dynamic_order, 4)
    after = model.predict(changed, static_order, dynamic_order, 4)
    static_changed, recon_changed, pred_changed = (
        not torch.equal(a, b) for a, b in zip(before[:3], after[:3], strict=True)
    )
    assert (static_changed, recon_changed, pred_changed) == (frame == 0, True, True)


@torch.no_grad()
def test_predictions_have_the_promised_shapes():
    config = tiny_config()
    clips, static_order, dynamic_order = batch(config)
    shapes = [
        tuple(p.shape) for p in JointTactileMAE(config).predict(patchify(clips, 4), static_order, dynamic_order, 4)
    ]
    assert shapes == [(3, 12, 48), (3, 12, 144), (3, 16, 48), (3, 16, 48), (3, 16, 192)]


# --- weights -------------------------------------------------------------------------------------------------------


def test_weights_depend_on_the_seed_alone():
    config = tiny_config()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = JointTactileMAE(config, seed=0).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = (JointTactileMAE(config, seed=seed).state_dict() for seed in (0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embed.project.weight"], other["embed.project.weight"])


def test_width_depth_and_heads_are_those_of_the_config():
    model = JointTactileMAE(
        tiny_config(encoder={"width": 48, "depth": 2, "heads": 3}, decoder={"width": 24, "depth": 3})
    )
    assert model.encoder.width == 48
    assert [block.attn.num_heads for block in model.encoder.blocks] == [3, 3]
    assert [block.attn.num_heads for block in model.decoder_blocks] == [2, 2, 2]
    assert model.static_head.weight.shape == (48, 24)
    assert model.dynamic_head.weight.shape == (192, 24)


def test_every_weight_gets_a_gradient_from_the_joint_loss():
    config = named_config("test_vit")
    model = JointTactileMAE(config)
    clips, static_order, dynamic_order = batch(config)
    losses = model(patchify(clips, 16), static_order, dynamic_order, visible(config))
    (losses.static + losses.dynamic).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_positions_are_sines_and_cosines_of_row_and_column():
    positions = sincos_positions((3, 5), 8)
    for row in range(3):
        for column in range(5):
            expected = []
            for place in (row, column):
                angles = [place / 10000 ** (i / 2) for i in range(2)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            assert positions[row * 5 + column].tolist() == pytest.approx(expected, abs=1e-6)


def test_the_encoder_gets_fixed_positions_that_are_not_weights():
    model = JointTactileMAE(tiny_config())
    assert not {"encoder.positions", "decoder_positions"} & dict(model.named_parameters()).keys()


# --- timm names ----------------------------------------------------------------------------------------------------


def test_an_unknown_timm_name_gets_a_guess():
    with pytest.raises(
        ConfigError, match=r"'vit_tinny_patch16_224' is no timm model; did you mean 'vit_tiny_patch16_224'"
    ):
        JointTactileMAE(named_config("vit_tinny_patch16_224"))


def test_an_unknown_tag_of_a_timm_name_is_named():
    with pytest.raises(ConfigError, match=r"'test_vit\.none': timm cannot build it: .*none"):
        JointTactileMAE(named_config("test_vit.none"))


def test_a_timm_model_that_is_no_plain_vit_is_refused_by_its_class():
    with pytest.raises(
        ConfigError, match="is a VisionTransformerRelPos, not a plain VisionTransformer; use for example"
    ):
        JointTactileMAE(named_config("vit_relpos_small_patch16_224"))


def test_a_timm_model_that_takes_no_image_size_is_refused_with_timms_words():
    with pytest.raises(ConfigError, match=r"'fastvit_t8': timm cannot build it: .*img_size"):
        JointTactileMAE(named_config("fastvit_t8"))
