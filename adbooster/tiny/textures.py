"""Grounds and skies of the tiny world, drawn procedurally: float arrays [H,W,3] in levels.

A ground is seen in perspective: `u` runs across and `v` into the depth, in units in which the picture is about one
wide at its lower edge; what lies near the horizon fades. Textures are the same in every picture but for the horizon,
so that a small network can learn them.
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

WHITE = np.array([250.0, 250.0, 246.0])
LIGHTS = ("#ffd27a", "#ff9f68", "#fff1c4", "#ff7a9a", "#8fd0ff")


def ground(kind: str, far: np.ndarray, near: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    """The ground from the horizon (row 0) to the lower edge, `size_px` wide and high."""
    wide, high = size_px
    t_H1 = ((np.arange(high) + 0.5) / high)[:, None]
    z_H1 = 1 / (t_H1 + 0.15)
    u_HW = ((np.arange(wide) + 0.5) / wide - 0.5) * z_H1
    v_HW = np.broadcast_to(1.6 * z_H1, u_HW.shape)
    shade_HW, paint_HW = GROUNDS[kind](u_HW, v_HW)
    base_HW3 = (far + (near - far) * t_H1)[:, None].reshape(high, 1, 3)
    lit_HW3 = base_HW3 + np.minimum(1, 0.12 + 1.5 * t_H1)[..., None] * shade_HW[..., None] * (0.35 * base_HW3 + 25)
    return lit_HW3 + (WHITE - lit_HW3) * (paint_HW * np.minimum(1, 0.25 + 1.5 * t_H1))[..., None]


def sky(kind: str, top: np.ndarray, low: np.ndarray, size_px: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """The sky from the upper edge to the horizon: clouds, stars, or the lights of a party out of focus."""
    wide, high = size_px
    t_H1 = ((np.arange(high) + 0.5) / high)[:, None]
    out_HW3 = np.broadcast_to((top + (low - top) * t_H1)[:, None].reshape(high, 1, 3), (high, wide, 3)).copy()
    if kind == "clouds":
        u_W = (np.arange(wide) + 0.5) / wide + rng.uniform()
        veil_HW = noise(3.0 * u_W[None] + 0 * t_H1, 5.0 * t_H1 + 0 * u_W) + 0.5 * noise(
            9.0 * u_W[None] + 0 * t_H1, 15.0 * t_H1 + 0 * u_W
        )
        out_HW3 += (WHITE - out_HW3) * (0.55 * np.clip(veil_HW, 0, 1) * (0.25 + 0.75 * t_H1))[..., None]
    elif kind != "plain":
        out_HW3 = _lights(out_HW3, stars=kind == "stars", rng=rng)
    return out_HW3


def _lights(sky_HW3: np.ndarray, stars: bool, rng: np.random.Generator) -> np.ndarray:
    picture = Image.fromarray(sky_HW3.clip(0, 255).astype(np.uint8))
    wide, high = picture.size
    for _ in range(int(rng.integers(25, 40)) if stars else int(rng.integers(14, 22))):
        radius = wide * (rng.uniform(0.0025, 0.005) if stars else rng.uniform(0.018, 0.045))
        x, y = rng.uniform(0, wide), rng.uniform(0, high)
        layer = Image.new("L", picture.size)
        draw = ImageDraw.Draw(layer)
        alpha = int(rng.uniform(120, 220) if stars else rng.uniform(35, 80))
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=alpha)
        left, top = int(max(0, x - 2 * radius - 3)), int(max(0, y - 2 * radius - 3))
        part = layer.crop((left, top, int(x + 2 * radius + 4), int(y + 2 * radius + 4))).filter(
            ImageFilter.GaussianBlur(wide * 0.0025)
        )
        colour = "#fff8e0" if stars else LIGHTS[int(rng.integers(len(LIGHTS)))]
        picture.paste(Image.new("RGB", part.size, colour), (left, top), part)
    return np.asarray(picture).astype(float)


@lru_cache(maxsize=1)
def _tile() -> np.ndarray:
    """Smooth noise that repeats, 64 cells a side, mean 0 and standard deviation 1."""
    tile = np.random.default_rng(7).normal(size=(64, 64))
    return (tile - tile.mean()) / tile.std()


def noise(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The noise at (x, y), one cell a unit, interpolated smoothly."""
    tile = _tile()
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = x - x0, y - y0
    fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
    x0, y0, x1, y1 = x0 % 64, y0 % 64, (x0 + 1) % 64, (y0 + 1) % 64
    upper = tile[y0, x0] * (1 - fx) + tile[y0, x1] * fx
    return upper * (1 - fy) + (tile[y1, x0] * (1 - fx) + tile[y1, x1] * fx) * fy


def _edge(x: np.ndarray, period: float, width: float) -> np.ndarray:
    """1 on the lines between the cells of `period`, 0 off them."""
    away = np.abs((x / period + 0.5) % 1 - 0.5) * period
    return np.clip(1.5 - away / width, 0, 1)


def _grass(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return 0.16 * noise(38 * u, 16 * v) + 0.14 * noise(8 * u, 5 * v), np.zeros_like(u)


def _lawn(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    bands = np.tanh(6 * np.sin(2 * np.pi * u / 0.55))
    lines = np.maximum(_edge(v - 2.1, 40, 0.035), _edge(u - 1.0, 40, 0.03))
    return 0.2 * bands + 0.1 * noise(38 * u, 16 * v), 0.85 * lines


def _court(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lines = np.maximum(_edge(v - 1.95, 2.2, 0.035), _edge(u - 0.42, 0.84, 0.025))
    return 0.08 * noise(20 * u, 12 * v), 0.9 * lines


def _boards(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    plank = np.floor(u / 0.11)
    tone = noise(plank * 1.0, np.floor(v / 1.3 + 0.37 * (plank % 3)))
    seams = np.maximum(_edge(u, 0.11, 0.006), _edge(v + 0.481 * (plank % 3), 1.3, 0.02))
    return 0.16 * tone + 0.06 * noise(60 * u, 2.5 * v) - 0.55 * seams, np.zeros_like(u)


def _tiles(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    odd = (np.floor(u / 0.3) + np.floor(v / 0.42)) % 2
    seams = np.maximum(_edge(u, 0.3, 0.006), _edge(v, 0.42, 0.014))
    return 0.4 * (odd - 0.5) - 0.25 * seams, np.zeros_like(u)


def _cobbles(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    row = np.floor(v / 0.2)
    shifted = u + 0.075 * (row % 2)
    seams = np.maximum(_edge(shifted, 0.15, 0.014), _edge(v, 0.2, 0.025))
    return 0.22 * noise(np.floor(shifted / 0.15), row) - 0.6 * seams + 0.2, np.zeros_like(u)


def _sand(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ripples = np.sin(2 * np.pi * (4.2 * v + 0.35 * noise(3 * u, 2 * v)))
    return 0.11 * ripples + 0.05 * noise(45 * u, 25 * v), np.zeros_like(u)


def _snow(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    drifts = noise(3 * u, 2.2 * v)
    return -0.1 * np.clip(drifts, 0, 2) - 0.05 * np.abs(noise(30 * u, 14 * v)), np.zeros_like(u)


def _leaves(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    fallen = np.clip(3 * (noise(16 * u, 9 * v) - 0.35), 0, 1) - np.clip(3 * (-noise(16 * u, 9 * v) - 0.5), 0, 1)
    return 0.34 * fallen + 0.08 * noise(40 * u, 20 * v), np.zeros_like(u)


def _water(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    waves = noise(5 * u, 9 * v)
    crests = np.clip(2.5 * (waves - 0.75), 0, 1)
    return 0.16 * waves, 0.55 * crests


GROUNDS = {
    "grass": _grass,
    "lawn": _lawn,
    "court": _court,
    "boards": _boards,
    "tiles": _tiles,
    "cobbles": _cobbles,
    "sand": _sand,
    "snow": _snow,
    "leaves": _leaves,
    "water": _water,
}
