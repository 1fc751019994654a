"""Which part of a creative a slot shows: the largest with the product where the slot wants it, or why there is none."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from adbooster.channels.presets import RATIO_TOLERANCE, Slot
from adbooster.pictures.layout import Box

MOST_EXTENSION = 3.0  # times the creative's area that a frame may have; beyond it little of the scene would be left
NEAR = 1.05  # a frame that is larger than wanted by less is taken at the wanted size: its pixels stay as they are


class Framed(NamedTuple):
    """The part of a creative that a slot shows.

    frame   in the creative's pixels; it reaches beyond its edges where more scene has to be painted; None: there is none
    size    (width, height) of the rendition: the frame's, or the wanted size where the frame is larger
    reason  None: a crop fills the slot; otherwise needs_extension, too_small or product_outside
    """

    frame: Box | None
    size: tuple[int, int] | None
    reason: str | None


@dataclass(frozen=True)
class _Axis:
    """One axis of a frame of length n that starts at s: s is at least every p + q n of `lows`, at most every one of `highs`."""

    lows: tuple[tuple[float, float], ...]
    highs: tuple[tuple[float, float], ...]
    centre_px: float
    length_px: int

    def bounds(self, n: float) -> tuple[float, float]:
        return max(p + q * n for p, q in self.lows), min(p + q * n for p, q in self.highs)

    def start(self, n: int) -> int | None:
        """Where a frame of n pixels starts: the product lies in it as in the creative, as far as the bounds allow."""
        low, high = (math.ceil(self.bounds(n)[0] - 1e-9), math.floor(self.bounds(n)[1] + 1e-9))
        return min(max(round(self.centre_px * (1 - n / self.length_px)), low), high) if low <= high else None

    def lengths(self) -> tuple[float, float]:
        """The shortest and the longest n for which the bounds leave a place; shortest > longest: there is none."""
        least, most = 0.0, math.inf
        for p, q in self.lows:
            for r, s in self.highs:  # p + q n <= r + s n
                slope, room = q - s, r - p
                if slope > 0:
                    most = min(most, room / slope)
                elif slope < 0:
                    least = max(least, room / slope)
                elif room < 0:
                    return math.inf, 0.0
        return least, most


def frame(size: tuple[int, int], product: Box, slot: Slot) -> Framed:
    """What a slot shows of a creative of (width, height) `size` with a product in a box; the product is never scaled up."""
    aspect = slot.wanted_px[0] / slot.wanted_px[1]
    smallest = max(slot.min_px[0], math.floor(slot.min_px[1] * aspect))
    inside = _axes(size, product, slot, within=True)
    least, most = _widths(inside, product, slot, aspect)
    if slot.wanted_px[0] <= most < NEAR * slot.wanted_px[0]:
        most = max(least, slot.wanted_px[0])
    if (box := _largest(inside, max(least, smallest), most, slot)) is not None:
        return Framed(box, _scaled(box, slot), None)
    beyond = _axes(size, product, slot, within=False)
    least, most = _widths(beyond, product, slot, aspect)
    if least > most:
        return Framed(None, None, "product_outside")
    least = max(least, smallest)
    wanted = min(max(size[0], size[1] * aspect, math.ceil(least) + 2), most)
    if least > most or wanted * wanted / aspect > MOST_EXTENSION * size[0] * size[1]:
        return Framed(None, None, "too_small")
    box = _largest(beyond, least, wanted, slot)
    return Framed(box, _scaled(box, slot), "needs_extension") if box else Framed(None, None, "product_outside")


def _axes(size: tuple[int, int], product: Box, slot: Slot, within: bool) -> tuple[_Axis, _Axis]:
    safe, place = slot.safe_area, slot.product
    return (
        _axis(size[0], product.x_px, product.width_px, (safe.left, safe.right), place.centre_x, within),
        _axis(size[1], product.y_px, product.height_px, (safe.top, safe.bottom), place.centre_y, within),
    )


def _axis(
    length: int, start: int, n: int, safe: tuple[float, float], centre: tuple[float, float], within: bool
) -> _Axis:
    """The bounds of a frame in which the product's pixels `start` to `start + n` lie off the margins, its middle in `centre`."""
    middle = start + n / 2
    lows = [(start + n, -(1 - safe[1])), (middle, -centre[1])] + [(0, 0)] * within
    highs = [(start, -safe[0]), (middle, -centre[0])] + [(length, -1)] * within
    return _Axis(tuple(lows), tuple(highs), middle, length)


def _widths(axes: tuple[_Axis, _Axis], product: Box, slot: Slot, aspect: float) -> tuple[float, float]:
    """The smallest and largest width of a frame that holds the product as the slot wants it."""
    (least_x, most_x), (least_y, most_y) = (axis.lengths() for axis in axes)
    longer, shorter = (
        max(product.width_px, product.height_px),
        min(1.0, 1 / aspect),
    )  # of the product; of a frame 1 wide
    small, large = (longer / (share * shorter) for share in reversed(slot.product.scale))
    return max(least_x, least_y * aspect, small), min(most_x, most_y * aspect, large)


def _largest(axes: tuple[_Axis, _Axis], least: float, most: float, slot: Slot) -> Box | None:
    """The largest frame in whole pixels between two widths; None if there is none."""
    wide, high = slot.wanted_px
    for width in range(math.floor(most + 1e-9), max(math.ceil(least - 1e-9), math.floor(most) - 16) - 1, -1):
        exact = width * high / wide
        for height in (round(exact), math.ceil(exact), math.floor(exact)):
            if width < slot.min_px[0] or height < slot.min_px[1]:
                continue
            if abs(width / height / (slot.ratio[0] / slot.ratio[1]) - 1) > RATIO_TOLERANCE:
                continue
            x, y = axes[0].start(width), axes[1].start(height)
            if x is not None and y is not None:
                return Box(x, y, width, height)
    return None


def _scaled(box: Box, slot: Slot) -> tuple[int, int]:
    return slot.wanted_px if box.width_px > slot.wanted_px[0] else (box.width_px, box.height_px)
