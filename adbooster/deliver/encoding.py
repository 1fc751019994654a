"""A rendition's file: sRGB with its XMP packet, at the highest quality that its bytes allow; and what that did to the product."""

import io
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from adbooster.channels.presets import FileFormat
from adbooster.pictures import colours, proof

EXTENSIONS = {"jpeg": "jpg", "png": "png", "webp": "webp"}
MOST_PIXELS = 16_384  # of the product whose colours are compared, evenly chosen: more tell the same


class Encoded(NamedTuple):
    """An encoded picture; `quality` is null where it is lossless."""

    content: bytes
    format: FileFormat
    quality: int | None


class Fidelity(NamedTuple):
    """What a lossy file did to the product.

    psnr_db       99: nothing differs
    delta_e_mean  CIEDE2000 of its pixels
    delta_e_p99   its 99th percentile
    """

    psnr_db: float
    delta_e_mean: float
    delta_e_p99: float


def encode(
    picture_u8: np.ndarray, kind: FileFormat, max_bytes: int, quality: tuple[int, int], xmp: bytes
) -> Encoded | None:
    """The picture in at most `max_bytes`; None if it does not fit.

    picture_u8  uint8 [H,W,3], sRGB
    quality     (floor, ceiling) of the lossy formats: the ceiling where it fits, else the highest that does, by bisection
    xmp         the packet of its marks, which counts as well
    """
    if kind == "png":
        content = _encoded(picture_u8, kind, 0, xmp)
        return Encoded(content, kind, None) if len(content) <= max_bytes else None
    low, high = quality
    best = _fitting(picture_u8, kind, high, max_bytes, xmp)
    if best is not None or low == high:
        return best
    best = _fitting(picture_u8, kind, low, max_bytes, xmp)
    while best is not None and high - low > 1:
        middle = (low + high) // 2
        if (found := _fitting(picture_u8, kind, middle, max_bytes, xmp)) is not None:
            best, low = found, middle
        else:
            high = middle
    return best


def _fitting(picture_u8: np.ndarray, kind: FileFormat, quality: int, max_bytes: int, xmp: bytes) -> Encoded | None:
    content = _encoded(picture_u8, kind, quality, xmp)
    return Encoded(content, kind, quality) if len(content) <= max_bytes else None


def _encoded(picture_u8: np.ndarray, kind: FileFormat, quality: int, xmp: bytes) -> bytes:
    out, picture = io.BytesIO(), Image.fromarray(picture_u8)
    if kind == "png":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode())  # Pillow's `xmp` is for the other two
        picture.save(out, "PNG", pnginfo=info, icc_profile=_srgb())
    elif kind == "webp":
        picture.save(out, "WEBP", quality=quality, method=4, use_sharp_yuv=True, xmp=xmp, icc_profile=_srgb())
    else:  # 4:4:4: a product's colours keep their resolution
        picture.save(out, "JPEG", quality=quality, subsampling=0, optimize=True, xmp=xmp, icc_profile=_srgb())
    return out.getvalue()


@cache
def _srgb() -> bytes:
    """An sRGB profile; its date is left out, so that the same picture is the same file."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile[:24] + bytes(12) + profile[36:]


def fidelity(before_u8: np.ndarray, after_u8: np.ndarray, product_u8: np.ndarray) -> Fidelity:
    """How far the product in a file is from the product before it was encoded.

    before_u8, after_u8  uint8 [H,W,3]
    product_u8           uint8 [H,W], 255 = product; its solid part is compared, without its rim where it has more
    """
    box = tuple(_span(np.asarray(product_u8.any(axis=axis))) for axis in (1, 0))
    at = np.flatnonzero(proof.solid(product_u8[box]))
    before, after = (picture[box].reshape(-1, 3).take(at, axis=0) for picture in (before_u8, after_u8))
    some = slice(None, None, max(1, -(-len(before) // MOST_PIXELS)))
    distance = colours.ciede2000(colours.lab(before[some]), colours.lab(after[some])) if len(before) else np.zeros(1)
    return Fidelity(proof.psnr_of(before, after), float(distance.mean()), float(np.percentile(distance, 99)))


def _span(there: np.ndarray) -> slice:
    """From the first to the last that is there."""
    at = np.flatnonzero(there)
    return slice(at[0], at[-1] + 1) if len(at) else slice(0)
