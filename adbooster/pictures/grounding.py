"""What a product does to the ground it stands on: contact shadow, ambient occlusion, cast shadow, reflection.

All of it follows from the product's alpha and the direction of the scene's light. Only the scene is changed; the product
is composed over it afterwards.
"""

import numpy as np
from scipy import ndimage

from adbooster.pictures import images, lighting
from adbooster.pictures.cutouts import ON, Cutout
from adbooster.pictures.layout import Box
from adbooster.pictures.lighting import Light

# Share of the light that is lost, how wide as a share of the product's size, how flat: the line of contact, and two bands
# round it, where the product hides part of the sky.
BANDS = ((0.42, 0.012, 0.8), (0.26, 0.050, 0.40), (0.22, 0.150, 0.40))
CAST = 0.32  # share of the light lost in the shadow that it throws, at its foot; less with distance and with doubt
FLAT = 0.22  # how much of a depth on the ground is seen as height: a camera somewhat above it
LENGTH = 0.55  # of the product's height: how far the shadow of its top falls to the side of a low light
SLICES = ((0.00, 0.04), (0.04, 0.10), (0.10, 0.18), (0.18, 0.30), (0.30, 0.45), (0.45, 0.65), (0.65, 1.00))
OWN_SHADOW = (0.62, 0.95)  # a scene this much darker under the product than beside it needs none of ours, or all


def shade(scene_u8: np.ndarray, cutout: Cutout, box: Box, light: Light) -> np.ndarray:
    """The scene, uint8 [H,W,3], with the shadow of a product in `box` under a light; what the model painted is spared."""
    high, wide = scene_u8.shape[:2]
    alpha = cutout.scaled(box.width_px, box.height_px).alpha
    lowest, touches = lighting.base(alpha)
    if not touches.any():
        return scene_u8
    reach = max(4, round(0.35 * max(box.width_px, box.height_px)))
    side = reach + round(LENGTH * box.height_px)
    left, right = max(0, box.x_px - side), min(wide, box.x_px + box.width_px + side)
    top, bottom = max(0, box.y_px + box.height_px - reach), min(high, box.y_px + box.height_px + reach)
    xs, ys = np.arange(left, right) - box.x_px, np.arange(top, bottom) - box.y_px
    lost = 1 - (1 - _contact(lowest, touches, alpha.shape, xs, ys)) * (1 - _cast(alpha, light, xs, ys))
    window = slice(top, bottom), slice(left, right)
    out = scene_u8.copy()
    kept = 1 - lost * _missing(scene_u8, box, lowest, touches)
    out[window] = (scene_u8[window] * kept[..., None] + 0.5).astype(np.uint8)
    return out


def _contact(
    lowest: np.ndarray, touches: np.ndarray, shape: tuple[int, int], xs: np.ndarray, ys: np.ndarray
) -> np.ndarray:
    """Light lost to contact and occlusion at (ys, xs) of the product's box, float32 [rows,columns].

    Each column has its own contact line, where its lowest pixel stands; a column that is off the ground shades less the
    higher it is. The line is dark and thin; the band round it is wide, soft and flattened as the ground is seen.
    """
    high, wide = shape
    gap = np.where(lowest >= 0, lowest.max() - lowest, high).astype(np.float32)
    columns = np.nonzero(touches)[0]
    near = np.interp(xs, np.arange(wide), np.exp(-gap / (0.05 * high)) * (lowest >= 0), left=0, right=0)
    line = np.interp(xs, columns, lowest[columns])  # beyond the ends it goes on level
    line = ndimage.gaussian_filter1d(line.astype(np.float32), max(1.0, 0.01 * wide))
    below = ys[:, None].astype(np.float32) - line
    lost = np.zeros(below.shape, np.float32)
    for strength, spread, flat in BANDS:
        across = max(0.8, spread * (high * wide) ** 0.5)
        column = strength * ndimage.gaussian_filter1d(near.astype(np.float32), across)
        lost = 1 - (1 - lost) * (1 - column * np.exp(below**2 / np.float32(-2 * (flat * across) ** 2)))
    return lost


def _cast(alpha_u8: np.ndarray, light: Light, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Light lost to the shadow that the product throws, float32 [rows,columns]; wider, softer and fainter with its height.

    The product is taken in slices; a slice at height t is a bar on the ground, shifted away from the light by t, as far
    as the light is low, and toward the eye, as a light seen above the horizon is behind the product.
    """
    high, wide = alpha_u8.shape
    lean = -light.sideways * light.confidence
    sure = 0.6 + 0.4 * light.confidence
    rows_up = np.nonzero((alpha_u8 > ON).any(axis=1))[0][-1]
    out = np.zeros((len(ys), len(xs)), np.float32)
    for low, top in SLICES:
        first, last = round(rows_up - top * high), round(rows_up - low * high)
        bar = alpha_u8[max(0, first) : max(1, last + 1)].max(axis=0).astype(np.float32) / 255
        height = (low + top) / 2 * high
        soft = max(1.0, 0.02 * wide + 0.22 * height)
        column = _shifted(bar, xs, lean * LENGTH * height * 1.6, soft)
        deep = max(1.0, 0.045 * wide + 0.12 * height)
        away = ys - rows_up - FLAT * height * 0.5
        strength = CAST * sure * float(np.exp(-height / (0.35 * high)))
        out = 1 - (1 - out) * (1 - strength * np.exp(-((away / deep) ** 2) / 2)[:, None].astype(np.float32) * column)
    return out


def _shifted(bar: np.ndarray, xs: np.ndarray, by: float, soft: float) -> np.ndarray:
    """A bar of the product's columns as it lies at `xs` when moved and blurred, float32."""
    moved = np.interp(xs - by, np.arange(len(bar)), bar, left=0, right=0)
    return ndimage.gaussian_filter1d(moved.astype(np.float32), soft, mode="nearest")


def _missing(scene_u8: np.ndarray, box: Box, lowest: np.ndarray, touches: np.ndarray) -> float:
    """0.35-1: how much of a shadow the scene lacks under the product, by its brightness there and beside it."""
    ground = box.y_px + int(lowest.max()) + 1
    thick = max(2, box.width_px // 14)
    strip = scene_u8[ground : ground + thick].mean(axis=2)
    columns = np.nonzero(touches)[0] + box.x_px
    reach = (columns[-1] - columns[0]) // 2 + 2
    under = strip[:, columns]
    beside = np.concatenate(
        [
            strip[:, max(0, columns[0] - 2 * reach) : max(0, columns[0] - reach)],
            strip[:, columns[-1] + reach : columns[-1] + 2 * reach],
        ],
        axis=1,
    )
    if not under.size or not beside.size:
        return 1.0
    ratio = float(under.mean()) / max(1.0, float(beside.mean()))
    low, top = OWN_SHADOW
    return float(np.clip((ratio - low) / (top - low), 0.35, 1.0))


def reflect(scene_u8: np.ndarray, cutout: Cutout, box: Box, strength: float) -> np.ndarray:
    """The scene with a soft, fading mirror image of the product below it, as on a polished ground."""
    product = cutout.scaled(box.width_px, box.height_px)
    lowest, touches = lighting.base(product.alpha)
    ground = box.y_px + int(lowest.max()) + 1
    deep = min(scene_u8.shape[0] - ground, box.height_px // 3, ground - box.y_px)
    if deep < 2 or not touches.any():
        return scene_u8
    rows = slice(int(lowest.max()) + 1 - deep, int(lowest.max()) + 1)
    share = product.alpha[rows][::-1, :, None].astype(np.float32) / 255
    fade = strength * (1 - np.arange(deep, dtype=np.float32) / deep)[:, None, None] ** 2
    soft = max(1.0, 0.01 * box.width_px)
    mirrored = ndimage.gaussian_filter(product.colours[rows][::-1] * share, (soft, soft, 0))
    share = ndimage.gaussian_filter(share, (soft, soft, 0)) * fade
    out = scene_u8.copy()
    window = slice(ground, ground + deep), slice(box.x_px, box.x_px + box.width_px)
    out[window] = (scene_u8[window] * (1 - share) + mirrored * fade + 0.5).clip(0, 255).astype(np.uint8)
    return out


def glossy(scene_u8: np.ndarray, ground_line: float) -> bool:
    """Whether the ground has hardly any texture and bright highlights: below `ground_line` (share of the height)."""
    small = images.resize(scene_u8, lighting.LOOK_PX, lighting.LOOK_PX)[round(ground_line * lighting.LOOK_PX) :]
    if small.shape[0] < 8:
        return False
    luminance = small.mean(axis=2)
    texture = float(np.median(np.abs(ndimage.laplace(luminance))))
    highlight = float(np.quantile(luminance, 0.98) - np.median(luminance))
    return texture < 1.5 and highlight > 40
