"""Light, ground and colour on made scenes whose horizon and sun are known."""

import numpy as np
import pytest
from PIL import ImageFilter

from adbooster.pictures import colours, compositing, images, lighting
from adbooster.pictures.cutouts import Cutout
from adbooster.pictures.layout import Box
from adbooster.pictures.lighting import Light
from adbooster.tiny import world

SIDE = 256
BOX = Box(98, 120, 60, 90)  # its base at 210 of 256


def ball(light_deg: float, side: int = 120, colour: float = 230) -> Cutout:
    """A matt ball lit from one side."""
    ys, xs = (np.mgrid[:side, :side] - (side - 1) / 2) / (side / 2 - 1)
    inside = xs**2 + ys**2 <= 1
    angle = np.radians(light_deg)
    lambert = xs * np.cos(angle) - ys * np.sin(angle)
    shade = (0.55 + 0.4 * lambert) * colour
    pixels = np.repeat(np.where(inside, shade, 255).clip(0, 255).astype(np.uint8)[..., None], 3, 2)
    return Cutout(pixels, pixels, np.where(inside, 255, 0).astype(np.uint8))


def scene(horizon: float, sun_x: float | None = None, sky=(90, 120, 170), ground=(110, 150, 70)) -> np.ndarray:
    """Sky above ground, blurred as a painting is, with a sun at a share of the width."""
    picture = np.empty((SIDE, SIDE, 3), np.float32)
    picture[: round(horizon * SIDE)], picture[round(horizon * SIDE) :] = sky, ground
    if sun_x is not None:
        ys, xs = np.mgrid[:SIDE, :SIDE]
        glow = np.exp(-((xs - sun_x * SIDE) ** 2 + (ys - 0.2 * SIDE) ** 2) / (2 * 22**2))[..., None]
        picture += (255 - picture) * glow
    blurred = images.Image.fromarray(picture.astype(np.uint8)).filter(ImageFilter.GaussianBlur(3))
    return np.asarray(blurred)


def agreed(painted: np.ndarray, product: Cutout, box: Box = BOX) -> lighting.Agreement:
    alpha = compositing.placed_alpha(product, box, (SIDE, SIDE))
    picture = compositing.compose(painted, product, box)
    return lighting.agreement(painted, alpha, lighting.product_light(product), picture)


def test_the_horizon_of_the_tiny_worlds_scenes_is_found():
    errors = []
    for name in world.SCENES:
        for seed in range(4):
            horizon = round(128 * np.random.default_rng(seed).uniform(0.55, 0.68)) / 128  # as `backdrop` draws it
            sharp = world.backdrop(world.SCENES[name], 128, np.random.default_rng(seed))
            lab = colours.lab(images.resize(np.asarray(sharp.filter(ImageFilter.GaussianBlur(2.4))), 96, 96))
            visible = np.ones((96, 96), bool)
            visible[50:85, 30:66] = False  # a product
            found = lighting.find_ground(lab, visible)
            errors.append(1.0 if found is None else abs(found.line - horizon))
    assert np.mean(np.array(errors) < 0.06) >= 0.85
    assert np.median(errors) < 0.03


def test_no_horizon_is_made_up():
    gradient = np.repeat(np.linspace(40, 220, 96)[:, None, None], 96, 1).repeat(3, 2).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    for picture in (gradient, noise, np.zeros((96, 96, 3), np.uint8)):
        assert lighting.find_ground(colours.lab(picture), np.ones((96, 96), bool)) is None
    hidden = lighting.find_ground(colours.lab(gradient), np.zeros((96, 96), bool))
    assert hidden is None


def test_a_product_above_the_ground_floats_and_one_on_it_does_not():
    good, bad = (agreed(scene(h), ball(90)) for h in (0.6, 0.92))
    assert (good.contact_share, good.clash) == (1.0, pytest.approx(0.0, abs=0.1))
    assert good.ground_line == pytest.approx(0.6, abs=0.03)
    assert (bad.contact_share, bad.clash) == (0.0, 1.0)
    assert bad.ground_line == pytest.approx(0.92, abs=0.03)


def test_half_of_a_base_on_the_ground_is_half():
    """A table's edge: the ground begins lower on the right."""
    step = scene(0.70).copy()
    step[:, SIDE // 2 :] = scene(0.82)[:, SIDE // 2 :]
    pixels = np.full((8, 120, 3), 90, np.uint8)
    low = Cutout(pixels, pixels, np.full((8, 120), 255, np.uint8))
    assert 0.2 < agreed(step, low, Box(68, 186, 120, 8)).contact_share < 0.8


def test_a_horizon_that_touches_the_top_clashes():
    tall = Box(98, 100, 60, 110)
    touching, behind = (agreed(scene(h), ball(90), tall).clash for h in (100 / SIDE, 0.6))
    assert touching > 0.25
    assert behind < 0.1


@pytest.mark.parametrize("angle", [0, 45, 135, 180])
def test_the_light_on_a_ball_is_where_it_was_put(angle):
    found = lighting.product_light(ball(angle))
    assert abs((found.angle_deg - angle + 180) % 360 - 180) < 12
    assert found.confidence > 0.7


def test_a_flat_or_patterned_product_says_nothing_of_its_light():
    rng = np.random.default_rng(0)
    alpha = np.full((80, 80), 255, np.uint8)
    for pixels in (np.full((80, 80, 3), 128, np.uint8), rng.integers(0, 256, (80, 80, 3), np.uint8)):
        assert lighting.product_light(Cutout(pixels, pixels, alpha)).confidence < 0.2


@pytest.mark.parametrize(("sun", "side"), [(0.1, -1), (0.9, 1)])
def test_the_brightest_part_of_the_sky_is_the_light(sun, side):
    found = lighting.light_of(scene(0.6, sun), compositing.placed_alpha(ball(90), BOX, (SIDE, SIDE)))
    assert side * found.sideways > 0.5
    assert found.confidence > 0.5


def test_an_even_sky_is_no_light():
    assert lighting.light_of(scene(0.6), compositing.placed_alpha(ball(90), BOX, (SIDE, SIDE))).confidence < 0.1


def test_light_from_opposite_sides_is_found_and_from_one_side_is_not():
    opposed, alike = (agreed(scene(0.6, sun), ball(180)) for sun in (0.92, 0.08))
    assert opposed.light_opposition > 0.5
    assert opposed.clash >= opposed.light_opposition
    assert alike.light_opposition == 0.0
    assert lighting.opposition(Light(0, 1.0), Light(180, 1.0)) == pytest.approx(1.0)
    assert lighting.opposition(Light(0, 0.0), Light(180, 1.0)) == 0.0


def test_colour_distance_grows_with_the_difference():
    product = ball(90, colour=200)
    near = np.full((SIDE, SIDE, 3), 150, np.uint8)
    far = np.full((SIDE, SIDE, 3), (200, 30, 30), np.uint8)
    assert agreed(near, product).colour_distance < agreed(far, product).colour_distance


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (8, 8)])
@pytest.mark.parametrize("level", [0, 255])
def test_odd_products_and_scenes_give_figures_or_nulls(shape, level):
    """One pixel, a line, no scene beside it: figures are finite or null, and nothing raises."""
    pixels = np.full((*shape, 3), level, np.uint8)
    product = Cutout(pixels, pixels, np.full(shape, 255, np.uint8))
    whole = Box(0, 0, shape[1], shape[0])
    alpha = compositing.placed_alpha(product, whole, shape[::-1])
    found = lighting.agreement(pixels, alpha, lighting.product_light(product), pixels)
    assert all(v is None or np.isfinite(v) for v in found.figures().values())
    empty = lighting.agreement(pixels, np.zeros(shape, np.uint8), Light(90, 0), pixels)
    assert (empty.colour_distance, empty.contact_share) == (None, None)


@pytest.mark.parametrize(
    ("a", "b", "difference"),
    [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 2.5, 0), (50, 0, -2.5), 4.3065),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((50, -0.001, 2.49), (50, 0.0011, -2.49), 4.7461),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((22.7233, 20.0904, -46.694), (23.0331, 14.973, -42.5619), 2.0373),
        ((50, 0, 0), (50, -1, 2), 2.3669),
        ((2.0776, 0.0795, -1.135), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_colour_difference_is_the_published_one(a, b, difference):
    """Pairs of the table in Sharma, Wu & Dalal, 2005."""
    assert colours.ciede2000(np.array(a), np.array(b)) == pytest.approx(difference, abs=1e-4)


def test_lab_of_known_colours():
    known = {(255, 255, 255): (100, 0, 0), (255, 0, 0): (53.24, 80.09, 67.20), (0, 0, 0): (0, 0, 0)}
    for rgb, lab in known.items():
        assert colours.lab(np.uint8([rgb]))[0] == pytest.approx(lab, abs=0.02)
