"""Where the product stands: cutting it from its photo, placing it in a picture, and putting it back untouched."""

from dataclasses import dataclass

import numpy as np
import pymatting

from adbooster.images import resize

GREY = 127
ON = 127  # a mask value above this belongs to the product


@dataclass(frozen=True)
class Box:
    """The product's box in a picture, in pixels of that picture; `layout` in tables/creatives."""

    x_px: int
    y_px: int
    width_px: int
    height_px: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.y_px, self.y_px + self.height_px), slice(self.x_px, self.x_px + self.width_px)


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
    ys, xs = np.nonzero(product_mask_u8 > ON)
    window = slice(ys.min(), ys.max() + 1), slice(xs.min(), xs.max() + 1)
    pixels, alpha = photo_u8[window], product_mask_u8[window]
    estimated = pymatting.estimate_foreground_ml(pixels / 255.0, alpha / 255.0)
    colours = (estimated.clip(0, 1) * 255).round().astype(np.uint8)
    return Cutout(pixels, np.where(alpha[..., None] == 255, pixels, colours), alpha)


def place(cutout: Cutout, side_px: int, seed: int, scale: tuple[float, float], ground: tuple[float, float]) -> Box:
    """Stand the product on the ground of a square picture; one seed, one place.

    scale   range of the product's longer side as a share of the picture's; the product is scaled down or 1:1, never up
    ground  range of its lower edge, as a share of the picture's height
    """
    rng = np.random.default_rng(seed)
    height, width = cutout.alpha.shape
    factor = min(1.0, rng.uniform(*scale) * side_px / max(height, width))
    width, height = max(1, round(width * factor)), max(1, round(height * factor))
    x = round((side_px - width) * rng.uniform(0.3, 0.7))
    y = min(side_px, round(side_px * rng.uniform(*ground))) - height
    return Box(x, max(0, y), width, height)


def paint_inputs(cutout: Cutout, box: Box, side_px: int, paint_px: int) -> tuple[np.ndarray, np.ndarray]:
    """What the model sees: the product on grey at its own size.

    returns  (image uint8 [P,P,3], product mask uint8 [P,P], 255 = product)
    """
    grey = np.full((side_px, side_px, 3), GREY, np.uint8)
    mask = np.zeros((side_px, side_px), np.uint8)
    mask[box.slices] = cutout.scaled(box.width_px, box.height_px).alpha
    image = resize(compose(grey, cutout, box), paint_px, paint_px)
    return image, np.where(resize(mask, paint_px, paint_px) > ON, 255, 0).astype(np.uint8)


def compose(background_u8: np.ndarray, cutout: Cutout, box: Box) -> np.ndarray:
    """The product before a background, both uint8 [S,S,3]; where alpha is 255 the pixels are the (scaled) photo's."""
    product = cutout.scaled(box.width_px, box.height_px)
    out = background_u8.copy()
    alpha = product.alpha[..., None].astype(np.float32) / 255
    mixed = product.colours * alpha + out[box.slices] * (1 - alpha)
    out[box.slices] = np.where(product.alpha[..., None] == 255, product.pixels, mixed.round().astype(np.uint8))
    return out


def product_difference(picture_u8: np.ndarray, cutout: Cutout, box: Box) -> int:
    """Largest difference (0-255) between the picture and the photo where the product is solid; 0 = never altered."""
    product = cutout.scaled(box.width_px, box.height_px)
    solid = product.alpha == 255
    found, wanted = picture_u8[box.slices][solid], product.pixels[solid]
    return int(np.abs(found.astype(np.int16) - wanted).max(initial=0))


def training_crop(mask_u8: np.ndarray, seed: int, share: tuple[float, float] = (0.4, 0.8)) -> Box:
    """A random square of a photo in which the product takes `share` of the side (as near as the photo allows)."""
    rng = np.random.default_rng(seed)
    height, width = mask_u8.shape
    ys, xs = np.nonzero(mask_u8 > ON)
    longest = max(ys.max() - ys.min(), xs.max() - xs.min()) + 1
    side = int(np.clip(round(longest / rng.uniform(*share)), 1, min(height, width)))
    lows = np.maximum([xs.max() + 1 - side, ys.max() + 1 - side], 0)
    highs = np.minimum([xs.min(), ys.min()], [width - side, height - side])
    x, y = (int(rng.integers(min(lo, hi), max(lo, hi) + 1)) for lo, hi in zip(lows, highs, strict=True))
    return Box(x, y, side, side)
