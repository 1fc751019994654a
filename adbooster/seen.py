"""What CLIP's score does not see in a finished picture, measured on the stored file's pixels."""

import numpy as np
from scipy import ndimage

from adbooster import images
from adbooster.layout import Box, Cutout, product_difference

LOOK_PX = 320
BLACK, WHITE = 5, 250  # levels at or beyond which light is lost


def identity(picture_u8: np.ndarray, cutout: Cutout, box: Box) -> dict:
    """How the product differs from its photo: the largest level difference, and PSNR inside the eroded mask.

    picture_u8  uint8 [H,W,3] of the stored file
    returns     product_max_diff (0-255, where the product is solid) and psnr_db (solid part eroded by 1 px; 99: equal,
                None: nothing is left of it)
    """
    product = cutout.scaled(box.width_px, box.height_px)
    inside = ndimage.binary_erosion(product.alpha == 255)
    error = picture_u8[box.slices][inside].astype(np.float64) - product.pixels[inside]
    square = float((error**2).mean()) if error.size else None
    psnr = None if square is None else min(99.0, 10 * float(np.log10(255**2 / square))) if square else 99.0
    return {"product_max_diff": product_difference(picture_u8, cutout, box), "psnr_db": psnr}


def light(picture_u8: np.ndarray, alpha_u8: np.ndarray) -> dict:
    """Sharpness and exposure of the background, with the product and its rim left out; nulls if nothing is left.

    sharpness      standard deviation of the Laplacian of luminance, in levels, at LOOK_PX a side: 0 is a flat colour
    exposure       mean luminance, 0-1
    clipped_share  share of pixels that are black or white (0-1)
    """
    picture = images.resize(picture_u8, LOOK_PX, LOOK_PX).astype(np.float32)
    product = images.resize(alpha_u8, LOOK_PX, LOOK_PX) > 0
    background = np.logical_not(ndimage.binary_dilation(product, iterations=4))
    if not background.any():
        return {"sharpness": None, "exposure": None, "clipped_share": None}
    luminance = picture @ np.float32([0.2126, 0.7152, 0.0722])
    seen = luminance[background]
    return {
        "sharpness": float(ndimage.laplace(luminance)[background].std()),
        "exposure": float(seen.mean()) / 255,
        "clipped_share": float(((seen <= BLACK) | (seen >= WHITE)).mean()),
    }
