"""Encoded pictures to arrays and back. The only place that decodes: fully, or not at all."""

import io

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 64_000_000
# All that Pillow was seen to raise on thousands of damaged files.
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


class UnreadableImage(ValueError):
    """The bytes are not a picture that can be decoded in full; its text says why."""


def decode(image: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Encoded bytes to uint8 [H,W,3] RGB: upright by EXIF, first frame, transparency over white.

    raises  UnreadableImage for anything truncated, damaged, unknown or over `max_pixels`
    """
    try:
        with Image.open(io.BytesIO(image)) as opened:
            if opened.width * opened.height > max_pixels:
                raise UnreadableImage(f"{opened.width} x {opened.height} pixels, allowed are {max_pixels}")
            opened.load()
            upright = ImageOps.exif_transpose(opened)
            if upright.has_transparency_data:
                rgba = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            return np.asarray(upright.convert("RGB"))
    except UnreadableImage:
        raise
    except _BROKEN as e:
        raise UnreadableImage(str(e)) from e


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
