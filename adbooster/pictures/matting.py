"""Product masks: closed-form matting (Levin et al., 2008), guided upsampling (He et al., 2013), measurements."""

import numpy as np
import pymatting
from PIL import Image
from scipy import ndimage


def refine(image_u8: np.ndarray, probability: np.ndarray, band_px: int) -> np.ndarray:
    """Closed-form matting (Levin et al., 2008; pymatting) in the band round the edge; elsewhere 0 or 255.

    returns uint8 [H,W]; a map with no sure product or no sure background comes back only rounded
    """
    disc = ndimage.generate_binary_structure(2, 1)
    product = ndimage.binary_erosion(probability > 0.9, disc, iterations=band_px)
    background = np.logical_not(ndimage.binary_dilation(probability > 0.1, disc, iterations=band_px))
    if not product.any() or not background.any():
        return (probability * 255).round().astype(np.uint8)
    trimap = np.where(product, 1.0, np.where(background, 0.0, 0.5))
    alpha = pymatting.estimate_alpha_cf(image_u8 / 255.0, trimap)
    alpha = ((alpha - 0.02) / 0.96).clip(0, 1)  # solver noise at either end is not transparency
    return (alpha * 255).round().astype(np.uint8)


def refine_large(image_u8: np.ndarray, probability: np.ndarray, band_px: int, solve_px: int) -> np.ndarray:
    """`refine` for photos over `solve_px` pixels: solved on the product's box scaled to that, brought back along edges.

    The system that closed-form matting solves grows with the pixels (12 megapixels take minutes and gigabytes), so it
    is solved small and its alpha is upsampled by a guided filter (He et al., 2013, section 3.5), as local linear
    functions of the photo's grey.
    """
    out = np.zeros(probability.shape, np.uint8)
    found = np.argwhere(probability[::4, ::4] > 0.1) * 4
    if not len(found):
        return (probability * 255).round().astype(np.uint8)
    low = np.maximum(found.min(0) - 4 * band_px, 0)
    high = np.minimum(found.max(0) + 4 * band_px + 4, probability.shape)
    box = slice(low[0], high[0]), slice(low[1], high[1])
    photo, probability = image_u8[box], probability[box]
    scale = min(1.0, (solve_px / probability.size) ** 0.5)
    height, width = (max(1, round(n * scale)) for n in probability.shape)
    small = np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BOX))
    rough = np.asarray(Image.fromarray(probability).resize((width, height), Image.Resampling.BILINEAR))
    solved = refine(small, rough, max(2, round(band_px * scale)))
    out[box] = solved if scale == 1 else _guided_upsample(photo, small, solved)
    return out


def _guided_upsample(photo_u8: np.ndarray, small_u8: np.ndarray, alpha_u8: np.ndarray, radius: int = 2) -> np.ndarray:
    """Alpha uint8 [h,w] of the small photo [h,w,3] to the size of the photo [H,W,3]; sure parts stay 0 and 255."""
    grey = np.asarray(Image.fromarray(small_u8).convert("L"), np.float32) / 255
    alpha = alpha_u8.astype(np.float32) / 255

    def mean(x: np.ndarray) -> np.ndarray:
        return ndimage.uniform_filter(x, 2 * radius + 1)

    mean_grey, mean_alpha = mean(grey), mean(alpha)
    slope = (mean(grey * alpha) - mean_grey * mean_alpha) / (mean(grey * grey) - mean_grey**2 + 1e-4)
    offset = mean_alpha - slope * mean_grey
    height, width = photo_u8.shape[:2]

    def large(x: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(x).resize((width, height), Image.Resampling.BILINEAR))

    full = np.asarray(Image.fromarray(photo_u8).convert("L"), np.float32) / 255
    out = large(mean(slope)) * full + large(mean(offset))
    sure = large(np.where(_flat(alpha_u8, 0), 0, np.where(_flat(alpha_u8, 255), 255, 128)).astype(np.uint8))
    out = (out.clip(0, 1) * 255).round().astype(np.uint8)
    return np.where(sure < 4, 0, np.where(sure > 251, 255, out)).astype(np.uint8)


def _flat(alpha_u8: np.ndarray, value: int) -> np.ndarray:
    return ndimage.binary_erosion(alpha_u8 == value, iterations=2, border_value=1)


def measure(image_u8: np.ndarray, mask_u8: np.ndarray) -> dict[str, float | int]:
    """What a product mask is judged by.

    mask_area_share    share of the picture that is white
    mask_border_share  share of the picture's border that is white
    mask_pieces        parts that hang together and hold at least 2 % of the white
    outside_deviation  largest standard deviation of a channel (0-255) outside the mask; 0 if nothing is outside
    """
    white = mask_u8 > 127
    border = np.concatenate([white[0], white[-1], white[1:-1, 0], white[1:-1, -1]])
    parts = np.zeros(white.shape, np.int32)
    ndimage.label(white, np.ones((3, 3)), parts)
    sizes = np.bincount(parts.ravel())[1:]
    outside = image_u8[mask_u8 < 10]
    return {
        "mask_area_share": float(white.mean()),
        "mask_border_share": float(border.mean()),
        "mask_pieces": int((sizes >= 0.02 * white.sum()).sum()),
        "outside_deviation": float(outside.std(axis=0).max()) if len(outside) else 0.0,
    }
