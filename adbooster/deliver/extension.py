"""More scene round a creative: what the model sees of it, what it paints joined to it, and how well that shows.

Every pixel of the creative that is kept stays as it is; what is painted gives way to it.
Sizes: W x H of a frame in the creative's pixels, w x h as it is painted.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from adbooster.pictures import compositing, images
from adbooster.pictures.layout import Box

MULTIPLE = 8  # of a painting's sides
LINES = 6  # beside a seam, on its inner side, that show what steps the scene has of its own
FLOOR = 1.5  # levels: smaller steps are not seen
_FINENESS = (128, 32)  # of them a creative's shorter side: what is a fine step, and a coarse one


class Canvas(NamedTuple):
    """What is painted for a frame.

    seen_u8  uint8 [h,w,3], the creative where it is kept, grey elsewhere
    known    where that is, in whole pixels of the canvas
    """

    seen_u8: np.ndarray
    known: Box

    @property
    def known_u8(self) -> np.ndarray:
        """uint8 [h,w], 255 = the creative, 0 = to be painted"""
        mask = np.zeros(self.seen_u8.shape[:2], np.uint8)
        mask[self.known.slices] = 255
        return mask


def kept(size: tuple[int, int], frame: Box, product: Box, edge_px: int) -> Box:
    """The part of a creative of (width, height) `size` that a frame shows as it is, in the frame's pixels.

    edge_px  strip along edges that the frame reaches beyond, which is painted anew; never any of the product's box
    """
    sides = []
    for length, (start, n), (low, high) in (
        (size[0], (frame.x_px, frame.width_px), (product.x_px, product.x_px + product.width_px)),
        (size[1], (frame.y_px, frame.height_px), (product.y_px, product.y_px + product.height_px)),
    ):
        first = start if start >= 0 else max(0, min(edge_px, low))
        last = start + n if start + n <= length else min(length, max(length - edge_px, high))
        sides.append((first - start, last - first))
    return Box(sides[0][0], sides[1][0], sides[0][1], sides[1][1])


def canvas(master_u8: np.ndarray, frame: Box, there: Box, scale: float) -> Canvas:
    """A creative, uint8 [H,W,3], in a frame that reaches beyond it, as the model sees it.

    there  what is kept of it, in the frame
    scale  painted pixels for one of the creative's, as when it was painted: so both are equally sharp
    """
    wide, high = (math.ceil(n * scale / MULTIPLE - 1e-6) * MULTIPLE for n in (frame.width_px, frame.height_px))
    whole_wide, whole_high = _whole((wide, high), scale)
    ends = (
        (there.y_px, whole_high - there.y_px - there.height_px),
        (there.x_px, whole_wide - there.x_px - there.width_px),
    )
    # Its edges go on where nothing is known, so that scaling mixes no grey into them.
    seen = images.resize(np.pad(_part(master_u8, frame, there), (*ends, (0, 0)), mode="edge"), wide, high)
    x, width = _covered(there.x_px, there.width_px, wide / whole_wide)
    y, height = _covered(there.y_px, there.height_px, high / whole_high)
    shown = np.full_like(seen, compositing.GREY)
    known = Box(x, y, width, height)
    shown[known.slices] = seen[known.slices]
    return Canvas(shown, known)


def join(master_u8: np.ndarray, painted_u8: np.ndarray, frame: Box, there: Box, scale: float) -> np.ndarray:
    """What is kept of the creative, and what was painted round it: uint8 [H,W,3] of the frame.

    Where the model's own picture of the creative differs from it along the edge, in tone or colour, what it painted
    beyond is drawn by as much, less with every pixel away from the edge.
    """
    size = _whole(painted_u8.shape[1::-1], scale)
    scene = images.resize(painted_u8, *size, bicubic=True)[: frame.height_px, : frame.width_px]
    known = _part(master_u8, frame, there)
    scene = _drawn(scene, known, there)
    scene[there.slices] = known
    return scene


def holds(extended_u8: np.ndarray, master_u8: np.ndarray, frame: Box, there: Box) -> bool:
    """Whether a picture of the frame has every pixel of the creative that is kept."""
    whole = extended_u8.shape == (frame.height_px, frame.width_px, 3)
    return whole and np.array_equal(extended_u8[there.slices], _part(master_u8, frame, there))


def seam(picture_u8: np.ndarray, there: Box) -> float:
    """How much the edge of a creative shows in a picture: the step across it over the scene's own; 1: not at all.

    The step is the difference, over all channels, between the means of blocks on both sides of the edge; the nine tenths'
    quantile along it counts, and the worst of the sides, and of fine and coarse blocks. The scene's own steps are those
    between blocks one after another on the creative's side.
    """
    found = [1.0]
    for n in _FINENESS:
        step = max(1, round(min(there.width_px, there.height_px) / n))
        found += [_step(*lines, step) for lines in _across(picture_u8, there, step)]
    return max(found)


def _whole(painted: tuple[int, ...], scale: float) -> tuple[int, int]:
    """(width, height) in the creative's pixels of what is painted: the frame, or a little more."""
    return math.ceil(painted[0] / scale), math.ceil(painted[1] / scale)


def _covered(start: int, n: int, factor: float) -> tuple[int, int]:
    """Start and length of the pixels that n from `start` on cover whole once they are scaled."""
    first, last = math.ceil(start * factor - 1e-6), math.floor((start + n) * factor + 1e-6)
    return first, max(1, last - first)


def _part(master_u8: np.ndarray, frame: Box, there: Box) -> np.ndarray:
    return master_u8[Box(frame.x_px + there.x_px, frame.y_px + there.y_px, there.width_px, there.height_px).slices]


def _drawn(scene_u8: np.ndarray, known_u8: np.ndarray, there: Box) -> np.ndarray:
    """The scene, uint8 [H,W,3], with its tones outside `there` drawn to those of what is known there, uint8 [h,w,3].

    First by how the model's own picture of what is known differs from it, far into the scene; then by what is left of
    the step across the edge, near it.
    """
    scene, known, side = scene_u8.astype(np.float32), known_u8.astype(np.float32), min(known_u8.shape[:2])
    far, near = max(2, side // 64), max(1, side // 128)
    own = scene[there.slices]
    off = [_along((a - b).mean(axis=1), 2 * far) for a, b in zip(_bands(known, far), _bands(own, far), strict=True)]
    scene += _spread(off, there, scene.shape, side / 4)
    beyond = _bands(scene, near, there)
    left = [_along(a.mean(axis=1) - b.mean(axis=1), 2 * near) for a, b in zip(_bands(known, near), beyond, strict=True)]
    scene += _spread(left, there, scene.shape, side / 24)
    return scene.clip(0, 255).round().astype(np.uint8)


def _along(steps: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter1d(steps, sigma, axis=0, mode="nearest")


def _bands(picture: np.ndarray, n: int, beyond: Box | None = None) -> list[np.ndarray]:
    """n lines along the left, right, upper and lower edge, each [length,lines,3]: a picture's own, or those just outside a box.

    Where the picture ends at the box its own last line stands for what would be outside.
    """
    high, wide = picture.shape[:2]
    box = beyond or Box(n, n, wide - 2 * n, high - 2 * n)
    (ys, xs), whole = box.slices, (slice(None), slice(None)) if beyond is None else box.slices
    columns = (_outside(xs.start - n, xs.start, wide), _outside(xs.stop, xs.stop + n, wide))
    rows = (_outside(ys.start - n, ys.start, high), _outside(ys.stop, ys.stop + n, high))
    beside = [picture[whole[0]][:, c] for c in columns]
    return beside + [picture[r][:, whole[1]].transpose(1, 0, 2) for r in rows]


def _outside(start: int, stop: int, length: int) -> np.ndarray:
    return np.arange(start, stop).clip(0, length - 1)


def _spread(steps: list[np.ndarray], there: Box, shape: tuple[int, ...], fade_px: float) -> np.ndarray:
    """Steps along the left, right, upper and lower edge of a box, spread over the picture outside it, less with the distance."""
    (ys, xs), (left, right, top, bottom) = there.slices, steps
    field = np.zeros(shape, np.float32)
    field[ys, : xs.start], field[ys, xs.stop :] = left[:, None], right[:, None]
    field[: ys.start, xs], field[ys.stop :, xs] = top[None], bottom[None]
    for rows, across, end in ((slice(0, ys.start), top, 0), (slice(ys.stop, None), bottom, -1)):
        field[rows, : xs.start] = (across[0] + left[end]) / 2
        field[rows, xs.stop :] = (across[-1] + right[end]) / 2
    down, along = (
        np.maximum(np.maximum(part.start - i, i - part.stop + 1), 0)
        for part, i in zip((ys, xs), map(np.arange, shape[:2]), strict=True)
    )
    return field * np.exp(-np.hypot(down[:, None], along[None]) / fade_px)[..., None].astype(np.float32)


def _across(picture_u8: np.ndarray, there: Box, step: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each edge that the picture reaches beyond: lines [n,length,3] just outside, nearest last, and inside, nearest first."""
    (ys, xs), found = there.slices, []
    for array, across, along in ((picture_u8.transpose(1, 0, 2), xs, ys), (picture_u8, ys, xs)):
        for lines, start, stop in (
            (array, across.start, across.stop),
            (array[::-1], len(array) - across.stop, len(array) - across.start),
        ):
            if start:
                found.append((lines[max(0, start - step) : start, along], lines[start:stop, along][: LINES * step]))
    return found


def _step(outside: np.ndarray, inside: np.ndarray, step: int) -> float:
    lines = np.concatenate([outside.mean(axis=0, keepdims=True, dtype=np.float32), _means(inside, step, 0)])
    blocks = _means(lines, 2 * step, 1)
    steps = np.sqrt((np.diff(blocks, axis=0) ** 2).mean(axis=2))  # the first is across the edge
    seen = np.quantile(steps, 0.9, axis=1)
    return float(seen[0] / max(np.median(seen[1:]) if len(seen) > 1 else 0.0, FLOOR))


def _means(array: np.ndarray, n: int, axis: int) -> np.ndarray:
    """Means of n neighbours along an axis; what is left over at its end is left out."""
    n = max(1, min(n, array.shape[axis]))
    starts = np.arange(0, array.shape[axis] - n + 1, n)
    return np.add.reduceat(np.take(array, range(len(starts) * n), axis).astype(np.float32), starts, axis) / n
