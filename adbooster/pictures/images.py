"""Encoded pictures to arrays and back. The only place that decodes: fully, or not at all."""

import io
import struct
from functools import cache

import numpy as np
from PIL import Image, ImageOps

from adbooster.pictures import colours

MAX_PIXELS = 64_000_000


_RUN_PROGRAMS = {"EPS", "WMF"}  # Pillow hands these to Ghostscript or the system


class UnreadableImage(ValueError):
    """The bytes are not a picture that can be decoded in full; its text says why."""


def decode(image: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Encoded bytes to uint8 [H,W,3] sRGB: upright by EXIF, first frame, transparency over white.

    raises  UnreadableImage for anything truncated, damaged, unknown or over `max_pixels`
    """
    return decode_with_alpha(image, max_pixels)[0]


def decode_with_alpha(image: bytes, max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray, np.ndarray | None]:
    """As `decode`, and beside it the file's own alpha, uint8 [H,W], or None if it has none."""
    try:
        with Image.open(io.BytesIO(image), formats=_formats()) as opened:
            if opened.width * opened.height > max_pixels:
                raise UnreadableImage(f"{opened.width} x {opened.height} pixels, allowed are {max_pixels}")
            opened.load()
            picture = colours.srgb(_upright(opened))
            if picture.mode != "RGBA":
                return np.asarray(picture), None
            white = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            return np.asarray(white.convert("RGB")), np.asarray(picture.getchannel("A"))
    except UnreadableImage:
        raise
    except (
        Exception
    ) as e:  # some forty decoders on hostile bytes: whatever they raise, the row is bad and the job is not
        raise UnreadableImage(f"{type(e).__name__}: {e}") from e


def source_alpha(image: bytes) -> np.ndarray | None:
    """The file's own alpha as product mask, uint8 [H,W], 255 = product; None if it does not cut anything out."""
    return informative(decode_with_alpha(image)[1])


def informative(alpha_u8: np.ndarray | None) -> np.ndarray | None:
    """The alpha if it cuts something out: clear and opaque parts of size; rounded corners alone do not."""
    if alpha_u8 is None:
        return None
    clear, opaque = (alpha_u8 < 10).mean(), (alpha_u8 > 245).mean()
    return alpha_u8 if clear >= 0.05 and opaque >= 0.005 else None


@cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in Image.OPEN if name not in _RUN_PROGRAMS]


def _upright(opened: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(opened)
    except (OSError, ValueError, SyntaxError, TypeError, AttributeError, LookupError, ArithmeticError, struct.error):
        # a damaged note on how to turn a whole picture
        return opened


def decode_mask(image: bytes) -> np.ndarray:
    """A stored product mask (PNG, 8 bit, 255 = product) to uint8 [H,W]."""
    with Image.open(io.BytesIO(image)) as opened:
        return np.asarray(opened.convert("L"))


def encode_mask(mask_u8: np.ndarray) -> bytes:
    """uint8 [H,W] to PNG; the same bytes for the same pixels."""
    return _encode(mask_u8, "PNG", optimize=False)


def encode_lossless(image_u8: np.ndarray) -> bytes:
    """uint8 [H,W,3] to lossless WebP, pixels exact; the same bytes for the same pixels and Pillow version."""
    return _encode(image_u8, "WEBP", lossless=True, quality=50, method=2, exact=True)


def encode(image_u8: np.ndarray, kind: str, quality: int) -> tuple[bytes, str]:
    """uint8 [H,W,3] to (bytes, extension) as webp_lossless, png, webp or jpeg; `quality` is for the lossy two."""
    if kind == "webp_lossless":
        return encode_lossless(image_u8), "webp"
    if kind == "png":
        return _encode(image_u8, "PNG", optimize=False), "png"
    if kind == "webp":
        return _encode(image_u8, "WEBP", quality=quality, method=4), "webp"
    return _encode(image_u8, "JPEG", quality=quality, subsampling=0, optimize=True), "jpg"


def encode_thumbnail(image_u8: np.ndarray, side_px: int) -> bytes:
    """A small lossy WebP for the gallery, longer side at most `side_px`."""
    picture = Image.fromarray(image_u8)
    picture.thumbnail((side_px, side_px), Image.LANCZOS)
    return _encode(np.asarray(picture), "WEBP", quality=80)


def _encode(array_u8: np.ndarray, kind: str, **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array_u8).save(out, kind, **options)
    return out.getvalue()


def resize(array_u8: np.ndarray, width_px: int, height_px: int, bicubic: bool = False) -> np.ndarray:
    """uint8 [H,W(,3)] resampled: Lanczos down, or bicubic up where asked (soft pictures must not ring)."""
    if array_u8.shape[:2] == (height_px, width_px):
        return array_u8
    how = Image.Resampling.BICUBIC if bicubic else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(array_u8).resize((width_px, height_px), how))
