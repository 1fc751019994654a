"""More scene round a creative: what is kept of it, what the model is shown, and what is measured of the seam."""

import numpy as np
import pytest

from adbooster.deliver import extension
from adbooster.pictures import images
from adbooster.pictures.layout import Box
from tests.deliver.pictures import BOX, scene

SIZE = (240, 240)
WIDE = Box(-60, 0, 360, 240)
TALL = Box(20, -90, 200, 400)  # wider than high is left out: it crops one axis and reaches beyond the other


def smooth(wide, high):
    """A scene without noise or edges, uint8 [high,wide,3]."""
    ys, xs = np.mgrid[:high, :wide] / 240
    return (
        np.stack([120 + 60 * np.sin(2 * xs + ys), 130 + 40 * np.cos(3 * ys), 90 + 50 * xs], -1)
        .clip(0, 255)
        .astype(np.uint8)
    )


@pytest.mark.parametrize("frame", [WIDE, TALL, Box(-31, -17, 333, 401)])
@pytest.mark.parametrize("scale", [0.5, 64 / 240, 512 / 1080, 1.0])
def test_every_pixel_that_is_kept_is_there_whatever_was_painted(frame, scale):
    master = scene(*SIZE, seed=3)
    there = extension.kept(SIZE, frame, BOX, 0)
    seen = extension.canvas(master, frame, there, scale).seen_u8
    assert all(n % 8 == 0 for n in seen.shape[:2])
    painted = np.random.default_rng(0).integers(0, 256, seen.shape, np.uint8)
    joined = extension.join(master, painted, frame, there, scale)
    assert joined.shape == (frame.height_px, frame.width_px, 3)
    overlap = master[max(0, frame.y_px) :, max(0, frame.x_px) : frame.x_px + frame.width_px]
    x, y = max(0, -frame.x_px), max(0, -frame.y_px)
    assert np.array_equal(joined[y : y + overlap.shape[0], x : x + overlap.shape[1]], overlap[: joined.shape[0] - y])
    assert extension.holds(joined, master, frame, there)
    joined[y, x, 0] ^= 1
    assert not extension.holds(joined, master, frame, there)


def test_the_model_is_shown_the_creative_alone():
    master = np.full((240, 240, 3), 200, np.uint8)
    canvas = extension.canvas(master, WIDE, extension.kept(SIZE, WIDE, BOX, 0), 0.5)
    assert canvas.seen_u8.shape == (120, 184, 3)
    assert (canvas.known.x_px, canvas.known.width_px, canvas.known.height_px) == (30, 120, 120)
    assert (canvas.seen_u8[canvas.known_u8 == 255] == 200).all()
    assert (canvas.seen_u8[canvas.known_u8 == 0] == 127).all()


@pytest.mark.parametrize("side", [1080, 240])
@pytest.mark.parametrize("painted_px", [1024, 512, 300])
@pytest.mark.parametrize("frame", [Box(-0.2, -0.1, 1.3, 1.3), Box(-0.25, 0, 1.5, 1), Box(0.1, -0.4, 0.8, 1.7)])
def test_a_plain_scene_that_is_painted_on_has_no_seam(side, painted_px, frame):
    """No line of what is shown to the model, or of what is compared with it, is left out or mixed with something else."""
    frame = Box(*(round(n * side) for n in (frame.x_px, frame.y_px, frame.width_px, frame.height_px)))
    scale, box = min(1.0, painted_px / side), Box(side // 3, side // 3, side // 3, side // 3)
    master = np.full((side, side, 3), 220, np.uint8)
    there = extension.kept((side, side), frame, box, 0)
    canvas = extension.canvas(master, frame, there, scale)
    assert (canvas.seen_u8[canvas.known.slices] == 220).all()
    painted = np.full_like(canvas.seen_u8, 220)
    whole = Box(0, 0, *canvas.seen_u8.shape[1::-1])
    small = extension.join(canvas.seen_u8, painted, whole, canvas.known, 1.0)
    assert (small == 220).all()
    assert (extension.join(master, painted, frame, there, scale) == 220).all()
    assert extension.seam(small, canvas.known) == 1.0


def test_a_strip_of_a_few_pixels_is_looked_at_too():
    picture = np.full((240, 244, 3), 200, np.uint8)
    picture[:, :3] = 100
    assert extension.seam(picture, Box(3, 0, 241, 240)) > 10


def test_a_strip_that_is_painted_anew_takes_nothing_of_the_product():
    near = Box(2, 100, 80, 139)  # two pixels from the left edge, one from the lower one
    there = extension.kept(SIZE, Box(-60, -10, 360, 400), near, 8)
    assert (there.x_px, there.y_px) == (60 + 2, 10 + 8)
    assert there.x_px + there.width_px == 60 + 240 - 8
    assert there.y_px + there.height_px == 10 + 239
    crops = extension.kept(SIZE, Box(20, -90, 200, 400), BOX, 8)
    assert (crops.x_px, crops.width_px) == (0, 200), "edges of the frame inside the creative stay"


@pytest.mark.parametrize("frame", [WIDE, TALL])
def test_a_seam_is_seen_as_a_step_that_the_scene_does_not_have(frame):
    big = smooth(frame.width_px, frame.height_px)
    there = extension.kept(SIZE, frame, BOX, 0)
    assert extension.seam(big, there) < 1.3
    stepped = big.copy().astype(int) + 12
    stepped[there.slices] -= 12
    assert extension.seam(stepped.clip(0, 255).astype(np.uint8), there) > 4
    noise = np.random.default_rng(0).integers(0, 40, big.shape)
    assert extension.seam((big + noise).clip(0, 255).astype(np.uint8), there) < 1.3, "texture is no seam"


@pytest.mark.parametrize("frame", [WIDE, TALL])
def test_what_was_painted_takes_on_the_tones_of_the_creative(frame):
    """A painting that goes on with the scene, but darker and warmer as networks' decoders make it."""
    big = smooth(frame.width_px, frame.height_px)
    there = extension.kept(SIZE, frame, BOX, 0)
    master = np.zeros((240, 240, 3), np.uint8)
    at = Box(max(0, frame.x_px), max(0, frame.y_px), there.width_px, there.height_px)
    master[at.slices] = big[there.slices]
    high, wide = extension.canvas(master, frame, there, 0.5).seen_u8.shape[:2]
    off = smooth(2 * wide, 2 * high).astype(int) + np.array([-4, -12, -20])
    painted = images.resize(off.clip(0, 255).astype(np.uint8), wide, high)
    pasted = images.resize(painted, 2 * wide, 2 * high, bicubic=True)[: frame.height_px, : frame.width_px].copy()
    pasted[there.slices] = big[there.slices]
    joined = extension.join(master, painted, frame, there, 0.5)
    assert extension.seam(pasted, there) > 4
    assert extension.seam(joined, there) < 1.5
    outside = np.ones(big.shape[:2], bool)
    outside[there.slices] = False
    off_before, off_after = (np.abs(p[outside].astype(int) - big[outside]).mean() for p in (pasted, joined))
    assert off_after < off_before / 1.5
