"""The product over a painting: as the model sees it and as a preview at painting size, and composed at full size."""

from dataclasses import dataclass

import numpy as np

from adbooster.pictures.cutouts import ON, Cutout
from adbooster.pictures.images import resize
from adbooster.pictures.layout import Box

GREY = 127


@dataclass(frozen=True)
class Overlay:
    """A product at the size that is painted, and what follows from it.

    premultiplied   uint8 [h,w,3], the product's colours times alpha
    alpha           uint8 [h,w]
    """

    premultiplied: np.ndarray
    alpha: np.ndarray

    @property
    def image(self) -> np.ndarray:
        """What the model sees: the product on grey, uint8 [h,w,3]."""
        share = self.alpha[..., None] / np.float32(255)
        return (self.premultiplied + GREY * (1 - share)).clip(0, 255).round().astype(np.uint8)

    @property
    def product_mask(self) -> np.ndarray:
        """uint8 [h,w], 0 or 255 = product"""
        return np.where(self.alpha > ON, 255, 0).astype(np.uint8)

    def paste(self, painted_u8: np.ndarray) -> np.ndarray:
        """The product before a painting, both uint8 [h,w,3]: a preview; the stored picture is composed at full size."""
        share = self.alpha[..., None] / np.float32(255)
        return (painted_u8 * (1 - share) + self.premultiplied).clip(0, 255).round().astype(np.uint8)


def overlay(cutout: Cutout, box: Box, size: tuple[int, int], paint_size: tuple[int, int]) -> Overlay:
    """What the model sees of a product in `box` of a picture of (width, height) `size`, at the size it paints."""
    product = cutout.scaled(box.width_px, box.height_px)
    wide, high = size
    alpha, colours = np.zeros((high, wide), np.uint8), np.zeros((high, wide, 3), np.uint8)
    alpha[box.slices] = product.alpha
    colours[box.slices] = (product.colours * (product.alpha[..., None] / np.float32(255))).round().astype(np.uint8)
    return Overlay(resize(colours, *paint_size), resize(alpha, *paint_size))


def placed_alpha(cutout: Cutout, box: Box, size: tuple[int, int]) -> np.ndarray:
    """The product's alpha in a whole picture of (width, height) `size`, uint8 [H,W]."""
    alpha = np.zeros(size[::-1], np.uint8)
    alpha[box.slices] = cutout.scaled(box.width_px, box.height_px).alpha
    return alpha


def compose(background_u8: np.ndarray, cutout: Cutout, box: Box) -> np.ndarray:
    """The product before a background, uint8 [H,W,3]; where alpha is 255 the pixels are the (scaled) photo's."""
    product = cutout.scaled(box.width_px, box.height_px)
    out = background_u8.copy()
    alpha = product.alpha[..., None].astype(np.float32) / 255
    mixed = product.colours * alpha + out[box.slices] * (1 - alpha)
    out[box.slices] = np.where(product.alpha[..., None] == 255, product.pixels, mixed.round().astype(np.uint8))
    return out
