"""Encoded pictures to arrays and back. The only place that decodes: fully, or not at all."""

import io
import re
import struct
from functools import cache

import numpy as np
from PIL import ExifTags, Image

from adbooster.pictures import colours

MAX_PIXELS = 64_000_000
MAX_PYTHON_PIXELS = 1_000_000  # of formats that Pillow decodes in Python, at some microseconds a pixel
MAX_SCANS, MAX_SCAN_PIXELS = 1_000, 1_500_000_000  # of a JPEG: a decoder goes over all of it for each; 10 are usual
MAX_SEGMENTS = 20_000
_READS, _BYTES_A_READ = 20_000, 256  # a parser may read so often, and once more for so many bytes of the file


_RUN_PROGRAMS = {"EPS", "WMF"}  # Pillow hands these to Ghostscript or the system
_WRAPPERS = {"IPTC"}  # and looks into these for any format at all, those two among them


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
        if image.startswith(b"\xff\xd8"):
            _check_scans(image)
        file = _Patient(image)
        with Image.open(file, formats=_formats()) as opened:
            _check_header(opened, max_pixels)
            if _decoded_in_python(opened):
                file.left += 8 * opened.width * opened.height
            opened.load()
            _check_size(opened.size, max_pixels)  # of an icon it is known only now
            picture = colours.srgb(_upright(opened))
            if picture.mode != "RGBA":
                return np.asarray(picture), None
            return _over_white(picture), np.asarray(picture.getchannel("A"))
    except UnreadableImage:
        raise
    except (
        Exception
    ) as e:  # some forty decoders on hostile bytes: whatever they raise, the row is bad and the job is not
        raise UnreadableImage(f"{type(e).__name__}: {e}") from e


class _Patient(io.BytesIO):
    """A file that can be read so many times only, as parsers in Python take a step a read, and some read a byte."""

    def __init__(self, content: bytes):
        super().__init__(content)
        self.left = _READS + len(content) // _BYTES_A_READ

    def read(self, size: int | None = -1, /) -> bytes:
        self._count()
        return super().read(size)

    def readline(self, size: int | None = -1, /) -> bytes:
        self._count()
        return super().readline(size)

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise UnreadableImage("its header or metadata is in more parts than a picture has")


def _check_header(opened: Image.Image, max_pixels: int) -> None:
    """Refuse, before anything is decoded, what a decoder would take minutes or gigabytes for."""
    _check_size(opened.size, max_pixels)
    if _decoded_in_python(opened):
        _check_size(opened.size, min(max_pixels, MAX_PYTHON_PIXELS))
    if any(tile[0] == "BLP1" for tile in getattr(opened, "tile", [])):
        raise UnreadableImage("it holds a JPEG of any number of scans")
    tags = getattr(opened, "tag_v2", {})
    _check_size((int(tags.get(322, 1)), int(tags.get(323, 1))), max_pixels)  # a tile of a TIFF is decoded as a whole


def _decoded_in_python(opened: Image.Image) -> bool:
    return any(tile[0] in Image.DECODERS for tile in getattr(opened, "tile", []))


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise UnreadableImage(f"{size[0]} x {size[1]} pixels, allowed are {max_pixels}")


_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd8\x01])", re.DOTALL)  # but those that stand in the pixels' code


def _check_scans(jpeg: bytes) -> None:
    at, scans, pixels = 2, 0, 0
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(jpeg, at)
        if found is None or found[1] == b"\xd9":
            break
        at, marker = found.end(), found[1][0]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(jpeg) >= at + 7:
            height, width = struct.unpack_from(">HH", jpeg, at + 3)
            pixels = max(pixels, height * width)
        scans += marker == 0xDA
        at += int.from_bytes(jpeg[at : at + 2])
    else:
        raise UnreadableImage(f"a JPEG of more than {MAX_SEGMENTS} segments")
    if scans > MAX_SCANS or scans * pixels > MAX_SCAN_PIXELS:
        raise UnreadableImage(f"a JPEG of {pixels} pixels in {scans} scans")


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
    return [name for name in Image.OPEN if name not in _RUN_PROGRAMS | _WRAPPERS]


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(opened: Image.Image) -> Image.Image:
    """Turned as its EXIF says; Pillow's own function copies what is upright, and writes EXIF again of what is not."""
    try:
        turn = _TURNS.get(opened.getexif().get(ExifTags.Base.Orientation, 1))
    except (OSError, ValueError, SyntaxError, TypeError, AttributeError, LookupError, ArithmeticError, struct.error):
        return opened  # a damaged note on how to turn a whole picture
    return opened if turn is None else opened.transpose(turn)


def _over_white(picture: Image.Image) -> np.ndarray:
    """RGBA as it looks on white paper, uint8 [H,W,3]; in strips, as the whole takes three copies of 64 megapixels."""
    out = np.empty((picture.height, picture.width, 3), np.uint8)
    for top in range(0, picture.height, 512):
        strip = picture.crop((0, top, picture.width, min(top + 512, picture.height)))
        on_white = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
        out[top : top + 512] = np.asarray(on_white.convert("RGB"))
    return out


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
