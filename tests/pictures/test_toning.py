"""Exposure, white balance and grain of the scene: drawn toward the product's, within limits."""

import numpy as np
import pytest

from adbooster.pictures import colours, toning
from adbooster.pictures.cutouts import Cutout


def product(*colour: int, noise: float = 0.0, side: int = 120) -> Cutout:
    rng = np.random.default_rng(1)
    pixels = np.full((side, side, 3), colour, np.float64) + rng.standard_normal((side, side, 1)) * noise
    pixels = pixels.clip(0, 255).round().astype(np.uint8)
    return Cutout(pixels, pixels, np.full((side, side), 255, np.uint8))


def scene(*colour: int) -> np.ndarray:
    return np.full((64, 64, 3), colour, np.uint8)


def stops(before: np.ndarray, after: np.ndarray) -> float:
    return float(np.log2(colours.linear(after).mean() / colours.linear(before).mean()))


def test_a_dark_scene_round_a_bright_product_gets_lighter_within_the_limit():
    dark = scene(60, 60, 60)
    lifted = stops(dark, toning.toned(dark, product(240, 240, 240), 0.3, 0.0))
    assert lifted == pytest.approx(0.3, abs=0.05)
    slightly = stops(dark, toning.toned(dark, product(66, 66, 66), 0.3, 0.0))
    assert 0 < slightly < 0.2


def test_a_dark_product_says_nothing_of_the_light():
    bright = scene(200, 205, 210)
    assert np.abs(toning.toned(bright, product(30, 30, 30), 0.5, 0.0).astype(int) - bright).max() <= 1


def test_white_balance_moves_toward_the_product_within_the_limit():
    warm = scene(200, 180, 160)
    gain = toning.gains(warm, product(200, 200, 200), 0.0, 0.08)
    assert gain[2] > 1 > gain[0]
    assert np.abs(gain - 1).max() <= 0.08 + 1e-9
    toned = toning.toned(warm, product(200, 200, 200), 0.0, 0.08).astype(int)
    assert np.ptp(toned[0, 0]) < np.ptp(warm[0, 0].astype(int))


@pytest.mark.parametrize(("painted", "cut"), [((230, 40, 40), (200, 200, 200)), ((200, 180, 160), (230, 40, 140))])
def test_surfaces_with_a_colour_of_their_own_do_not_change_the_white_balance(painted, cut):
    assert toning.gains(scene(*painted), product(*cut), 0.0, 0.2) == pytest.approx(np.ones(3))


def test_highlights_keep_their_steps():
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 4, 0).repeat(3, 2)
    curve = toning.toned(np.concatenate([ramp // 4] * 20 + [ramp]), product(255, 255, 255), 0.5, 0.0)[-1, :, 0].astype(
        int
    )
    assert (np.diff(curve) >= 0).all()
    assert curve[0] == 0
    assert curve[255] == 255
    assert len(np.unique(curve[200:])) > 15


@pytest.mark.parametrize("sigma", [2.0, 5.0])
def test_noise_is_measured(sigma):
    assert toning.grain_sigma(product(120, 120, 120, noise=sigma).pixels) == pytest.approx(sigma, rel=0.2)


def test_the_scene_gets_the_grain_it_lacks_and_no_more():
    noisy, clean = product(120, 120, 120, noise=4.0), product(120, 120, 120)
    flat = np.full((300, 400, 3), 120, np.uint8)
    grained = toning.grained(flat, toning.missing_grain(flat, noisy))
    assert toning.grain_sigma(grained) == pytest.approx(4.0, rel=0.25)
    assert np.array_equal(grained, toning.grained(flat, toning.missing_grain(flat, noisy)))
    assert toning.missing_grain(grained, noisy) < 2.0
    assert toning.grained(flat, toning.missing_grain(flat, clean)) is flat
    assert toning.missing_grain(flat, product(9, 9, 9, side=3)) == 0.0
