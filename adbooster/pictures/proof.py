"""Proof that the product is unaltered: its pixels in a picture against the photo's, as level difference and PSNR."""

import numpy as np
from scipy import ndimage

from adbooster.pictures.cutouts import Cutout
from adbooster.pictures.layout import Box


def product_difference(picture_u8: np.ndarray, cutout: Cutout, box: Box) -> int:
    """Largest difference (0-255) between the picture and the photo where the product is solid; 0 = never altered."""
    return int(np.abs(_product_error(picture_u8, cutout, box)).max(initial=0))


def product_psnr(picture_u8: np.ndarray, cutout: Cutout, box: Box) -> float:
    """Peak signal-to-noise ratio in dB of the product in a lossy picture, where it is solid; 99 if nothing differs."""
    error = _product_error(picture_u8, cutout, box).astype(np.float64)
    mean_square = float((error**2).mean()) if error.size else 0.0
    return min(99.0, 10 * float(np.log10(255**2 / mean_square))) if mean_square else 99.0


def solid(product_u8: np.ndarray) -> np.ndarray:
    """Where a product is compared, bool [H,W]: its solid part (255) without its rim, or all of it where it has no more."""
    whole = product_u8 == 255
    inner = np.zeros_like(whole)  # its four neighbours are there as well
    inner[1:-1, 1:-1] = whole[1:-1, 1:-1] & whole[:-2, 1:-1] & whole[2:, 1:-1] & whole[1:-1, :-2] & whole[1:-1, 2:]
    return inner if inner.any() else whole if whole.any() else product_u8 > 0


def psnr_of(before: np.ndarray, after: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of uint8 [N,3] pixels; 99 if nothing differs."""
    square = float(((before.astype(np.float32) - after) ** 2).mean()) if len(before) else 0.0
    return min(99.0, 10 * float(np.log10(255**2 / square))) if square else 99.0


def _product_error(picture_u8: np.ndarray, cutout: Cutout, box: Box) -> np.ndarray:
    product = cutout.scaled(box.width_px, box.height_px)
    solid = product.alpha == 255
    return picture_u8[box.slices][solid].astype(np.int16) - product.pixels[solid]


def identity(picture_u8: np.ndarray, cutout: Cutout, box: Box) -> dict:
    """How the product differs from its photo: the largest level difference, and PSNR inside the eroded mask.

    picture_u8  uint8 [H,W,3] of the stored file
    returns     product_max_diff (0-255, where the product is solid) and psnr_db (solid part eroded by 1 px; 99: equal,
                None: nothing is left of it)
    """
    product = cutout.scaled(box.width_px, box.height_px)
    inside = np.asarray(ndimage.binary_erosion(product.alpha == 255), bool)
    error = picture_u8[box.slices][inside].astype(np.float64) - product.pixels[inside]
    square = float((error**2).mean()) if error.size else None
    psnr = None if square is None else min(99.0, 10 * float(np.log10(255**2 / square))) if square else 99.0
    return {"product_max_diff": product_difference(picture_u8, cutout, box), "psnr_db": psnr}
