"""Every kind of hostile picture is one row, within bounds on the processor's time and on memory."""

import numpy as np
import pytest
from PIL import Image

from adbooster.pictures import images
from tests.pictures import hostile
from tests.pictures.preparing import Outcome, prepared

CPU_S, PEAK_MIB = 6, 1024  # each is decoded three times; 3 s on the machine that this was measured on
LARGE_CPU_S, LARGE_PEAK_MIB = 25, 2048


def outcomes(folder, kinds) -> dict[str, Outcome]:
    for name, make in kinds.items():
        (folder / name).write_bytes(make())
    return {outcome.name: outcome for outcome in prepared(folder, list(kinds))}


@pytest.mark.parametrize("part", range(4))
def test_hostile_pictures_are_rows_within_bounds(tmp_path, part):
    kinds = dict(list((hostile.READABLE | hostile.UNREADABLE).items())[part::4])
    found = outcomes(tmp_path, kinds)
    assert list(found) == list(kinds)
    assert {n: o.error for n, o in found.items() if o.error} == {}
    assert {n: o.word for n, o in found.items() if (o.word == "unreadable_image") != (n in hostile.UNREADABLE)} == {}
    assert {n: o.cpu_s for n, o in found.items() if o.cpu_s > CPU_S} == {}
    assert {n: o.peak_mib for n, o in found.items() if o.peak_mib > PEAK_MIB} == {}


@pytest.mark.slow
def test_the_largest_pictures_within_bounds(tmp_path):
    """62 megapixels in every depth, decoded twice and masked once."""
    found = outcomes(tmp_path, hostile.LARGE)
    assert {n: o.error for n, o in found.items() if o.error} == {}
    assert {n: o.cpu_s for n, o in found.items() if o.cpu_s > LARGE_CPU_S} == {}
    assert {n: o.peak_mib for n, o in found.items() if o.peak_mib > LARGE_PEAK_MIB} == {}


def test_ghostscript_is_not_reached_through_a_file_that_holds_another(monkeypatch):
    ran = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *given, **more: ran.append(given))
    with pytest.raises(images.UnreadableImage):
        images.decode(hostile.UNREADABLE["eps_in_iptc"]())
    assert ran == []


def test_metadata_and_what_trails_a_picture_do_not_travel():
    """Exif, comment, profile and a zip behind it: what is written from the pixels has none of them."""
    exif = Image.Exif()
    exif[0x010E] = "a secret place"
    plain = hostile.smooth()
    dirty = hostile.encoded(plain, "PNG", exif=exif, pnginfo=None, icc_profile=b"secret profile") + hostile.zipped()
    assert np.array_equal(images.decode(dirty), np.asarray(plain))
    for kind in ("webp_lossless", "png", "webp", "jpeg"):
        written = images.encode(images.decode(dirty), kind, 90)[0]
        assert b"secret" not in written
        assert b"PK" not in written[-400:]


def test_many_small_chunks_of_pixels_are_no_attack():
    """A PNG writer may cut the pixels into chunks of 8 kB, a JPEG have restart markers in every row."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8))
    png = hostile.encoded(noise, "PNG", compress_level=1)
    at, pixels = 33, b""
    while png[at + 4 : at + 8] == b"IDAT":
        length = int.from_bytes(png[at : at + 4])
        pixels, at = pixels + png[at + 8 : at + 8 + length], at + 12 + length
    cut = b"".join(hostile.chunk(b"IDAT", pixels[n : n + 1024]) for n in range(0, len(pixels), 1024))
    assert np.array_equal(images.decode(png[:33] + cut + png[at:]), np.asarray(noise))
    jpeg = hostile.encoded(noise, "JPEG", restart_marker_blocks=1, progressive=True, quality=95)
    assert images.decode(jpeg).shape == (1500, 1500, 3)
