"""Product masks: closed-form matting (Levin et al., 2008), guided upsampling (He et al., 2013), measurements."""

import time
from typing import Any, NamedTuple

import numpy as np
import pymatting
from PIL import Image
from scipy import ndimage, sparse

from adbooster.pictures import holes
from adbooster.pictures.holes import Holes

# Packshots have bands of 2,000 to 50,000 pixels and converge in 30 to 80 iterations. The first two bounds depend on the
# picture alone, so that its mask is the same on every machine. The one in seconds is for a machine that stalls.
MAX_BAND_PX = 150_000
MAX_ITERATIONS = 500
MAX_SOLVER_S = 120.0
# Measured on renders with true alpha: what the colours leave open is settled by the network (with a weight of 0 a scene's
# texture settles it, and badly), and the residual at which the errors end to fall.
_EPSILON = 1e-5
_PRIOR = 2e-3
_RESIDUAL = 1e-3
_NETWORK_PX = 320


class Refined(NamedTuple):
    """A product mask, uint8 [H,W], how its edge was made, and what share of it may be a hole.

    matting  closed-form matting
    guided   the network's probabilities along the photo's edges, as matting came to no end within its bounds
    network  the probabilities as they are, as no product or no background was sure
    """

    mask_u8: np.ndarray
    how: str
    unsure_share: float = 0.0


class _Unsolved(Exception):
    pass


def product_mask(
    image_u8: np.ndarray, map_HW: np.ndarray, refine_px: int | None, solve_px: int, through: Holes = "sure"
) -> Refined:
    """The mask of a photo, uint8 [H,W,3], from a network's map of probabilities, float32 of any size.

    refine_px  half-width of the band round the edge that is refined; None: 1 % of the longer side, which is what a
               network at 320 px leaves unclear
    solve_px   pixels above which it is refined on a smaller picture; `through` as in holes.find
    """
    probability = upsampled(map_HW, image_u8.shape[:2])
    band_px = refine_px or max(2, round(max(image_u8.shape[:2]) / 100))
    if probability.size > solve_px:
        return refine_large(image_u8, probability, band_px, solve_px, through)
    return refine(image_u8, probability, band_px, through)


def upsampled(map_HW: np.ndarray, size_px: tuple[int, ...]) -> np.ndarray:
    """A map of probabilities, float32, at size_px (H, W), 0-1."""
    height, width = size_px
    return np.asarray(Image.fromarray(map_HW).resize((width, height), Image.Resampling.BILINEAR)).clip(0, 1)


def refine(
    image_u8: np.ndarray,
    probability: np.ndarray,
    band_px: int,
    through: Holes = "sure",
    page: holes.Page | None = None,
) -> Refined:
    """Closed-form matting (Levin et al., 2008; pymatting) in the band round the edge; elsewhere 0 or 255.

    Where a plain page shows through the product, it is background, its rim part of the band; `through` and `page` as in
    holes.find.

    A map with no sure product or no sure background comes back only rounded. A band that is too large or a system
    that does not converge is filled from the probabilities by a guided filter instead.
    """
    product = _distance(probability <= 0.9, border=True) > band_px
    background = _distance(probability > 0.1, border=False) > band_px
    if not product.any() or not background.any():
        return Refined((probability * 255).round().astype(np.uint8), "network")
    seen = holes.find(image_u8, probability, background, band_px, through, page)
    product, background = product & ~(seen.page | seen.rim), (background & ~seen.rim) | seen.page
    trimap = np.where(product, 1.0, np.where(background, 0.0, 0.5))
    weights = np.where(seen.rim, 0.0, _PRIOR)  # about a hole the network is wrong
    try:
        alpha = _solve(image_u8 / 255.0, trimap, probability, weights)
    except _Unsolved:
        guided = _guided(image_u8, probability)
        mask = np.where(product, 255, np.where(background, 0, guided)).astype(np.uint8)
        return Refined(mask, "guided", _share(seen.unsure, mask))
    alpha = ((alpha - 0.02) / 0.96).clip(0, 1)  # solver noise at either end is not transparency
    mask = (alpha * 255).round().astype(np.uint8)
    return Refined(mask, "matting", _share(seen.unsure, mask))


def _share(unsure: np.ndarray, mask_u8: np.ndarray) -> float:
    white = mask_u8 > 127
    return float((unsure & white).sum() / max(white.sum(), 1))


def _distance(there: np.ndarray, border: bool) -> np.ndarray:
    """Steps from each pixel to the nearest one of `there`, or, where `border`, to the outside; endless if there is none.

    In one pass, however wide the band; a step of erosion each takes minutes on a long strip.
    """
    padded = np.pad(there, 1, constant_values=border)
    if not padded.any():
        return np.full(there.shape, np.iinfo(np.int32).max)
    return np.asarray(ndimage.distance_transform_cdt(~padded, metric="taxicab"))[1:-1, 1:-1]


def _solve(image: np.ndarray, trimap: np.ndarray, prior: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Alpha, float [H,W], by closed-form matting with a prior (section 5 there) within the bounds above; else _Unsolved.

    The prior's weight on the diagonal keeps the system well conditioned: a cheap preconditioner does, and none fails.
    """
    band = int((trimap == 0.5).sum())
    if band > MAX_BAND_PX or min(trimap.shape) < 3:  # a window of the Laplacian is 3 x 3
        raise _Unsolved(f"a band of {band} pixels")
    # What lies further from the band than two windows' radii has no part in the system.
    inner = tuple(_span((trimap == 0.5).any(axis)) for axis in (1, 0))
    known = trimap[inner].ravel()
    unknown = known == 0.5
    rows = pymatting.cf_laplacian(image[inner], _EPSILON, is_known=~unknown)[unknown]
    weight, start = weights[inner].ravel()[unknown], prior[inner].ravel()[unknown].astype(float)
    system = sparse.csr_matrix(rows[:, unknown] + sparse.diags_array(weight))
    wanted = weight * start - rows[:, ~unknown] @ known[~unknown]
    ends = time.monotonic() + MAX_SOLVER_S

    def check(*step: Any) -> None:
        if not np.isfinite(step[-1]) or time.monotonic() > ends:  # the norm of what is left
            raise _Unsolved("no number, or no time left")

    with np.errstate(all="ignore"):
        solver = {"maxiter": MAX_ITERATIONS, "rtol": _RESIDUAL, "callback": check}
        try:
            solved = pymatting.cg(system, wanted, start, M=pymatting.jacobi(system), **solver)
        except (ValueError, ZeroDivisionError) as e:  # no convergence
            raise _Unsolved(str(e)) from e
    if not np.isfinite(solved).all():
        raise _Unsolved("no number")
    out = trimap.copy()
    out[trimap == 0.5] = solved.clip(0, 1)
    return out


def _span(there: np.ndarray) -> slice:
    found = np.flatnonzero(there)
    return slice(max(found[0] - 3, 0), found[-1] + 4) if len(found) else slice(0, len(there))


def _guided(image_u8: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """The probabilities, uint8 [H,W], from the network's own size along the photo's edges."""
    height, width = probability.shape
    scale = min(1.0, _NETWORK_PX / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.asarray(Image.fromarray(image_u8).resize(size, Image.Resampling.BOX))
    rough = np.asarray(Image.fromarray(probability).resize(size, Image.Resampling.BILINEAR))
    return _guided_upsample(image_u8, small, (rough * 255).round().astype(np.uint8))


def refine_large(
    image_u8: np.ndarray, probability: np.ndarray, band_px: int, solve_px: int, through: Holes = "sure"
) -> Refined:
    """`refine` for photos over `solve_px` pixels: solved on the product's box scaled to that, brought back along edges.

    The system that closed-form matting solves grows with the pixels (12 megapixels take minutes and gigabytes), so it
    is solved small and its alpha is upsampled by a guided filter (He et al., 2013, section 3.5), as local linear
    functions of the photo's grey.
    """
    found = np.argwhere(probability[::4, ::4] > 0.1) * 4
    if not len(found):
        return Refined((probability * 255).round().astype(np.uint8), "network")
    out = np.zeros(probability.shape, np.uint8)
    low = np.maximum(found.min(0) - 4 * band_px, 0)
    high = np.minimum(found.max(0) + 4 * band_px + 4, probability.shape)
    box = slice(low[0], high[0]), slice(low[1], high[1])
    page = None if through == "never" else _page(image_u8, probability, band_px, solve_px, box)
    photo, probability = image_u8[box], probability[box]
    small, rough, scale = _scaled(photo, probability, solve_px)
    solved, how, unsure = refine(small, rough, max(2, round(band_px * scale)), through, page)
    out[box] = solved if scale == 1 else _guided_upsample(photo, small, solved)
    return Refined(out, how, unsure)


def _scaled(image_u8: np.ndarray, probability: np.ndarray, most_px: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Photo and map, scaled to so many pixels where they have more; and the scale."""
    scale = min(1.0, (most_px / probability.size) ** 0.5)
    height, width = (max(1, round(n * scale)) for n in probability.shape)
    small = np.asarray(Image.fromarray(image_u8).resize((width, height), Image.Resampling.BOX))
    return small, np.asarray(Image.fromarray(probability).resize((width, height), Image.Resampling.BILINEAR)), scale


def _page(
    image_u8: np.ndarray, probability: np.ndarray, band_px: int, most_px: int, box: tuple[slice, slice]
) -> holes.Page | None:
    """The page as seen in the whole photo, in the product's box: in there a shadow may cover most of it."""
    small, rough, scale = _scaled(image_u8, probability, most_px)
    page = holes.fit(small, _distance(rough > 0.1, border=False) > max(2, round(band_px * scale)))
    height, width = probability.shape
    rows, columns = box
    shares = rows.start / height, columns.start / width, (rows.stop - rows.start) / height
    return page and page.part(*shares, (columns.stop - columns.start) / width)


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
    return {
        "mask_area_share": float(white.mean()),
        "mask_border_share": float(border.mean()),
        "mask_pieces": int((sizes >= 0.02 * white.sum()).sum()),
        "outside_deviation": _deviation(image_u8, mask_u8 < 10),
    }


def _deviation(image_u8: np.ndarray, where: np.ndarray) -> float:
    """Largest standard deviation of a channel there, from how often each level occurs; 0 if there is no pixel."""
    levels, largest = np.arange(256.0), 0.0
    found = Image.fromarray(image_u8).histogram(Image.fromarray(where.astype(np.uint8) * 255))
    for counts in np.reshape(found, (3, 256)):
        if counts.any():
            mean = np.average(levels, weights=counts)
            largest = max(largest, float(np.average((levels - mean) ** 2, weights=counts)) ** 0.5)
    return largest
