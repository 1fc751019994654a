"""Odd pictures from a seed: whole ones of every format, mode and content, and their mutations."""

import contextlib
import io
import itertools
import random
import re
import struct

import numpy as np
from PIL import Image

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16", "F", "YCbCr", "LAB", "I")
CONTENTS = ("product", "flat", "noise", "checkerboard", "stripes", "gradient", "clear", "posterized", "specks", "edges")
_MARKS = re.compile(
    rb"\xff[\xc0-\xfe]|IHDR|IDAT|PLTE|tRNS|IEND|VP8[ LX]|ALPH|ANMF|ispe|iloc|meta|mdat|\xff[\x4f-\x93]|[!,]"
)
_INTERESTING = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF)


def formats() -> list[str]:
    Image.init()
    return sorted(Image.SAVE)


def drawn(rng: random.Random, content: str, width: int, height: int) -> Image.Image:
    """A picture, RGBA, of what masks and matting have trouble with, or of a product."""
    level = rng.randrange(256)
    rows, columns = np.indices((height, width), np.int32)
    if content == "product":
        away = np.hypot((rows - height / 2) / max(height, 1), (columns - width / 2) / max(width, 1))
        grey = np.where(away < 0.3, level // 2, 250 - away * 20)
    elif content == "checkerboard":
        grey = (rows // (1 << rng.randrange(6)) + columns // (1 << rng.randrange(6))) % 2 * 255
    elif content == "stripes":
        grey = rows // rng.randrange(1, 20) % 2 * 255
    elif content == "gradient":
        grey = (rows + columns) * 255 // max(height + width, 1)
    elif content == "specks":
        grey = np.where((rows * 31 + columns * 17) % 256 < 2, 0, 255)
    elif content == "edges":
        grey = np.where((rows < height // 8) | (columns < width // 8), level, 255)
    else:
        grey = np.full((height, width), level)
    picture = Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if content in ("noise", "posterized"):
        side = (width, height) if content == "noise" else (max(width // 16, 1), max(height // 16, 1))
        values = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (side[1], side[0], 3), np.uint8)
        picture = Image.fromarray(values).resize((width, height))
        picture = Image.fromarray(np.asarray(picture) // 64 * 64) if content == "posterized" else picture
    picture.putalpha(0 if content == "clear" else 255)
    if content == "gradient":
        picture.putalpha(Image.fromarray(grey.astype(np.uint8)))
    return picture


def in_mode(picture: Image.Image, mode: str) -> Image.Image:
    if mode in ("I;16", "I", "F"):
        values = np.asarray(picture.convert("L")).astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode])
        return Image.fromarray(values * 257 if mode == "I;16" else values)
    if mode == "PA":
        return picture.convert("RGB").convert("P").convert("PA")
    return picture.convert("RGB").convert(mode) if mode in ("P", "CMYK", "YCbCr", "LAB") else picture.convert(mode)


def written(rng: random.Random, picture: Image.Image, kind: str) -> bytes | None:
    """The picture in a format, with one of its options now and then; None if the format has no such mode."""
    options: dict = rng.choice(({}, {"progressive": True}, {"interlace": True}, {"lossless": True}, {"save_all": True}))
    if kind == "TIFF":
        options = {"compression": rng.choice((None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "tiff_lzma"))}
    if kind in ("WEBP", "AVIF"):
        options |= {"method": 0} if kind == "WEBP" else {"speed": 10}
    out = io.BytesIO()
    with contextlib.suppress(OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError, struct.error):
        picture.save(out, kind, **options)
        return out.getvalue()
    return None


def mutated(rng: random.Random, content: bytes, other: bytes, times: int = 0) -> bytes:
    """The file with one to four changes of different kinds; `other` is what is spliced in."""
    for _ in range(times or rng.randrange(1, 5)):
        if len(content) < 4:
            break
        content = rng.choice((_flipped, _cut, _numbers, _moved, _doubled, _spliced))(rng, content, other)
    return content


def _flipped(rng: random.Random, content: bytes, other: bytes) -> bytes:
    out = bytearray(content)
    reach = len(out) if rng.random() < 0.5 else min(len(out), 200)  # headers are small
    for _ in range(1 << rng.randrange(6)):
        out[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    return bytes(out)


def _cut(rng: random.Random, content: bytes, other: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def _numbers(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Another number where a dimension, a count or an offset may stand."""
    out = bytearray(content)
    for _ in range(rng.randrange(1, 4)):
        layout = rng.choice((">H", "<H", ">I", "<I"))
        size = struct.calcsize(layout)
        value = rng.choice((*_INTERESTING, rng.randrange(2**32))) & (256**size - 1)
        struct.pack_into(layout, out, rng.randrange(max(min(len(out), 400) - size, 1)), value)
    return bytes(out)


def _parts(rng: random.Random, content: bytes) -> list[bytes]:
    """Cut where chunks, segments and boxes begin, or anywhere."""
    ends = [found.start() for found in _MARKS.finditer(content)][:400] or [
        rng.randrange(len(content)) for _ in range(6)
    ]
    ends = sorted({0, *rng.sample(ends, min(len(ends), 12)), len(content)})
    return [content[a:b] for a, b in itertools.pairwise(ends)]


def _moved(rng: random.Random, content: bytes, other: bytes) -> bytes:
    parts = _parts(rng, content)
    tail = parts[1:]
    rng.shuffle(tail)
    return b"".join(parts[:1] + tail)


def _doubled(rng: random.Random, content: bytes, other: bytes) -> bytes:
    parts = _parts(rng, content)
    at = rng.randrange(len(parts))
    times = min(rng.choice((2, 3, 50, 5000)), 2_000_000 // (len(parts[at]) + 1) + 2)
    return b"".join([*parts[:at], parts[at] * times, *parts[at + 1 :]])


def _spliced(rng: random.Random, content: bytes, other: bytes) -> bytes:
    at, theirs = rng.randrange(len(content)), rng.randrange(max(len(other), 1))
    return content[:at] + other[theirs : theirs + rng.choice((64, 4096, 10**6))] + content[at * rng.randrange(2) :]
