"""A picture's scene without its product, and marks to find duplicates: perceptual hash, signs of the CLIP vector."""

from functools import cache

import imagehash
import numpy as np
from PIL import Image
from scipy import ndimage

from adbooster.pictures import images

SCENE_PX = 160


SIGNS = 256


def scene_only(picture_u8: np.ndarray, alpha_u8: np.ndarray) -> np.ndarray:
    """The picture without its product, uint8, longer side SCENE_PX: what lies round the product flows into its place."""
    high, wide = alpha_u8.shape
    factor = SCENE_PX / max(high, wide)
    small = max(1, round(wide * factor)), max(1, round(high * factor))
    picture = images.resize(picture_u8, *small).astype(np.float32)
    product = ndimage.maximum_filter(images.resize(alpha_u8, *small), 7)  # as far as resampling carries its colours
    weight = (product == 0).astype(np.float32)[..., None]
    flow = _blurred(np.concatenate([picture * weight, weight], axis=2))
    filled = picture * weight + flow[..., :3] / np.maximum(flow[..., 3:], 1e-6) * (1 - weight)
    return filled.clip(0, 255).round().astype(np.uint8)


def _blurred(array: np.ndarray) -> np.ndarray:
    """float32 [h,w,C] through a Gaussian of SCENE_PX / 12, as two matrix products: its kernel is as wide as the picture."""
    high, wide, channels = array.shape
    rows = (_gaussian(high) @ array.reshape(high, -1)).reshape(high, wide, channels)
    return _gaussian(wide) @ rows


@cache
def _gaussian(side_px: int) -> np.ndarray:
    return ndimage.gaussian_filter1d(np.eye(side_px, dtype=np.float32), SCENE_PX / 12, axis=0)


def marks(scene_u8: np.ndarray, vector: np.ndarray) -> tuple[str, str]:
    """A scene's perceptual hash (DCT, 64 bits) and the signs of 256 fixed projections of its CLIP vector, in hex."""
    signs = np.packbits(_projection(len(vector)) @ vector > 0).tobytes().hex()
    return str(imagehash.phash(Image.fromarray(scene_u8))), signs


@cache
def _projection(width: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((SIGNS, width))
