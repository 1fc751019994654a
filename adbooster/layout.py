"""Where the product stands: cutting it from its photo, placing it in a picture, and putting it back untouched."""

from dataclasses import dataclass

import numpy as np
import pymatting

from adbooster.images import resize
from adbooster.recipe import Stand

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


def place(cutout: Cutout, size: tuple[int, int], stand: Stand, seed: int) -> Box:
    """Stand the product on the ground of a picture of (width, height) pixels; one seed, one place.

    The product is scaled down or 1:1, never up, and lies wholly inside.
    """
    rng = np.random.default_rng(seed)
    wide, high = size
    height, width = cutout.alpha.shape
    factor = min(1.0, rng.uniform(*stand.product_scale) * min(size) / max(height, width))
    width, height = max(1, round(width * factor)), max(1, round(height * factor))
    x = round((wide - width) * rng.uniform(*stand.anchor_x))
    y = min(high, round(high * rng.uniform(*stand.ground_line))) - height
    return Box(x, max(0, y), width, height)


@dataclass(frozen=True)
class Overlay:
    """The product as the model sees it, and what pastes it back on a painting of that size.

    image           uint8 [h,w,3], the product on grey
    product_mask    uint8 [h,w], 0 or 255 = product
    premultiplied   float32 [h,w,3], the product's colours times alpha
    alpha           float32 [h,w,1], 0-1
    """

    image: np.ndarray
    product_mask: np.ndarray
    premultiplied: np.ndarray
    alpha: np.ndarray

    def paste(self, painted_u8: np.ndarray) -> np.ndarray:
        """The product before a painting, both uint8 [h,w,3]: a preview; the stored picture is composed at full size."""
        return (painted_u8 * (1 - self.alpha) + self.premultiplied).clip(0, 255).round().astype(np.uint8)


def overlay(cutout: Cutout, box: Box, size: tuple[int, int], paint_size: tuple[int, int]) -> Overlay:
    """What the model sees of a product in `box` of a picture of (width, height) `size`, at the size it paints."""
    product = cutout.scaled(box.width_px, box.height_px)
    wide, high = size
    alpha, colours = np.zeros((high, wide), np.uint8), np.zeros((high, wide, 3), np.uint8)
    alpha[box.slices] = product.alpha
    colours[box.slices] = (product.colours * (product.alpha[..., None] / np.float32(255))).round().astype(np.uint8)
    small = resize(alpha, *paint_size)
    share, premultiplied = small[..., None] / np.float32(255), resize(colours, *paint_size).astype(np.float32)
    image = (premultiplied + GREY * (1 - share)).clip(0, 255).round().astype(np.uint8)
    return Overlay(image, np.where(small > ON, 255, 0).astype(np.uint8), premultiplied, share)


def compose(background_u8: np.ndarray, cutout: Cutout, box: Box) -> np.ndarray:
    """The product before a background, uint8 [H,W,3]; where alpha is 255 the pixels are the (scaled) photo's."""
    product = cutout.scaled(box.width_px, box.height_px)
    out = background_u8.copy()
    alpha = product.alpha[..., None].astype(np.float32) / 255
    mixed = product.colours * alpha + out[box.slices] * (1 - alpha)
    out[box.slices] = np.where(product.alpha[..., None] == 255, product.pixels, mixed.round().astype(np.uint8))
    return out


def product_difference(picture_u8: np.ndarray, cutout: Cutout, box: Box) -> int:
    """Largest difference (0-255) between the picture and the photo where the product is solid; 0 = never altered."""
    return int(np.abs(_product_error(picture_u8, cutout, box)).max(initial=0))


def product_psnr(picture_u8: np.ndarray, cutout: Cutout, box: Box) -> float:
    """Peak signal-to-noise ratio in dB of the product in a lossy picture, where it is solid; 99 if nothing differs."""
    error = _product_error(picture_u8, cutout, box).astype(np.float64)
    mean_square = float((error**2).mean()) if error.size else 0.0
    return min(99.0, 10 * float(np.log10(255**2 / mean_square))) if mean_square else 99.0


def _product_error(picture_u8: np.ndarray, cutout: Cutout, box: Box) -> np.ndarray:
    product = cutout.scaled(box.width_px, box.height_px)
    solid = product.alpha == 255
    return picture_u8[box.slices][solid].astype(np.int16) - product.pixels[solid]


def training_crop(mask_u8: np.ndarray, seed: int, share: tuple[float, float] = (0.4, 0.8), aspect: float = 1.0) -> Box:
    """A random window of a photo in which the product's longer side takes `share` of the window's shorter side.

    Drawn from what the photo allows of that range, or as near to it; `aspect` is the window's width over its height.
    """
    rng = np.random.default_rng(seed)
    height, width = mask_u8.shape
    ys, xs = np.nonzero(mask_u8 > ON)
    longest = max(ys.max() - ys.min(), xs.max() - xs.min()) + 1
    most = widest(width, height, aspect)
    smallest = min(max(share[0], longest / most), share[1])
    short = min(longest / rng.uniform(smallest, share[1]), most)
    wide = int(np.clip(round(short * max(aspect, 1.0)), 1, width))
    high = int(np.clip(round(short * max(1 / aspect, 1.0)), 1, height))
    lows = np.maximum([xs.max() + 1 - wide, ys.max() + 1 - high], 0)
    highs = np.minimum([xs.min(), ys.min()], [width - wide, height - high])
    x, y = (int(rng.integers(min(lo, hi), max(lo, hi) + 1)) for lo, hi in zip(lows, highs, strict=True))
    return Box(x, y, wide, high)


def widest(width_px, height_px, aspect):
    """The shorter side of the largest window of an aspect (width / height) that a photo holds; arrays or numbers."""
    return np.minimum(width_px / np.maximum(aspect, 1.0), height_px * np.minimum(aspect, 1.0))


def canvas(side_px: int, aspect: float) -> tuple[int, int]:
    """(width, height) of a picture of about side_px^2 pixels, in multiples of 8."""
    wide = aspect**0.5
    return round(side_px * wide / 8) * 8, round(side_px / wide / 8) * 8
