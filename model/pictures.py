"""Reconstruction pictures: what the model makes of held-out clips, as one image to look at.

A row is a clip, under the masks of the fixed evaluation protocol. From left to right: frame 1 as the static branch sees
and restores it, frame 2 as the middle one of the tube, frame 4 as it is predicted from frames 1-3, and the errors of
that prediction and of what needs no learning, a copy of frame 3. A branch that the mode does not train is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from model.config import TrainConfig
from model.data.clips import Clips
from model.data.config import TUBE_FRAMES
from model.data.spread import evenly_spread
from model.evaluate import Load, protocol_masks
from model.features import frozen
from model.losses import in_order, patch_statistics, unpatchify
from model.mae import JointTactileMAE

Frames = NDArray[np.uint8]  # [K, H, W, 3]
Picture = NDArray[np.uint8]  # [rows, columns, 3]

MASK_COLOUR = (40, 40, 40)
SMALLEST_SIDE = 128  # pixels of a panel: smaller frames are magnified, so that text fits above and patches are seen
FACTORS = (1, 2, 5, 10, 20, 50, 100, 200)  # by which errors are amplified
FULL_SCALE_SHARE = 0.99  # of the errors' pixels are not brighter than the brightest colour

# Nine colours of matplotlib's `inferno`, at even distances: lightness rises evenly, also for the colour-blind
INFERNO = np.array(
    [
        *((0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85)),
        *((227, 89, 51), (249, 140, 10), (249, 201, 50), (252, 255, 164)),
    ],
    np.float64,
)

TEXT_SIZE, LINE, GAP, GROUP_GAP, MARGIN = 13, 18, 4, 16, 8  # pixels


@dataclass(frozen=True)
class Group:
    """Columns that belong together, from left to right: title -> the K clips' frames."""

    title: str
    columns: Mapping[str, Frames]


def reconstructions(
    model: JointTactileMAE,
    config: TrainConfig,
    clips: Clips,
    load_held_out: Load,
    mean: NDArray[np.float32],
    std: NDArray[np.float32],
) -> Picture:
    """The picture of `config.pictures` held-out clips, evenly spread.

    Visible patches are pasted from the input. With norm_pix_loss the heads give normalised patches: they are shown with
    the mean and deviation of the true patch (as in MAE's own demo), so brightness and contrast come from the truth.

    Args:
        mean, std: [3], by which frames on the 0-1 scale were normalised.
    """
    assert config.pictures > 0, "no picture is wanted"
    numbers = evenly_spread(len(clips.held_out), config.pictures)
    patches, sensors = load_held_out(torch.from_numpy(numbers))
    num_visible, *orders = protocol_masks(len(clips.held_out), config.num_patches)
    static_order, dynamic_order = (order[numbers].to(patches.device) for order in orders)
    shown = _Shown(config, mean, std)
    with frozen(model):
        made = model.predict(
            patches,
            None if config.mode == "dynamic" else static_order,
            None if config.mode == "static" else dynamic_order,
            num_visible,
            sensors,
        )
    groups = []
    first, middle, third, fourth = (shown(patches[:, :, frame]) for frame in range(TUBE_FRAMES + 1))
    if made.static is not None:
        hidden = static_order[:, num_visible:]
        restored = _pasted(made.static, patches[:, :, 0], hidden, config.norm_pix_loss)
        columns = {"input": first, "masked": shown.masked(first, hidden), "restored": shown(restored)}
        groups.append(Group("frame 1, static", columns))
    caption = [f"{config.num_patches - num_visible} of {config.num_patches} patches masked, as in eval/..."]
    if made.recon is not None and made.pred is not None:
        hidden = dynamic_order[:, num_visible:]
        frame_2 = made.recon.unflatten(2, (TUBE_FRAMES, -1))[:, :, 1]
        restored = _pasted(frame_2, patches[:, :, 1], hidden, config.norm_pix_loss)
        columns = {"input": middle, "masked": shown.masked(middle, hidden), "restored": shown(restored)}
        groups.append(Group("frame 2 of the tube, dynamic", columns))
        predicted = shown(_pasted(made.pred, patches[:, :, TUBE_FRAMES], dynamic_order, config.norm_pix_loss))
        errors = [_difference(fourth, other) for other in (predicted, third)]
        factor = _factor(np.stack(errors))
        error, copied = (_coloured(difference * factor) for difference in errors)
        titles = f"error x{factor}", f"copy of 3: error x{factor}"
        columns = {"truth": fourth, "predicted": predicted, titles[0]: error, titles[1]: copied}
        groups.append(Group("frame 4, predicted from the visible patches of frames 1-3", columns))
        caption.append(f"error: mean over colours, black 0, yellow {255 / factor:.3g} of 255 grey levels or more")
    if config.norm_pix_loss:
        caption.append("patches have the true ones' mean and contrast (norm_pix_loss)")
    names = [clips.held_out.clip_id(int(number)) for number in numbers]
    return reconstruction_grid(groups, names, "; ".join(caption))


def reconstruction_grid(groups: Sequence[Group], names: Sequence[str], caption: str) -> Picture:
    """Frames as a labelled grid, uint8 [rows, columns, 3]: a row per name, a column per entry of the groups.

    Small frames are magnified by a whole number, each pixel to a square.
    """
    frames = next(iter(groups[0].columns.values()))
    scale = math.ceil(SMALLEST_SIDE / min(frames.shape[1:3]))
    height, width = (side * scale for side in frames.shape[1:3])
    lefts, left = [], MARGIN
    for group in groups:
        lefts.append([left + place * (width + GAP) for place in range(len(group.columns))])
        left = lefts[-1][-1] + width + GROUP_GAP
    top = MARGIN + 2 * LINE + GAP
    row_height = LINE + height + GAP
    size = left - GROUP_GAP + MARGIN, top + len(names) * row_height + LINE + MARGIN
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(TEXT_SIZE)

    def write(place: tuple[int, int], text: str, room: int, fill: str = "black") -> None:
        draw.text(place, _fitted(text, room, font), fill, font)

    for group, places in zip(groups, lefts, strict=True):
        write((places[0], MARGIN), group.title, places[-1] + width - places[0])
        for (title, column), place in zip(group.columns.items(), places, strict=True):
            write((place, MARGIN + LINE), title, width, "dimgray")
            for row, frame in enumerate(column):
                panel = Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST)
                canvas.paste(panel, (place, top + row * row_height + LINE))
    for row, name in enumerate(names):
        write((MARGIN, top + row * row_height), name, size[0] - 2 * MARGIN)
    write((MARGIN, top + len(names) * row_height), caption, size[0] - 2 * MARGIN, "dimgray")
    return np.asarray(canvas)


class _Shown:
    """Normalised patches as frames to look at."""

    def __init__(self, config: TrainConfig, mean: NDArray[np.float32], std: NDArray[np.float32]) -> None:
        self._patch, self._grid = config.encoder.patch, config.grid
        self._mean, self._std = mean, std

    def __call__(self, patches: Tensor) -> Frames:
        """patches [K, N, P] -> frames [K, H, W, 3]; what is beyond black and white is cut off."""
        pixels = unpatchify(patches[:, :, None].float(), self._patch, self._grid)[:, 0].cpu().numpy()
        shown: Frames = np.rint(np.clip(pixels * self._std + self._mean, 0, 1) * 255).astype(np.uint8)
        return shown

    def masked(self, frames: Frames, hidden: Tensor) -> Frames:
        """frames [K, H, W, 3] with the patches hidden [K, m] painted over."""
        mask = torch.zeros(len(frames), math.prod(self._grid), dtype=torch.bool, device=hidden.device)
        mask = mask.scatter(1, hidden, True).cpu()
        pixels = mask.reshape(-1, *self._grid).repeat_interleave(self._patch, 1).repeat_interleave(self._patch, 2)
        return np.where(pixels.numpy()[..., None], np.array(MASK_COLOUR, np.uint8), frames)


def _pasted(made: Tensor, truth: Tensor, order: Tensor, norm_pix: bool) -> Tensor:
    """truth [K, N, P] with its patches order [K, m] replaced by the head's output made [K, m, P]."""
    made = made.float()
    if norm_pix:
        mean, deviation = patch_statistics(in_order(truth, order))
        made = made * deviation + mean
    return truth.float().scatter(1, order[..., None].expand_as(made), made)


def _difference(truth: Frames, other: Frames) -> NDArray[np.float64]:
    """[K, H, W], mean over colours of the absolute difference, on the 0-1 scale."""
    difference: NDArray[np.float64] = np.abs(truth.astype(np.float64) - other).mean(axis=-1) / 255
    return difference


def _factor(errors: NDArray[np.float64]) -> int:
    """The largest of FACTORS that leaves 99 % of the pixels on the scale."""
    high = float(np.quantile(errors, FULL_SCALE_SHARE))
    return max((factor for factor in FACTORS if factor * high <= 1), default=1)


def _coloured(values: NDArray[np.float64]) -> Frames:
    """values [..., H, W], 0-1 -> colours [..., H, W, 3]; larger values get the last colour."""
    stops = np.linspace(0, 1, len(INFERNO))
    channels = [np.interp(values, stops, INFERNO[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def _fitted(text: str, room: int, font: Any) -> str:
    """The text, cut with dots where it is wider than `room` pixels."""
    if font.getlength(text) <= room:
        return text
    kept = next((n for n in range(len(text), 0, -1) if font.getlength(f"{text[:n]}...") <= room), 0)
    return f"{text[:kept]}..."
