"""A procedural GelSight Mini: presses, slides and twists of simple indenters, with labels, from a seed alone.

Equations after Taxim (Si & Yuan 2022: smoothing that restores the contact area), Gomes et al. 2021 (elastomer
heights, Phong shading added to a real background), TACTO (Wang et al. 2022: difference from the flat gel) and FOTS
(Zhao et al. 2024: dilation, shear and twist of the markers). Lengths are in mm; the colours are fitted to real frames.

>>> frames, labels = generate(SyntheticConfig(sequences=2, frames=8), (48, 48))
>>> frames.shape, labels.depth_mm.shape
((2, 8, 48, 48, 3), (2, 8))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.data.config import SyntheticConfig

Floats = NDArray[np.floating[Any]]
Frames = NDArray[np.uint8]

GEL_MM = (14.3, 18.6)  # height and width of a GelSight Mini's view
FINE_PIXELS = 128  # below this side, frames are rendered at twice the size and averaged: smooth dots and edges
MOTIONS = ("press", "slide", "twist")

# Log brightness of the flat gel over x, y in -1..1 (left to right, top to bottom), for R, G, B; columns as in
# _background. Least-squares fit to the dot-free part of 53 GelSight Mini sequences (the first column then lowered so
# that whole frames have the real mean), and its spread among them.
BACKGROUND = np.array(
    [
        [4.71, 0.014, 0.277, -0.675, -0.788, 0.163],
        [4.765, -0.070, -0.073, -0.238, -0.130, 0.014],
        [5.04, -0.001, -0.189, -0.324, -0.448, -0.015],
    ]
)
BACKGROUND_SPREAD = np.array(
    [
        [0.093, 0.028, 0.103, 0.219, 0.170, 0.112],
        [0.079, 0.063, 0.037, 0.074, 0.032, 0.025],
        [0.051, 0.023, 0.074, 0.101, 0.083, 0.067],
    ]
)

# Where the light of each channel comes from (x to the right, y down): red from below, green from the left, blue from
# above, as the falling brightness of the real backgrounds shows.
LIGHTS = np.array([[0.5, 0.87], [-1.0, 0.0], [0.5, -0.87]])
LIGHT_ELEVATION = 0.35  # sine of the angle between the light and the gel
DIFFUSE = 0.9  # brightness gained per unit of n.l, as a share of the background
SPECULAR, SHININESS = 0.25, 6.0  # Phong

SMOOTHING_MM = (0.9, 0.45, 0.2)  # Gaussian pyramid of the gel's edge around the contact, coarse to fine
SKIN_MM = 0.13  # the coating rounds off what is finer

MARKER_COLOUR = np.array([34.0, 40.0, 42.0])
MARKER_OPACITY = 0.88
DILATION = 0.12  # marker displacement per mm of depth and mm from the contact's centre (before decay)
GRIP = 0.35  # share of the indenter's turn that the gel around it follows, at the deepest
NOISE = 0.35  # standard deviation of sensor noise, of 255


@dataclass(frozen=True)
class PressLabels:
    """What happened in S presses of T frames.

    Attributes:
        indenter: S names, keys of `INDENTERS`.
        motion: S names of `MOTIONS`.
        depth_mm: [S, T] how deep the indenter is in the gel; 0 without contact.
        slip: [S, T] whether the indenter slides over the gel at this frame (not: sticks to it).
    """

    indenter: tuple[str, ...]
    motion: tuple[str, ...]
    depth_mm: Floats
    slip: NDArray[np.bool_]


def generate(config: SyntheticConfig, height_width: tuple[int, int]) -> tuple[Frames, PressLabels]:
    """All presses at once: uint8 [S, T, H, W, 3] and their labels. Equal seeds give equal frames."""
    made = [make_press(config, index, height_width) for index in range(config.sequences)]
    plans = [plan for _, plan in made]
    labels = PressLabels(
        tuple(plan.indenter for plan in plans),
        tuple(plan.motion for plan in plans),
        np.stack([plan.depth_mm for plan in plans]),
        np.stack([plan.slip for plan in plans]),
    )
    return np.stack([frames for frames, _ in made]), labels


def make_press(config: SyntheticConfig, index: int, height_width: tuple[int, int]) -> tuple[Frames, Press]:
    """Press number `index`: uint8 [T, H, W, 3] and its plan. Depends on the seed and the index, not on their number."""
    rng = np.random.default_rng([config.seed, index])
    press = plan_press(rng, config.frames)
    clean = render(press, height_width)
    noisy = clean + NOISE * rng.standard_normal(clean.shape, dtype=np.float32)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8), press


def press_of(config: SyntheticConfig, index: int) -> Press:
    """The plan of press number `index`, without rendering it."""
    return plan_press(np.random.default_rng([config.seed, index]), config.frames)


# --- the plan of a press -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Press:
    """One press: T poses of an indenter, and the gel that it meets. Positions [T, 2] are (x, y) from the centre."""

    indenter: str
    size: float  # scale of the indenter; 1 is as written at INDENTERS
    motion: str
    depth_mm: Floats  # [T], 0 without contact
    centre_mm: Floats  # [T, 2]
    angle: Floats  # [T] radians
    shear_mm: Floats  # [T, 2] how far the gel's surface is dragged along
    twist: Floats  # [T] radians by which the surface is turned along
    slip: NDArray[np.bool_]  # [T]
    background: NDArray[np.float64]  # [3, 6], see _background
    marker_spacing_mm: float
    marker_radius_mm: float
    marker_offset: tuple[float, float]  # of the grid, in spacings
    marker_angle: float


def plan_press(rng: np.random.Generator, num_frames: int) -> Press:
    """Draw one press: approach, press in, hold / slide / twist, release (wholly or in part)."""
    time = np.linspace(0.0, 1.0, num_frames)
    touch = rng.uniform(-0.05, 0.12)
    held = touch + rng.uniform(0.2, 0.35)
    release = rng.uniform(0.78, 0.95)
    depth = rng.uniform(0.3, 1.0) * _ease(time, touch, held) * (1 - _ease(time, release, release + 0.25))

    indenter = str(rng.choice(tuple(INDENTERS)))
    motion = str(rng.choice(MOTIONS))
    start = rng.uniform(-0.55, 0.55, 2) * np.array(GEL_MM[::-1]) / 2
    angle = np.full(num_frames, rng.uniform(0, 2 * np.pi))
    travel, shear = np.zeros((2, num_frames, 2))
    twist, slip = np.zeros(num_frames), np.zeros(num_frames, bool)
    progress = _ease(time, held - 0.05, release)  # it starts to move before it is all the way in
    if motion == "slide":
        toward = rng.uniform(0, 2 * np.pi)
        if np.hypot(*start) > 3:  # from the rim, move inwards: it should not leave the view
            toward = np.arctan2(-start[1], -start[0]) + rng.uniform(-0.8, 0.8)
        direction = np.array([np.cos(toward), np.sin(toward)])
        distance = rng.uniform(1.0, 3.5) * progress
        # Coulomb friction: the gel follows until the shear would exceed mu * depth, then the indenter slips over it
        shear_limit = rng.uniform(0.5, 1.1) * depth
        travel = distance[:, None] * direction
        shear = np.minimum(distance, shear_limit)[:, None] * direction
        slip = (distance > shear_limit) & (depth > 0)
    elif motion == "twist":
        turn = rng.choice([-1.0, 1.0]) * rng.uniform(0.25, 0.8) * progress
        angle = angle + turn
        twist = GRIP * turn * depth / depth.max()

    spacing = rng.uniform(1.8, 2.7)
    return Press(
        indenter=indenter,
        size=float(rng.uniform(0.9, 1.5)),
        motion=motion,
        depth_mm=depth.astype(np.float32),
        centre_mm=(start + travel).astype(np.float32),
        angle=angle.astype(np.float32),
        shear_mm=shear.astype(np.float32),
        twist=twist.astype(np.float32),
        slip=slip,
        background=BACKGROUND + 0.8 * BACKGROUND_SPREAD * rng.standard_normal(BACKGROUND.shape),
        marker_spacing_mm=spacing,
        marker_radius_mm=spacing * rng.uniform(0.16, 0.21),
        marker_offset=(float(rng.uniform(-0.5, 0.5)), float(rng.uniform(-0.5, 0.5))),
        marker_angle=float(rng.normal(0, 0.03)),
    )


def _ease(time: NDArray[np.float64], start: float, end: float) -> NDArray[np.float64]:
    """0 before start, 1 after end, a smooth step (3s^2 - 2s^3) between."""
    share = np.clip((time - start) / (end - start), 0.0, 1.0)
    return share * share * (3 - 2 * share)


# --- indenters: u, v [T, h, w] in mm from the centre -> height of the surface, 0 at its lowest, negative around it ----


def _sphere(u: Floats, v: Floats) -> Floats:
    return _ball_cap(u * u + v * v, 3.0)


def _cylinder(u: Floats, v: Floats) -> Floats:
    """Lying on its side, with round ends."""
    along = np.maximum(np.abs(u) - 3.0, 0)
    return _ball_cap(along * along + v * v, 1.5)


def _box(u: Floats, v: Floats) -> Floats:
    return _steep(_rectangle(u, v, 2.2, 1.3))


def _ring(u: Floats, v: Floats) -> Floats:
    """A torus lying flat."""
    rim = np.sqrt(u * u + v * v) - 2.1
    return _ball_cap(rim * rim, 0.8)


def _cross(u: Floats, v: Floats) -> Floats:
    return _steep(np.minimum(_rectangle(u, v, 2.8, 0.55), _rectangle(u, v, 0.55, 2.8)))


def _ridges(u: Floats, v: Floats) -> Floats:
    """Parallel ridges, 1.4 mm apart, on a round stamp."""
    bumps = 0.45 * (np.cos((2 * np.pi / 1.4) * u) - 1)
    return bumps + _steep(np.sqrt(u * u + v * v) - 2.6)


def _studs(u: Floats, v: Floats) -> Floats:
    """A square stamp of round studs, 1.7 mm apart."""
    wave = 2 * np.pi / 1.7
    bumps = 0.3 * (np.cos(wave * u) + np.cos(wave * v) - 2)
    return bumps + _steep(_rectangle(u, v, 2.4, 2.4))


INDENTERS: dict[str, Callable[[Floats, Floats], Floats]] = {
    "sphere": _sphere,
    "cylinder": _cylinder,
    "box": _box,
    "ring": _ring,
    "cross": _cross,
    "ridges": _ridges,
    "studs": _studs,
}


def _ball_cap(square_distance: Floats, radius: float) -> Floats:
    return np.sqrt(np.maximum(radius * radius - square_distance, 0)) - radius


def _rectangle(u: Floats, v: Floats, half_u: float, half_v: float) -> Floats:
    """Distance from a rectangle; 0 inside."""
    du, dv = np.maximum(np.abs(u) - half_u, 0), np.maximum(np.abs(v) - half_v, 0)
    return np.sqrt(du * du + dv * dv)


def _steep(outside: Floats) -> Floats:
    """The flank of a flat-faced indenter: falls 2.5 mm per mm away from the face."""
    return -2.5 * np.maximum(outside, 0)


# --- rendering ---------------------------------------------------------------------------------------------------


def render(press: Press, height_width: tuple[int, int]) -> Floats:
    """The frames of a press without sensor noise: float32 [T, H, W, 3], 0-255."""
    height, width = height_width
    fine = 2 if min(height, width) < FINE_PIXELS else 1
    y, x = _grid(height * fine, width * fine)
    brightness = _background(press.background, height * fine, width * fine)
    image = brightness * (1.0 + _shading(_indentation(press, y, x)))
    dots = _markers(press, y, x)[..., None]
    image += dots * (MARKER_COLOUR.astype(np.float32) - image)
    if fine > 1:
        image = image.reshape(-1, height, fine, width, fine, 3).mean(axis=(2, 4))
    return np.clip(image, 0, 255)


def _grid(height: int, width: int) -> tuple[Floats, Floats]:
    """Pixel centres in mm from the gel's centre: y [h, 1], x [1, w]."""
    y = ((np.arange(height, dtype=np.float32) + 0.5) / height - 0.5) * np.float32(GEL_MM[0])
    x = ((np.arange(width, dtype=np.float32) + 0.5) / width - 0.5) * np.float32(GEL_MM[1])
    return y[:, None], x[None, :]


def _background(coefficients: NDArray[np.float64], height: int, width: int) -> Floats:
    """The flat gel [h, w, 3]: exp of a polynomial in 1, x, y, x^2, y^2, y^3 over -1..1."""
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * x, y * y, y**3], axis=-1)
    return np.exp(terms @ coefficients.T).astype(np.float32)


def _indentation(press: Press, y: Floats, x: Floats) -> Floats:
    """How far the gel is pressed in, mm, [T, h, w]: the contact as it is, its surroundings pulled down softly."""
    dx, dy = x - press.centre_mm[:, 0, None, None], y - press.centre_mm[:, 1, None, None]
    cos, sin = np.cos(press.angle)[:, None, None], np.sin(press.angle)[:, None, None]
    u, v = (cos * dx + sin * dy) / press.size, (cos * dy - sin * dx) / press.size
    depth = press.depth_mm[:, None, None]
    pressed = np.maximum(depth + press.size * INDENTERS[press.indenter](u, v), 0)
    pressed *= depth > 0
    touching = pressed > 0
    surface = pressed
    for sigma in SMOOTHING_MM:
        surface = np.where(touching, pressed, _blur(surface, sigma))
    return _blur(surface, SKIN_MM)


def _shading(indentation: Floats) -> Floats:
    """Phong shading minus that of the flat gel: [T, h, w] -> [T, h, w, 3], 0 where the gel is flat."""
    _, height, width = indentation.shape
    slope_y = np.gradient(indentation, np.float32(GEL_MM[0] / height), axis=1)
    slope_x = np.gradient(indentation, np.float32(GEL_MM[1] / width), axis=2)
    up = 1 / np.sqrt(1 + slope_x**2 + slope_y**2)  # z of the unit normal
    horizontal = np.float32(np.sqrt(1 - LIGHT_ELEVATION**2))
    shading = np.empty((*indentation.shape, 3), np.float32)
    for channel, (light_x, light_y) in enumerate(LIGHTS.astype(np.float32)):
        facing = up * (LIGHT_ELEVATION + horizontal * (slope_x * light_x + slope_y * light_y))
        reflected = np.maximum(2 * facing * up - LIGHT_ELEVATION, 0)  # z of the mirrored ray: towards the camera
        diffuse = np.maximum(facing, 0) - LIGHT_ELEVATION
        shading[..., channel] = DIFFUSE * diffuse + SPECULAR * (reflected**SHININESS - LIGHT_ELEVATION**SHININESS)
    return shading


def _markers(press: Press, y: Floats, x: Floats) -> Floats:
    """Opacity of the dots [T, h, w]: a regular grid looked up where each pixel's gel was before it moved."""
    dx, dy = x - press.centre_mm[:, 0, None, None], y - press.centre_mm[:, 1, None, None]
    square_distance = dx * dx + dy * dy
    near = np.exp(square_distance * np.float32(-1 / (2 * 3.0**2)))
    far = np.exp(square_distance * np.float32(-1 / (2 * 4.5**2)))  # shear reaches further than dilation (FOTS)
    dilation = DILATION * press.depth_mm[:, None, None] * near
    twist = press.twist[:, None, None] * far
    rest_x = x - dilation * dx - far * press.shear_mm[:, 0, None, None] + twist * dy
    rest_y = y - dilation * dy - far * press.shear_mm[:, 1, None, None] - twist * dx

    cos, sin = np.float32(np.cos(press.marker_angle)), np.float32(np.sin(press.marker_angle))
    spacing = np.float32(press.marker_spacing_mm)
    column = (cos * rest_x + sin * rest_y) / spacing + np.float32(press.marker_offset[0])
    row = (cos * rest_y - sin * rest_x) / spacing + np.float32(press.marker_offset[1])
    column -= np.rint(column)
    row -= np.rint(row)
    inside = np.float32(press.marker_radius_mm) - spacing * np.sqrt(column * column + row * row)
    return np.float32(MARKER_OPACITY) * np.clip(inside / np.float32(0.2) + np.float32(0.5), 0, 1)


def _blur(fields: Floats, sigma_mm: float) -> Floats:
    """Gaussian blur of [T, h, w]; two matrix products, which BLAS does faster than any loop over a kernel."""
    _, height, width = fields.shape
    return _gaussian_matrix(height, GEL_MM[0], sigma_mm) @ fields @ _gaussian_matrix(width, GEL_MM[1], sigma_mm).T


@lru_cache(maxsize=16)
def _gaussian_matrix(pixels: int, extent_mm: float, sigma_mm: float) -> Floats:
    """[pixels, pixels]: row i weighs the pixels around i; each row sums to 1, also at the rim."""
    position = np.arange(pixels) * (extent_mm / pixels)
    distance = np.abs(position[:, None] - position[None, :])
    weight = np.exp(-(distance**2) / (2 * sigma_mm**2))
    weight[distance > 3.5 * sigma_mm] = 0  # far weights would make denormal numbers, which cost 15 times the time
    return (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)
