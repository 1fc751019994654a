"""The scene's exposure, white balance and grain drawn toward the product's, within limits. The product is never changed."""

import numpy as np
from scipy import ndimage

from adbooster.pictures import colours, images
from adbooster.pictures.cutouts import Cutout

LOOK_PX = 96
HALFWAY = 0.5  # of the difference; the whole would take each scene's mood away
NEUTRAL = (
    14  # CIELAB chroma below which a bright surface is taken to be white or grey, and its colour that of the light
)
ENOUGH = 0.05  # share of neutral pixels from which on they are believed in full
KNEE = 0.8  # light above which highlights bend rather than clip
GRAIN_LEAST, GRAIN_MOST = 0.8, 6.0  # levels: less is no grain that one sees, more is a bad photo
_GRAIN_PX = 256


def toned(scene_u8: np.ndarray, cutout: Cutout, stops: float, balance: float) -> np.ndarray:
    """The scene, uint8 [h,w,3], halfway to the product's exposure (at most `stops`) and white balance.

    balance  0-1, the share by which a channel may change at most
    """
    gain = gains(scene_u8, cutout, stops, balance)
    light = (np.arange(256) / 255.0) ** 2.2
    curves = (_rolled(light[:, None] * gain, gain) ** (1 / 2.2) * 255).round().astype(np.uint8)
    return np.stack([curves[:, c][scene_u8[..., c]] for c in range(3)], axis=-1)


def _rolled(light: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Light after a gain, whose highlights keep their steps: from KNEE on it bends to end at white."""
    end = np.maximum(gain, 1.0)
    over = (light - KNEE) / np.maximum(end - KNEE, 1e-6)
    return np.where(light > KNEE, KNEE + (1 - KNEE) * np.minimum(over, 1.0), light)


def gains(scene_u8: np.ndarray, cutout: Cutout, stops: float, balance: float) -> np.ndarray:
    """By what each channel's light is multiplied, float [3].

    A bright product shows that there is light; a dark one shows nothing, as it may just be dark. So a scene is only ever
    made lighter, by the brightest tenths of both. Only surfaces without colour of their own show the colour of the light;
    where product or scene has none, the white balance stays.
    """
    pixels, alpha = (images.resize(a, LOOK_PX, LOOK_PX) for a in (cutout.pixels, cutout.alpha))
    product, scene = pixels[alpha > 250], images.resize(scene_u8, LOOK_PX, LOOK_PX).reshape(-1, 3)
    if len(product) < 20:
        return np.ones(3)
    bright = [float(np.quantile(colours.linear(p).mean(axis=1), 0.9)) for p in (scene, product)]
    exposure = float(np.clip((bright[1] / max(bright[0], 1e-3)) ** HALFWAY, 1, 2.0**stops))
    (scene_light, sure), (product_light, as_sure) = _light_colour(scene), _light_colour(product)
    tint = (product_light / scene_light) ** (HALFWAY * min(sure, as_sure))
    return exposure * np.clip(tint / tint.mean(), 1 - balance, 1 + balance)


def _light_colour(pixels_u8: np.ndarray) -> tuple[np.ndarray, float]:
    """The colour of the light (linear, mean 1) on the neutral and bright of these pixels [n,3], and 0-1 how sure it is."""
    lab = colours.lab(pixels_u8)
    neutral = (np.hypot(lab[:, 1], lab[:, 2]) < NEUTRAL) & (lab[:, 0] > 50)
    if not neutral.any():
        return np.ones(3), 0.0
    mean = colours.linear(pixels_u8[neutral]).astype(np.float64).mean(axis=0)
    return mean / mean.mean(), min(1.0, float(neutral.mean()) / ENOUGH)


def grain_sigma(picture_u8: np.ndarray, alpha_u8: np.ndarray | None = None) -> float:
    """Standard deviation of a picture's noise in levels, where it is smooth (and inside an alpha, where one is given).

    Source: Immerkaer, Fast Noise Variance Estimation, 1996; the median in place of the mean spares edges.
    """
    luminance = picture_u8.astype(np.float32).mean(axis=2)
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    response = np.abs(ndimage.convolve(luminance, kernel, mode="nearest"))
    inside = response if alpha_u8 is None else response[ndimage.minimum_filter(alpha_u8, 5) == 255]
    return float(np.median(inside)) / 0.6745 / 6 if inside.size > 100 else 0.0


def missing_grain(scene_u8: np.ndarray, product: Cutout) -> float:
    """Standard deviation in levels of the noise that a scene lacks beside a product at its size in the picture."""
    return max(0.0, grain_sigma(product.pixels, product.alpha) ** 2 - grain_sigma(scene_u8) ** 2) ** 0.5


def grained(scene_u8: np.ndarray, sigma: float) -> np.ndarray:
    """The scene with grey noise of `sigma` levels, the same for the same size; a tile of it is repeated."""
    if sigma < GRAIN_LEAST:
        return scene_u8
    rng = np.random.default_rng(0)
    tile = (rng.standard_normal((_GRAIN_PX, _GRAIN_PX)) * min(sigma, GRAIN_MOST)).round().astype(np.int16)
    high, wide = scene_u8.shape[:2]
    noise = np.tile(tile, (-(-high // _GRAIN_PX), -(-wide // _GRAIN_PX)))[:high, :wide, None]
    return (scene_u8 + noise).clip(0, 255).astype(np.uint8)
