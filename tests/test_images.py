import contextlib
import io

import numpy as np
import pytest
from PIL import Image

from adbooster import images


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
