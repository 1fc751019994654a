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
    seen, known = extension.canvas(master, frame, there, scale)
    assert seen.shape == (*known.shape, 3)
    assert all(n % 8 == 0 for n in known.shape)
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
    seen, known = extension.canvas(master, WIDE, extension.kept(SIZE, WIDE, BOX, 0), 0.5)
    assert (seen[known == 255] == 200).all()
    assert known.mean() / 255 == pytest.approx(240 / 368, abs=0.03)
    assert (seen[:, :20] == 127).all()


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
    _, known = extension.canvas(master, frame, there, 0.5)
    high, wide = known.shape
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
