"""The fast model against a naive one that reads as the definitions do, and what it may and may not see."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from model.config import TrainConfig
from model.encoder import check_encoder, sincos_positions, unknown_chance
from model.errors import ConfigError
from model.losses import patchify, targets, unpatchify
from model.mae import JointTactileMAE
from model.masks import random_order
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
    "normalised targets": tiny_config(norm_pix_loss=True),
    "frame embedding": tiny_config(encoder={"static_embed": "frame"}),
    "sensors": tiny_config(encoder={"sensors": ["gelsight", "digit"], "sensor_tokens": 3}),
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
    mask = naive_mask(config, dynamic_order)
    dynamic = naive_reconstruction(model, config, clips[:, :3], mask, "dynamic")
    static = naive_reconstruction(model, config, clips[:, [0, 0, 0]], naive_mask(config, static_order), "static")
    clips = naive_targets(config, clips) if config.norm_pix_loss else clips
    return [
        naive_error(config, static[:, :1], clips[:, :1], naive_mask(config, static_order)),
        naive_error(config, dynamic[:, :3], clips[:, :3], mask),
        naive_error(config, dynamic[:, 3:], clips[:, 3:], torch.ones_like(mask)),
    ]


def naive_targets(config: TrainConfig, clips: torch.Tensor) -> torch.Tensor:
    """Clips [B, 4, H, W, 3] with every patch of every frame normalised by itself."""
    patches = patchify(clips, config.encoder.patch)
    result = torch.stack([(p - p.mean()) / (p.var() + 1e-6).sqrt() for p in patches.flatten(0, 2)])
    return unpatchify(result.reshape(patches.shape), config.encoder.patch, config.grid)


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
    if head == "static" and model.embed.frame is not None:
        kernel = model.embed.frame.weight.reshape(width, patch, patch, 3).permute(0, 3, 1, 2)
        tubes = F.conv2d(frames[:, 0].permute(0, 3, 1, 2), kernel, model.embed.frame.bias, stride=patch)
    tokens = tubes.flatten(2).transpose(1, 2)  # [B, N, D]
    encoder, prefix = model.encoder, model.encoder.prefix
    if encoder.sensor_tokens is not None:
        assert prefix is None
        prefix = encoder.sensor_tokens[-1:]
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


# --- modes ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_branch_without_an_order_has_no_losses_and_leaves_the_other_as_it_is():
    config = tiny_config()
    model = JointTactileMAE(config).eval()
    clips, static_order, dynamic_order = batch(config)
    patches, shown = patchify(clips, 4), visible(config)
    joint = model(patches, static_order, dynamic_order, shown)
    static, dynamic = model(patches, static_order, None, shown), model(patches, None, dynamic_order, shown)
    assert (static.recon, static.pred, static.dynamic, dynamic.static) == (None, None, None, None)
    alone = torch.stack((static.static, dynamic.recon, dynamic.pred))
    assert torch.allclose(alone, torch.stack(joint), atol=1e-6)


@pytest.mark.parametrize(("orders", "tokens"), [((0, None), 3), ((None, 1), 3), ((0, 1), 6)])
def test_each_branch_costs_its_own_tokens_in_one_call_of_the_encoder(orders, tokens):
    config = tiny_config()
    model = JointTactileMAE(config)
    clips, *drawn = batch(config)
    calls = []
    model.encoder.register_forward_hook(lambda module, inputs, output: calls.append(output.shape))
    model(patchify(clips, 4), *(None if i is None else drawn[i] for i in orders), visible(config))
    assert calls == [(tokens, 4, 32)]


def test_a_single_frame_goes_through_the_tube_as_if_repeated_unless_it_has_an_embedding_of_its_own():
    clips, *_ = batch(tiny_config())
    patches = patchify(clips, 4)[:, :, 0]
    tube = JointTactileMAE(tiny_config()).embed
    assert torch.allclose(tube.single(patches), tube(patches.repeat(1, 1, 3)), atol=1e-5)
    own = JointTactileMAE(tiny_config(encoder={"static_embed": "frame"})).embed
    assert torch.equal(own.single(patches), own.frame(patches))


# --- sensors -------------------------------------------------------------------------------------------------------


SENSORS = {"sensors": ["gelsight", "digit"], "sensor_tokens": 2}


def test_clips_of_different_sensors_get_different_tokens_and_unknown_is_the_last_one():
    config = tiny_config(encoder=SENSORS)
    model = JointTactileMAE(config).eval()
    clips, *_ = batch(config)
    patches = patchify(clips[:1].repeat(4, 1, 1, 1, 1), 4)
    first, second, unknown, again = model.encode(patches, torch.tensor([0, 1, 2, 0]))
    assert torch.allclose(first, again)
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, unknown)
    assert torch.allclose(model.encode(patches)[0], unknown)
    assert model.encoder.sensor_tokens.shape == (3, 2, 32)


def test_the_static_and_the_dynamic_half_of_a_clip_get_the_tokens_of_the_same_sensor():
    config = tiny_config(encoder=SENSORS)
    model = JointTactileMAE(config).eval()
    clips, *orders = batch(config)
    patches, sensors = patchify(clips, 4), torch.tensor([1, 2, 0])
    together = model(patches, *orders, 4, sensors)
    alone = [model(patches[i : i + 1], *(o[i : i + 1] for o in orders), 4, sensors[i : i + 1]) for i in range(3)]
    for loss, losses in zip(together, zip(*alone, strict=True), strict=True):
        assert loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_only_the_tokens_of_the_sensors_in_a_batch_are_trained():
    config = tiny_config(encoder=SENSORS)
    model = JointTactileMAE(config)
    clips, *orders = batch(config)
    model(patchify(clips, 4), *orders, 4, torch.tensor([0, 0, 2])).dynamic.backward()
    touched = model.encoder.sensor_tokens.grad.abs().sum(dim=(1, 2)) > 0
    assert touched.tolist() == [True, False, True]


def test_the_chance_of_an_unknown_sensor_rises_linearly():
    assert [unknown_chance((0.0, 0.75), p) for p in (0.0, 0.5, 1.0)] == [0.0, 0.375, 0.75]
    assert unknown_chance((0.5, 0.25), 0.5) == 0.375


# --- whole frames --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [tiny_config(), named_config("test_vit")], ids=["own", "timm"])
@torch.no_grad()
def test_whole_frames_are_encoded_as_with_every_patch_visible(config):
    model = JointTactileMAE(config).eval()
    clips, order, _ = batch(config)
    patches = patchify(clips, config.encoder.patch)
    tokens = model.encode_tokens(patches)
    assert tokens.shape == (3, config.num_patches, model.encoder.width)
    shuffled = patches[:, :, :3].flatten(2).gather(1, order[..., None].expand(-1, -1, 3 * patches.shape[-1]))
    encoded = model.encoder(model.embed(shuffled), order)
    assert torch.allclose(encoded, tokens.gather(1, order[..., None].expand_as(tokens)), atol=1e-5)
    assert torch.equal(model.encode_tokens(patches[:, :, :3]), tokens)
    assert torch.allclose(model.encode(patches), tokens.mean(dim=1))


@torch.no_grad()
def test_one_frame_is_encoded_as_the_static_branch_embeds_it():
    config = tiny_config()
    model = JointTactileMAE(config).eval()
    patches = patchify(batch(config)[0], 4)
    repeated = patches[:, :, :1].repeat(1, 1, 3, 1)
    assert torch.allclose(model.encode_tokens(patches[:, :, :1]), model.encode_tokens(repeated), atol=1e-5)


def test_two_frames_are_neither_an_image_nor_a_tube():
    with pytest.raises(ValueError, match="2 frames a clip; give 1, or 3 or more"):
        JointTactileMAE(tiny_config()).encode(torch.zeros(1, 16, 2, 48))


# --- ways to compute it --------------------------------------------------------------------------------------------


def test_recomputed_activations_give_the_same_losses_and_gradients_from_less_memory():
    results = []
    for recompute in (False, True):
        config = tiny_config(encoder={"depth": 4, "grad_checkpointing": recompute})
        model = JointTactileMAE(config)
        clips, *orders = batch(config)
        kept = []

        def pack(tensor, kept=kept):
            kept.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            losses = model(patchify(clips, 4), *orders, 4)
        (losses.static + losses.dynamic).backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        results.append((torch.stack(losses), gradients, sum(kept)))
    (plain, plain_gradients, plain_bytes), (again, gradients, fewer_bytes) = results
    assert torch.equal(plain, again)
    assert all(torch.equal(plain_gradients[name], gradients[name]) for name in gradients)
    assert fewer_bytes < 0.8 * plain_bytes


@pytest.mark.parametrize("orders", [(True, True), (True, False), (False, True)])
def test_the_forward_pass_is_one_graph_to_the_compiler(orders):
    config = tiny_config(encoder=SENSORS, norm_pix_loss=True)
    model = JointTactileMAE(config)
    clips, *drawn = batch(config)
    chosen = (order if wanted else None for order, wanted in zip(drawn, orders, strict=True))
    arguments = (patchify(clips, 4), *chosen, 4, torch.tensor([0, 1, 2]))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for got, wanted in zip(compiled(*arguments), model(*arguments), strict=True):
        assert (got is None) == (wanted is None)
        assert got is None or torch.allclose(got, wanted)


@pytest.mark.parametrize("norm_pix", [False, True])
def test_losses_under_autocast_are_float32_and_close_to_the_exact_ones(norm_pix):
    config = tiny_config(norm_pix_loss=norm_pix)
    model = JointTactileMAE(config)
    clips, *orders = batch(config)
    exact = torch.stack(model(patchify(clips, 4), *orders, 4))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(patchify(clips, 4), *orders, 4)
    assert {loss.dtype for loss in rounded} == {torch.float32}
    assert torch.allclose(torch.stack(rounded), exact, rtol=0.02)


def test_predictions_of_normalised_patches_are_judged_against_normalised_patches():
    config = tiny_config(norm_pix_loss=True)
    model = JointTactileMAE(config)
    clips, *orders = batch(config)
    made = model.predict(patchify(clips, 4), *orders, 4)
    wanted = targets(made.dynamic_patches[:, :, 144:], norm_pix=True)
    losses = model(patchify(clips, 4), *orders, 4)
    assert losses.pred.item() == pytest.approx((made.pred - wanted).square().mean().item(), rel=1e-5)


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


@pytest.mark.parametrize("config", [named_config("test_vit"), TINY_CONFIGS["sensors"], TINY_CONFIGS["frame embedding"]])
def test_every_weight_gets_a_gradient_from_the_joint_loss(config):
    model = JointTactileMAE(config)
    clips, static_order, dynamic_order = batch(config)
    losses = model(patchify(clips, config.encoder.patch), static_order, dynamic_order, visible(config))
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


@pytest.mark.parametrize("name", ["vit_tiny_r_s16_p8_224", "aimv2_large_patch14_224"])
def test_a_vit_that_embeds_patches_by_a_cnn_or_with_a_norm_is_refused(name):
    encoder = {"name": name, "patch_size": 14}
    config = TrainConfig.model_validate(tiny_content(data={"image_size": 56}) | {"encoder": encoder})
    with pytest.raises(ConfigError, match=r"embeds patches by more than a linear map|timm cannot build it"):
        check_encoder(config)


def test_a_timm_model_that_takes_no_image_size_is_refused_with_timms_words():
    with pytest.raises(ConfigError, match=r"'fastvit_t8': timm cannot build it: .*img_size"):
        JointTactileMAE(named_config("fastvit_t8"))


def test_an_encoder_is_checked_without_its_weights_but_with_their_file(tmp_path):
    check_encoder(named_config("test_vit"))
    missing = tiny_config(encoder={"pretrained": str(tmp_path / "none.pt")})
    with pytest.raises(ConfigError, match=r"encoder\.pretrained = .*none\.pt: no such file"):
        check_encoder(missing)
