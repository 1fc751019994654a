import contextlib
import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from adbooster.pictures import images


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


@pytest.fixture(scope="module")
def photo():
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def test_lossless_is_lossless_and_deterministic(photo):
    stored = images.encode_lossless(photo)
    assert np.array_equal(images.decode(stored), photo)
    assert images.encode_lossless(photo) == stored


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb(photo, mode):
    picture = Image.fromarray(photo).convert("RGB").convert(mode)
    decoded = images.decode(encoded(picture, "TIFF"))
    assert decoded.shape == (40, 60, 3)
    assert decoded.dtype == np.uint8


def test_transparency_lies_over_white():
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert (images.decode(encoded(clear, "PNG")) == 255).all()


def test_upright_by_exif(photo):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert images.decode(encoded(Image.fromarray(photo), "JPEG", exif=exif)).shape == (60, 40, 3)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_truncated_is_unreadable(photo, kind, share):
    whole = encoded(Image.fromarray(photo), kind)
    with pytest.raises(images.UnreadableImage):
        images.decode(whole[: int(len(whole) * share)])


def test_bomb_is_unreadable_before_it_is_decoded():
    with pytest.raises(images.UnreadableImage, match="pixels"):
        images.decode(encoded(Image.new("L", (3000, 3000)), "PNG"), max_pixels=10**6)


def test_damaged_bytes_never_raise_anything_else(photo):
    rng = np.random.default_rng(1)
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP"):
        whole = np.frombuffer(encoded(Image.fromarray(photo), kind), np.uint8)
        for _ in range(40):
            broken = whole.copy()
            broken[rng.integers(0, len(broken), 12)] = rng.integers(0, 256, 12)
            with contextlib.suppress(images.UnreadableImage):
                assert images.decode(broken.tobytes()).ndim == 3


def odd_pictures() -> dict[str, bytes]:
    """Pictures in every format that Pillow writes and many modes, 256 px so that no rule of size speaks."""
    smooth = Image.fromarray(np.random.default_rng(3).integers(0, 256, (16, 16, 3), np.uint8)).resize((256, 256))
    clear = smooth.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L"))
    deep = Image.fromarray(np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (256, 1)))
    lab = ImageCms.profileToProfile(
        smooth, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    wide = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 8
    made = {
        "jpeg_cmyk": encoded(smooth.convert("CMYK"), "JPEG"),
        "jpeg_grey": encoded(smooth.convert("L"), "JPEG"),
        "jpeg_progressive": encoded(smooth, "JPEG", progressive=True),
        "jpeg_turned": encoded(smooth, "JPEG", exif=exif),
        "jpeg_odd_profile": encoded(smooth, "JPEG", icc_profile=wide),
        "jpeg_broken_profile": encoded(smooth, "JPEG", icc_profile=b"nonsense" * 40),
        "png_16": encoded(deep, "PNG"),
        "png_la": encoded(clear.convert("LA"), "PNG"),
        "png_rgba": encoded(clear, "PNG"),
        "png_1": encoded(smooth.convert("1"), "PNG"),
        "png_palette": encoded(smooth.convert("P"), "PNG"),
        "png_palette_clear": encoded(smooth.convert("P"), "PNG", transparency=3),
        "png_grey_clear": encoded(smooth.convert("L"), "PNG", transparency=7),
        "png_interlaced": encoded(smooth, "PNG", interlace=True),
        "gif_moving": encoded(smooth, "GIF", save_all=True, append_images=[smooth.rotate(90), smooth.rotate(180)]),
        "webp_moving": encoded(smooth, "WEBP", save_all=True, append_images=[smooth.rotate(90)]),
        "tiff_lab": encoded(lab, "TIFF"),
        "tiff_float": encoded(Image.fromarray(np.linspace(0, 1, 65536, dtype=np.float32).reshape(256, 256)), "TIFF"),
        "tiff_int": encoded(Image.fromarray(np.arange(65536, dtype=np.int32).reshape(256, 256)), "TIFF"),
        "tiff_16": encoded(deep, "TIFF"),
        "tiff_cmyk": encoded(smooth.convert("CMYK"), "TIFF"),
        "tiff_lzw": encoded(smooth, "TIFF", compression="tiff_lzw"),
        "webp_lossless": encoded(clear, "WEBP", lossless=True),
    }
    Image.init()
    for kind in sorted(Image.SAVE):
        with contextlib.suppress(OSError, ValueError, KeyError, AttributeError, TypeError):  # no RGB, or no stream
            made[kind.lower()] = encoded(smooth, kind)
    return made


def test_every_odd_picture_is_an_rgb_array_or_unreadable():
    shapes = {}
    for name, content in odd_pictures().items():
        try:
            shapes[name] = images.decode(content).shape
        except images.UnreadableImage:
            shapes[name] = None
    assert len(shapes) > 35
    assert shapes["eps"] is None, "EPS runs Ghostscript"
    unread = {"eps", "pdf", "palm", "bufr", "grib", "hdf5", "wmf", "xbm", "msp"}
    assert {n for n, s in shapes.items() if s is None} <= unread
    assert {s for n, s in shapes.items() if s and n not in ("ico", "icns")} == {(256, 256, 3)}


def test_depth_is_scaled_and_not_clipped():
    ramp = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (4, 1))
    for kind in ("PNG", "TIFF"):
        grey = images.decode(encoded(Image.fromarray(ramp), kind))[0, :, 0]
        assert np.abs(grey.astype(int) - np.arange(256)).max() <= 1
    floats = np.tile(np.linspace(0, 1, 256, dtype=np.float32), (4, 1))
    assert (
        np.abs(images.decode(encoded(Image.fromarray(floats), "TIFF"))[0, :, 1].astype(int) - np.arange(256)).max() <= 1
    )


def test_an_embedded_profile_is_applied():
    """CMYK ink and swapped primaries mean other colours than their numbers; sRGB and nonsense change nothing."""
    plain = Image.new("RGB", (8, 8), (200, 40, 10))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for same in (None, srgb, b"nonsense"):
        assert (images.decode(encoded(plain, "PNG", icc_profile=same)) == (200, 40, 10)).all()
    swapped = bytearray(srgb)  # another profile: its red primary's tag points where green's did
    red, green = swapped.index(b"rXYZ", 128), swapped.index(b"gXYZ", 128)
    swapped[red : red + 4], swapped[green : green + 4] = b"gXYZ", b"rXYZ"
    other = bytes(swapped).replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be")).replace(b"sRGB", b"mine")
    found = images.decode(encoded(plain, "PNG", icc_profile=other))[0, 0]
    assert found[1] > found[0], "its first channel is green"


def test_source_alpha_where_it_says_something():
    def alpha(values: np.ndarray):
        rgba = np.dstack([np.full((*values.shape, 3), 90, np.uint8), values])
        return images.source_alpha(encoded(Image.fromarray(rgba), "PNG"))

    cut = np.zeros((64, 64), np.uint8)
    cut[20:40, 20:40] = 255
    assert np.array_equal(alpha(cut), cut)
    corners = np.full((64, 64), 255, np.uint8)
    corners[:3, :3] = 0
    for nothing in (corners, np.full((64, 64), 255, np.uint8), np.zeros((64, 64), np.uint8)):
        assert alpha(nothing) is None
    assert images.source_alpha(encoded(Image.new("RGB", (9, 9)), "PNG")) is None


def test_alpha_turns_with_its_picture():
    exif = Image.Exif()
    exif[0x0112] = 6
    rgba = np.zeros((40, 60, 4), np.uint8)
    rgba[:10, :, 3] = 255
    photo, alpha = images.decode_with_alpha(encoded(Image.fromarray(rgba), "PNG", exif=exif))
    assert photo.shape[:2] == alpha.shape == (60, 40)
    assert alpha[:, -10:].min() == 255
