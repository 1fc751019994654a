"""What CLIP's score does not see in a finished picture, measured on the stored file's pixels."""

import numpy as np
from scipy import ndimage

from adbooster.pictures import images

LOOK_PX = 320


BLACK, WHITE = 5, 250  # levels at or beyond which light is lost


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
    luminance = picture @ np.array([0.2126, 0.7152, 0.0722], np.float32)
    seen = luminance[background]
    return {
        "sharpness": float(ndimage.laplace(luminance)[background].std()),
        "exposure": float(seen.mean()) / 255,
        "clipped_share": float(((seen <= BLACK) | (seen >= WHITE)).mean()),
    }
