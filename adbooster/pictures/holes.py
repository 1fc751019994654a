"""Where a plain page shows through a product: loops, handles, lattices, spokes that a network at 320 px fills in."""

from typing import Literal, NamedTuple

import numpy as np
from scipy import ndimage

Holes = Literal["never", "sure", "all"]
LEAST_PX = 12
_ALIKE = 4.0  # levels; the page itself
_NEARLY = 12.0  # levels; what JPEG leaves of a page between two edges
_NOISIEST = 4.0  # levels; a page with more is a scene
_SURE = 0.9  # probability of the product above which the network is certain
_STEP = 20.0  # levels by which the product differs from the page, within the band's half-width of the hole's edge
_ENCLOSED = 0.7  # share of that edge; shading that passes through the page's colour has no edge on one side
_SEEDS_MAX = 40_000  # pixels that the page is fitted to


class Open(NamedTuple):
    """bool [H,W] each: the page itself, seen through the product, and the rim about it, to be settled by matting.

    unsure  regions of the page's colour that were left closed
    """

    page: np.ndarray
    rim: np.ndarray
    unsure: np.ndarray


class Page(NamedTuple):
    """The colour of a plain page over a picture: a plane for each channel (1, and the shares of height and width), [3,3],
    and its noise in levels."""

    plane: np.ndarray
    noise: float

    def part(self, top: float, left: float, high: float, wide: float) -> "Page":
        """Of a part of the picture, given in shares of it."""
        level, down, across = self.plane
        return Page(np.stack([level + top * down + left * across, high * down, wide * across]), self.noise)

    def away(self, image_u8: np.ndarray) -> np.ndarray:
        """Levels from the page's colour, float [H,W]."""
        high, wide = image_u8.shape[:2]
        rows, columns = np.arange(high)[:, None, None] / high, np.arange(wide)[None, :, None] / wide
        return _largest(np.abs(image_u8 - (self.plane[0] + rows * self.plane[1] + columns * self.plane[2])))


def find(
    image_u8: np.ndarray,
    probability: np.ndarray,
    background: np.ndarray,
    band_px: int,
    which: Holes,
    page: Page | None = None,
) -> Open:
    """Regions of the page's colour that the product encloses.

    background  bool [H,W], where the network and the band leave no doubt
    page        where more of it was seen than is in the picture; None: fitted to the background
    which       `sure`: not where the network is certain of the product, as a print of the page's colour is no hole;
                `all`: those too; `never`: nothing is looked for

    Of a background that no plane fits, nothing is opened.
    """
    none = np.zeros(probability.shape, bool)
    page = None if which == "never" else page or fit(image_u8, background)
    if page is None:
        return Open(none, none, none)
    away, noise = page.away(image_u8), page.noise
    alike = away <= _ALIKE + 2 * noise
    parts = np.zeros(away.shape, np.int32)
    n = int(ndimage.label(away <= _NEARLY + 2 * noise, output=parts))  # pyright: ignore[reportArgumentType]
    sizes = np.bincount(parts[alike], minlength=n + 1)
    outside = np.bincount(parts[background], minlength=n + 1) > 0
    opened, unsure, rim = none.copy(), none.copy(), none.copy()
    for i, window in enumerate(ndimage.find_objects(parts), 1):
        if outside[i] or sizes[i] < LEAST_PX:
            continue
        near = tuple(slice(max(s.start - band_px - 1, 0), s.stop + band_px + 1) for s in window)
        region = ndimage.binary_fill_holes(parts[near] == i) & ~background[near]
        seeds = alike[near] & region
        certain = np.median(probability[near][seeds]) > _SURE
        if _enclosed(region, away[near], band_px) < _ENCLOSED or (certain and which == "sure"):
            unsure[near] |= region
            continue
        opened[near] |= seeds
        rim[near] |= ndimage.binary_dilation(region, iterations=band_px)
    return Open(opened, rim & ~opened, unsure)


def _enclosed(region: np.ndarray, away: np.ndarray, reach_px: int) -> float:
    """Share of a region's edge from which the colour goes `_STEP` away from the page's within `reach_px` outward."""
    distance, nearest = np.zeros(region.shape), np.zeros((2, *region.shape), np.int32)
    ndimage.distance_transform_edt(~region, return_indices=True, distances=distance, indices=nearest)
    outside = (distance > 0) & (distance <= reach_px)
    step = np.full(region.shape, -1.0)
    np.maximum.at(step, (nearest[0, outside], nearest[1, outside]), away[outside])
    edge = step[step >= 0]
    return float((edge > _STEP).mean()) if len(edge) else 0.0


def fit(image_u8: np.ndarray, background: np.ndarray) -> Page | None:
    """The page of a picture by its background, bool [H,W]; None where that is no plain page."""
    ys, xs = np.nonzero(background)
    if len(ys) < 100:
        return None
    some = slice(None, None, -(-len(ys) // _SEEDS_MAX))
    ys, xs = ys[some], xs[some]
    high, wide = background.shape
    terms = np.stack([np.ones(len(ys)), ys / high, xs / wide], 1)
    seen, kept = image_u8[ys, xs].astype(float), np.ones(len(ys), bool)
    plane, noise = np.zeros((3, 3)), 0.0
    for _ in range(3):  # the product's shadow on the page is left out
        plane = np.linalg.lstsq(terms[kept], seen[kept], rcond=None)[0]
        apart = _largest(np.abs(seen - terms @ plane))
        noise = float(1.48 * np.median(apart[kept]))
        kept = apart <= _ALIKE + 2 * noise
        if kept.mean() < 0.5:
            return None
    return Page(plane, noise) if noise <= _NOISIEST else None


def _largest(values: np.ndarray) -> np.ndarray:
    """Over three channels, the last axis; numpy's own `max` takes ten times as long there."""
    return np.maximum(np.maximum(values[..., 0], values[..., 1]), values[..., 2])
