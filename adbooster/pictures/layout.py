"""Where the product stands: cutting it from its photo, placing it in a picture, and putting it back untouched."""

from dataclasses import dataclass

import numpy as np

from adbooster.contracts.recipe import Stand
from adbooster.pictures.cutouts import ON, Cutout


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


def widest(width_px: int | np.ndarray, height_px: int | np.ndarray, aspect: float | np.ndarray) -> float | np.ndarray:
    """The shorter side of the largest window of an aspect (width / height) that a photo holds; arrays or numbers."""
    return np.minimum(width_px / np.maximum(aspect, 1.0), height_px * np.minimum(aspect, 1.0))


def canvas(side_px: int, aspect: float) -> tuple[int, int]:
    """(width, height) of a picture of about side_px^2 pixels, in multiples of 8."""
    wide = aspect**0.5
    return round(side_px * wide / 8) * 8, round(side_px / wide / 8) * 8
