"""Pictures that are not what they say, and such as take a decoder minutes or gigabytes; each a few lines and at most 16 MB."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

SIDE = 7900  # 62 megapixels: just allowed
PAGE = b"<html><script>alert(1)</script></html>"
VECTOR = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def smooth(mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(3).integers(0, 256, (16, 16, 3), np.uint8)
    return Image.fromarray(noise).resize((256, 256)).convert(mode)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 255, marker, len(content) + 2) + content


def in_png(chunks: bytes, at_end: bool = False) -> bytes:
    png = encoded(smooth(), "PNG")
    at = len(png) - 12 if at_end else 33
    return png[:at] + chunks + png[at:]


def in_jpeg(segments: bytes) -> bytes:
    jpeg = encoded(smooth(), "JPEG")
    return jpeg[:2] + segments + jpeg[2:]


def in_gif(blocks: bytes) -> bytes:
    gif = encoded(smooth("P"), "GIF")
    at = gif.index(b",", 13 + 768)
    return gif[:at] + blocks + gif[at:]


def scans(number: int, side_px: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    jpeg = encoded(Image.new("L", (side_px, side_px), 128), "JPEG", progressive=True)
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    return jpeg[:-2] + last * number + jpeg[-2:]


def tiff(
    width: int, height: int, *more: tuple[int, int, int, int], compression: int = 1, content: bytes = b""
) -> bytes:
    """One directory of (tag, type, count, value) that names itself as the next; pixels are said to lie at byte 500."""
    tags = {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 259: (3, 1, compression), 262: (3, 1, 1)}
    tags |= {273: (4, 1, 500), 277: (3, 1, 1), 278: (4, 1, height), 279: (4, 1, max(len(content), 100))}
    tags |= {tag: rest for tag, *rest in more}
    entries = b"".join(struct.pack("<HHII", tag, *tags[tag]) for tag in sorted(tags))
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 8)
    return head.ljust(500, b"\0") + (content or bytes(20_000))


def overlapping_tags() -> bytes:
    """60,000 entries that each hold all of 15 MB."""
    entries = b"".join(struct.pack("<HHII", 1000 + n, 7, 15_000_000, 8) for n in range(60_000))
    return (b"II*\0" + struct.pack("<IH", 8, 60_000) + entries + struct.pack("<I", 8)).ljust(15_500_000, b"\0")


def in_segments(name: bytes, content: bytes) -> bytes:
    return b"".join(segment(0xE1, name + content[n : n + 65_000]) for n in range(0, len(content), 65_000))


def repeated_frame(kind: str, frames: int) -> bytes:
    small = [Image.new("RGB", (16, 16), (n, 2, 3)) for n in (1, 200)]
    whole = encoded(small[0], kind, save_all=True, append_images=small[1:])
    if kind == "GIF":
        at = whole.rindex(b"!\xf9")
        return whole[:at] + whole[at:-1] * frames + b";"
    if kind == "PNG":
        at = whole.rindex(b"fcTL") - 4
        return whole[:at] + whole[at:-12] * frames + whole[-12:]
    at = whole.rindex(b"ANMF")
    body = whole[12:at] + whole[at:] * frames
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def avif_frames(number: int) -> bytes:
    """Three frames of 16 px, and tables that name as many frames as asked for in the zeros behind them."""
    small = [Image.new("RGB", (16, 16), (n, 2, 3)) for n in range(3)]
    whole = encoded(small[0], "AVIF", save_all=True, append_images=small[1:], speed=10)
    frame = struct.unpack_from(">I", whole, whole.index(b"stsz") + 16)[0]
    whole = said(whole, b"stsz", 8, ">II", frame, number)
    return said(said(whole, b"stts", 12, ">I", number), b"stsc", 16, ">I", number) + bytes(frame * number)


def said(content: bytes, mark: bytes, at: int, layout: str, *values: int) -> bytes:
    """The file with other numbers `at` bytes after `mark`."""
    out = bytearray(content)
    struct.pack_into(layout, out, content.index(mark) + at, *values)
    return bytes(out)


def runs_bmp(side_px: int) -> bytes:
    head = struct.pack("<IHHI", 0, 0, 0, 1078) + struct.pack(
        "<IiiHHIIiiII", 40, side_px, side_px, 1, 8, 1, 0, 0, 0, 256, 0
    )
    return b"BM" + head + bytes(1024) + (b"\xff\1" * (side_px // 255 + 1) + b"\0\0") * side_px + b"\0\1"


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("page.html", PAGE * 1000)
    return out.getvalue()


def iptc(content: bytes) -> bytes:
    """An IPTC file that holds a picture of any format; Pillow hands an EPS in it to Ghostscript."""

    def field(record: int, number: int, value: bytes) -> bytes:
        return struct.pack(">BBBH", 0x1C, record, number, len(value)) + value

    sizes = field(3, 20, b"\0\x40") + field(3, 30, b"\0\x40") + field(3, 60, b"\1\0") + field(3, 120, b"\5")
    return sizes + b"".join(field(8, 10, content[n : n + 30_000]) for n in range(0, len(content), 30_000))


def _bomb() -> bytes:
    return zlib.compress(bytes(1_000_000), 9)


def _texts(name: bytes, rest: bytes, number: int) -> bytes:
    return b"".join(chunk(name, b"k%d\0" % n + rest) for n in range(number))


def _avif() -> bytes:
    return encoded(Image.new("RGB", (6000, 6000), (9, 80, 90)), "AVIF", speed=10)


def _jpeg2000(**options) -> bytes:
    return encoded(Image.new("L", (3000, 3000)), "JPEG2000", **options)


def _all(mode: str, kind: str, **options) -> bytes:
    return encoded(Image.new(mode, (SIDE, SIDE), 0.5 if mode == "F" else 0), kind, **options)


READABLE: dict[str, Callable[[], bytes]] = {
    "jpeg_then_zip": lambda: encoded(smooth(), "JPEG") + zipped(),
    "png_then_page": lambda: encoded(smooth(), "PNG") + PAGE,
    "gif_then_script": lambda: encoded(smooth("P"), "GIF") + PAGE,
    "jpeg_of_page": lambda: in_jpeg(segment(0xFE, PAGE)),
    "png_of_page": lambda: in_png(chunk(b"tEXt", b"Comment\0" + PAGE)),
    "png_exif_overlaps": lambda: in_png(chunk(b"eXIf", overlapping_tags())),
    "png_large_profile": lambda: encoded(smooth(), "PNG", icc_profile=np.random.default_rng(0).bytes(900_000)),
    "jpeg_exif_overlaps": lambda: in_jpeg(in_segments(b"Exif\0\0", overlapping_tags())),
    "jpeg_large_profile": lambda: in_jpeg(
        b"".join(segment(0xE2, b"ICC_PROFILE\0" + b"\1" * 65_000) for _ in range(240))
    ),
    "jpeg_large_xmp": lambda: in_jpeg(in_segments(b"http://ns.adobe.com/xap/1.0/\0", b"<" * 15_000_000)),
    "jpeg_large_photoshop": lambda: in_jpeg(segment(0xED, b"Photoshop 3.0\0" + b"8BIM\0\1\0\0\0\0\0\0" * 5000) * 200),
    "webp_large_xmp": lambda: encoded(smooth(), "WEBP", xmp=b"<" * 14_000_000),
    "webp_exif_overlaps": lambda: encoded(smooth(), "WEBP", exif=overlapping_tags()),
    "gif_100000_frames": lambda: repeated_frame("GIF", 100_000),
    "webp_100000_frames": lambda: repeated_frame("WEBP", 100_000),
    "png_100000_frames": lambda: repeated_frame("PNG", 100_000),
    "avif_100000_frames": lambda: avif_frames(100_000),
    "gif_large_comment": lambda: in_gif(b"!\xfe" + (b"\xff" + b"x" * 255) * 10_000 + b"\0"),
    "tiff_directory_is_the_next": lambda: tiff(100, 100),
    "tiff_directories_in_a_circle": lambda: tiff(100, 100, (34665, 4, 1, 8), (34853, 4, 1, 8), (330, 4, 1, 8)),
    "jpeg2000_35000_tiles": lambda: _jpeg2000(tile_size=(16, 16)),
    "avif_larger_than_said": lambda: said(_avif(), b"ispe", 8, ">II", 64, 64),
}
UNREADABLE: dict[str, Callable[[], bytes]] = {
    "page": lambda: PAGE,
    "vector": lambda: VECTOR,
    "page_with_gif_head": lambda: b"GIF89a" + PAGE,
    "page_with_jpeg_head": lambda: b"\xff\xd8\xff\xe0" + PAGE * 100,
    "vector_with_png_head": lambda: b"\x89PNG\r\n\x1a\n" + VECTOR,
    "page_with_webp_head": lambda: b"RIFF\xff\xff\0\0WEBPVP8 " + PAGE,
    "zip": zipped,
    "eps_in_iptc": lambda: iptc(encoded(smooth(), "EPS")),
    "png_many_texts": lambda: in_png(_texts(b"tEXt", b"v", 500_000)),
    "png_many_texts_at_end": lambda: in_png(_texts(b"tEXt", b"v", 500_000), at_end=True),
    "png_text_bombs": lambda: in_png(_texts(b"zTXt", b"\0" + _bomb(), 10_000)),
    "png_text_bombs_at_end": lambda: in_png(_texts(b"iTXt", b"\1\0\0\0" + _bomb(), 10_000), at_end=True),
    "png_profile_bomb": lambda: in_png(chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(500_000_000), 1))),
    "png_many_chunks": lambda: in_png(chunk(b"abCd", b"") * 1_000_000),
    "jpeg_many_comments": lambda: in_jpeg(segment(0xFE, b"x") * 2_000_000),
    "jpeg_many_tables": lambda: in_jpeg(segment(0xDB, b"\0" + b"\1" * 64) * 200_000),
    "jpeg_long_fill": lambda: in_jpeg(b"\xff" * 15_000_000),
    "jpeg_junk": lambda: in_jpeg(b"\0" * 15_000_000),
    "jpeg_100000_scans": lambda: scans(100_000, 256),
    "jpeg_1500_scans": lambda: scans(1_500, 64),
    "jpeg_150_large_scans": lambda: scans(150, 4000),
    "gif_many_comments": lambda: in_gif(b"!\xfe\1x\0" * 3_000_000),
    "gif_many_extensions": lambda: in_gif(b"!\xf9\4\0\0\0\0\0" * 1_900_000),
    "gif_junk": lambda: in_gif(bytes(15_000_000)),
    "gif_frame_larger_than_said": lambda: said(in_gif(b""), b",\0\0\0\0\0\1\0\1", 5, "<HH", 13_000, 13_000),
    "tiff_tags_overlap": overlapping_tags,
    "tiff_huge_tile": lambda: tiff(
        100,
        100,
        (322, 4, 1, 40_000),
        (323, 4, 1, 40_000),
        (324, 4, 1, 500),
        (325, 4, 1, 4_000_000),
        compression=8,
        content=zlib.compress(bytes(900_000_000), 1),
    ),
    "tiff_endless_strip": lambda: tiff(100, 100, (278, 4, 1, 2**31 - 1), compression=5),
    "tiff_strips_missing": lambda: tiff(1, 60_000_000, (278, 4, 1, 1), compression=5),
    "avif_huge": lambda: said(_avif(), b"ispe", 8, ">II", 60_000, 60_000),
    "avif_cut": lambda: _avif()[:-40],
    "jpeg2000_larger_than_said": lambda: said(_jpeg2000(), b"\xff\x4f\xff\x51", 8, ">II", 30_000, 30_000),
    "qoi_indices": lambda: (
        b"qoif" + struct.pack(">II", 3900, 3900) + b"\3\0" + b"\x6a" * 15_210_000 + b"\0" * 7 + b"\1"
    ),
    "ppm_plain": lambda: b"P3\n1600 1600\n255\n" + b"1 " * (1600 * 1600 * 3),
    "ppm_odd_depth": lambda: b"P6\n2200 2200\n77\n" + b"1" * (2200 * 2200 * 3),
    "ppm_long_comment": lambda: b"P6\n#" + b"x" * 15_000_000 + b"\n2 2\n255\n" + b"1" * 12,
    "bmp_runs": lambda: runs_bmp(SIDE),
    "xpm": lambda: (
        b'/* XPM */\nstatic char *x[] = {\n"3800 3800 2 1",\n"a c #000000",\n"b c #ffffff",\n'
        + (b'"' + b"ab" * 1900 + b'",\n') * 3800
        + b"};"
    ),
    "xpm_many_colours": lambda: (
        b'/* XPM */\nstatic char *x[] = {\n"10 10 999999999 1",\n' + b'"x c #000000",\n' * 1_000_000
    ),
    "icon_bomb": lambda: _icon(encoded(Image.new("L", (12_000, 12_000)), "PNG")),
}
LARGE: dict[str, Callable[[], bytes]] = {
    "png_1": lambda: _all("1", "PNG"),
    "png_rgba": lambda: _all("RGBA", "PNG", compress_level=1),
    "png_palette_clear": lambda: _all("P", "PNG", compress_level=1, transparency=0),
    "webp": lambda: _all("RGB", "WEBP", lossless=True, method=0),
    "avif": lambda: encoded(Image.new("RGB", (SIDE, SIDE)), "AVIF", speed=10),
    "jpeg2000": lambda: _all("L", "JPEG2000"),
    "tiff_float": lambda: _all("F", "TIFF", compression="tiff_adobe_deflate"),
    "tiff_cmyk": lambda: _all("CMYK", "TIFF", compression="tiff_adobe_deflate"),
    "jpeg_progressive": lambda: _all("RGB", "JPEG", progressive=True),
}


def _icon(png: bytes) -> bytes:
    return b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(png), 22) + png


def every() -> Iterator[tuple[str, bytes]]:
    for name, make in (READABLE | UNREADABLE).items():
        yield name, make()
