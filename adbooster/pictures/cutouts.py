"""A product cut from its photo."""

from dataclasses import dataclass

import numpy as np

from adbooster.pictures.images import resize


@dataclass(frozen=True)
class Cutout:
    """A product cut from its photo: `pixels` as photographed, `colours` as they are without the photo's background.

    pixels, colours  uint8 [h,w,3]; equal wherever alpha is 255
    alpha            uint8 [h,w]
    """

    pixels: np.ndarray
    colours: np.ndarray
    alpha: np.ndarray

    def scaled(self, width_px: int, height_px: int) -> "Cutout":
        if (height_px, width_px) == self.alpha.shape:
            return self
        pixels, alpha = (resize(a, width_px, height_px) for a in (self.pixels, self.alpha))
        # Premultiplied, so that colours from outside the product cannot leak in over the scaled edge.
        premultiplied = (self.colours.astype(np.float32) * (self.alpha[..., None] / 255)).round().astype(np.uint8)
        share = np.maximum(alpha, 1)[..., None].astype(np.float32) / 255
        colours = (resize(premultiplied, width_px, height_px) / share).clip(0, 255).round().astype(np.uint8)
        return Cutout(pixels, np.where(alpha[..., None] == 255, pixels, colours), alpha)


def cut(photo_u8: np.ndarray, product_mask_u8: np.ndarray) -> Cutout:
    """Crop the photo to the bounding box of mask > 127 and estimate the product's own colours along its edge.

    Source of the estimate: Germer et al., Fast Multi-Level Foreground Estimation, 2020 (pymatting).
    """
    import pymatting  # with numba a second and 100 MiB, for what most processes never do

    ys, xs = np.nonzero(product_mask_u8 > ON)
    window = slice(ys.min(), ys.max() + 1), slice(xs.min(), xs.max() + 1)
    pixels, alpha = photo_u8[window], product_mask_u8[window]
    estimated = pymatting.estimate_foreground_ml(pixels / 255.0, alpha / 255.0)
    colours = (estimated.clip(0, 1) * 255).round().astype(np.uint8)
    return Cutout(pixels, np.where(alpha[..., None] == 255, pixels, colours), alpha)


ON = 127  # a mask value above this belongs to the product
