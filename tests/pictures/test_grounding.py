"""Shadow and reflection of made products: where they fall, and that the product is not touched."""

import numpy as np
import pytest

from adbooster.pictures import compositing, grounding, proof
from adbooster.pictures.cutouts import Cutout
from adbooster.pictures.layout import Box
from adbooster.pictures.lighting import Light

SIDE = 400
BOX = Box(120, 140, 160, 160)
ABOVE = Light(90, 0.0)


def grey(level: int = 200) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), level, np.uint8)


def product(kind: str = "block") -> Cutout:
    alpha = np.full((160, 160), 255, np.uint8)
    if kind == "table":  # a top on two legs
        alpha[40:, 30:130] = 0
    if kind == "ball":
        ys, xs = np.mgrid[:160, :160] - 79.5
        alpha = np.where(xs**2 + ys**2 <= 79**2, 255, 0).astype(np.uint8)
    pixels = np.full((160, 160, 3), (180, 60, 60), np.uint8)
    return Cutout(pixels, pixels, alpha)


def darker(kind: str = "block", light: Light = ABOVE, scene: np.ndarray | None = None) -> np.ndarray:
    """By how many levels the scene got darker, int [H,W]."""
    before = grey() if scene is None else scene
    return (before.astype(int) - grounding.shade(before, product(kind), BOX, light)).max(axis=2)


def test_each_leg_has_its_own_contact():
    """An ellipse would be as dark between the legs as at them."""
    lost = darker("table")
    at_legs, between = lost[301, [135, 265]].mean(), lost[301, 190:210].mean()
    assert at_legs > 60
    assert at_legs > 2 * between


def test_contact_follows_the_outline():
    """Under a ball it is dark where the ball stands and fades to both sides, where the ball is off the ground."""
    row = darker("ball")[301]
    assert row[200] > 60
    assert row[200] > 1.5 * row[160]
    assert row[160] > row[130] >= 0
    assert np.abs(row[120:280] - row[120:280][::-1]).max() <= 2


def test_the_shadow_gets_softer_and_fainter_with_distance():
    column = darker()[301:380, 200].astype(float)
    assert (np.diff(column) <= 0).all()
    assert column[0] > 80
    assert column[-1] < 3
    assert np.abs(np.diff(column))[:6].max() > 4 * np.abs(np.diff(column))[25:].max()


def test_the_shadow_falls_away_from_the_light():
    sums = {}
    for name, light in (("right", Light(20, 0.9)), ("left", Light(160, 0.9)), ("none", Light(20, 0.0))):
        lost = darker(light=light)
        sums[name] = lost[:, :120].sum(), lost[:, 280:].sum()
    assert sums["right"][0] > 1.5 * sums["right"][1]
    assert sums["left"][1] > 1.5 * sums["left"][0]
    assert sums["none"][0] == pytest.approx(sums["none"][1], rel=0.05)


def test_a_scene_with_its_own_shadow_gets_less():
    scene = grey()
    scene[296:330, 115:285] = 110
    assert darker(scene=scene)[301, 200] / 110 < 0.7 * darker()[301, 200] / 200


@pytest.mark.parametrize("box", [BOX, Box(0, 0, 160, 160), Box(240, 240, 160, 160), Box(0, 240, 160, 160)])
@pytest.mark.parametrize("kind", ["block", "table", "ball"])
def test_the_product_is_not_touched_wherever_it_stands(kind, box):
    one = product(kind)
    shaded = grounding.reflect(grounding.shade(grey(), one, box, Light(30, 0.8)), one, box, 0.5)
    assert shaded.shape == (SIDE, SIDE, 3)
    assert proof.product_difference(compositing.compose(shaded, one, box), one, box) == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 200), (200, 1)])
def test_odd_products_do_not_end_it(shape):
    pixels = np.zeros((*shape, 3), np.uint8)
    for alpha in (np.full(shape, 255, np.uint8), np.zeros(shape, np.uint8)):
        one, box = Cutout(pixels, pixels, alpha), Box(10, 10, shape[1], shape[0])
        shaded = grounding.reflect(grounding.shade(grey(), one, box, ABOVE), one, box, 0.3)
        assert shaded.dtype == np.uint8
        assert alpha.any() or np.array_equal(shaded, grey())


def test_a_reflection_shows_the_product_upside_down_and_fades():
    one = product()
    one.pixels[150:] = (20, 220, 20)
    change = grounding.reflect(grey(), one, BOX, 0.5).astype(int) - grey()
    assert change[303, 200, 0] < change[303, 200, 1]  # green at the foot
    assert abs(change[303, 200].sum()) > 2 * abs(change[345, 200].sum())
    assert not change[:300].any()


def test_polished_ground_is_told_from_grass():
    ys, xs = np.mgrid[:SIDE, :SIDE]
    polished = np.clip(90 + 150 * np.exp(-((xs - 200) ** 2 + (ys - 330) ** 2) / (2 * 30**2)), 0, 255)
    grass = np.random.default_rng(0).integers(40, 200, (SIDE, SIDE))
    pictures = [np.repeat(p.astype(np.uint8)[..., None], 3, 2) for p in (polished, grass, np.full((SIDE, SIDE), 90))]
    assert [grounding.glossy(p, 0.5) for p in pictures] == [True, False, False]
    assert not grounding.glossy(pictures[0], 0.99)
