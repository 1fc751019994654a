import hashlib
import time

import numpy as np
import pytest

from adbooster.contracts.errors import AdboosterError
from adbooster.contracts.recipe import Harmonise, Recipe, placements
from adbooster.painting import finish
from adbooster.pictures import compositing, cutouts, images, layout, proof
from adbooster.tiny import world


@pytest.fixture(scope="module")
def cutout(packshot):
    return cutouts.cut(*packshot)


@pytest.fixture
def box(cutout):
    return layout.place(cutout, (400, 400), placements()["square"], 1)


def grey(side: int = 400, level: int = 200):
    return np.full((side, side, 3), level, np.uint8)


@pytest.mark.parametrize(("kind", "extension"), [("webp_lossless", "webp"), ("png", "png")])
def test_lossless_files_hold_the_photos_pixels(cutout, box, kind, extension):
    picture = finish.finish(grey(64), cutout, box, (400, 400), Recipe(shadow="contact"))
    file = finish.encode(picture, cutout, box, Recipe(image_format=kind))
    assert (file.extension, file.product_max_diff, file.psnr_db) == (extension, 0, None)
    assert np.array_equal(images.decode(file.content), picture)


@pytest.mark.parametrize(("kind", "extension"), [("webp", "webp"), ("jpeg", "jpg")])
def test_lossy_files_say_what_they_cost(cutout, box, kind, extension):
    picture = finish.finish(grey(64), cutout, box, (400, 400), Recipe(shadow="none"))
    good, poor = (finish.encode(picture, cutout, box, Recipe(image_format=kind, quality=q)) for q in (95, 20))
    assert good.extension == extension
    assert good.psnr_db > poor.psnr_db > 15
    assert len(good.content) > len(poor.content)
    stored = images.decode(poor.content)
    product = cutout.scaled(box.width_px, box.height_px)
    error = (stored[box.slices].astype(float) - product.pixels)[product.alpha == 255]
    assert poor.psnr_db == pytest.approx(10 * np.log10(255**2 / (error**2).mean()))


STORED = {"none": "eaa10eb8997fab36", "contact": "6e3ab65ab06073b7"}  # pixels as of 2026-11, before stages were split


@pytest.mark.parametrize("shadow", STORED)
def test_a_painting_becomes_the_picture_that_it_became_before(shadow):
    """What is live stays comparable: the same painting, place and recipe give the same pixels from version to version."""
    cutout, recipe = cutouts.cut(*world.packshot("teapot", 600)), Recipe(shadow=shadow, size_px=540)
    box = layout.place(cutout, (540, 540), placements()["square"], 5)
    rows, columns = np.indices((128, 128))
    painted = np.stack([rows * 2 % 256, columns * 3 % 256, (rows + columns) % 256], -1).astype(np.uint8)
    file = finish.encode(finish.finish(painted, cutout, box, (540, 540), recipe), cutout, box, recipe)
    assert hashlib.sha256(images.decode(file.content).tobytes()).hexdigest()[:16] == STORED[shadow]


def test_an_altered_product_is_not_stored(cutout, box):
    picture = finish.finish(grey(64), cutout, box, (400, 400), Recipe(shadow="none"))
    y, x = np.argwhere(cutout.scaled(box.width_px, box.height_px).alpha == 255)[100]
    picture[box.y_px + y, box.x_px + x] ^= 8
    with pytest.raises(AdboosterError, match="by up to 8 levels"):
        finish.encode(picture, cutout, box, Recipe())


def test_a_shadow_lies_under_the_product_and_never_on_it(cutout, box):
    plain, shaded = (finish.finish(grey(), cutout, box, (400, 400), Recipe(shadow=s)) for s in ("none", "contact"))
    assert proof.product_difference(shaded, cutout, box) == 0
    darker = (plain.astype(int) - shaded).max(axis=2)
    ys, xs = np.nonzero(darker > 20)
    assert len(ys) > 50
    assert ys.min() > box.y_px + 0.8 * box.height_px
    assert box.x_px - 20 < xs.mean() < box.x_px + box.width_px + 20


def test_no_second_shadow_where_the_model_painted_one(cutout, box):
    scene = grey()
    ground = box.y_px + box.height_px
    scene[ground - 5 : ground + 30, box.x_px : box.x_px + box.width_px] = 90
    assert np.array_equal(finish.contact_shadow(scene, cutout, box), scene)
    assert not np.array_equal(finish.contact_shadow(grey(), cutout, box), grey())


EVERYTHING = Harmonise(exposure_stops=0.5, white_balance=0.2, grain=True, reflection=0.4)


@pytest.mark.parametrize("level", [20, 120, 250])
def test_all_that_is_drawn_toward_the_product_leaves_it_exact(cutout, box, level):
    """The first promise with every setting on: the stored file holds the photo's pixels."""
    recipe = Recipe(shadow="grounded", harmonise=EVERYTHING)
    picture = finish.finish(grey(64, level), cutout, box, (400, 400), recipe)
    assert finish.encode(picture, cutout, box, recipe).product_max_diff == 0
    assert not np.array_equal(picture, finish.finish(grey(64, level), cutout, box, (400, 400), Recipe()))
    assert np.array_equal(picture, finish.finish(grey(64, level), cutout, box, (400, 400), recipe))


@pytest.mark.parametrize("shadow", ["none", "contact"])
def test_with_all_of_it_off_pictures_are_those_of_earlier_versions(cutout, box, shadow):
    painted = np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8)
    scene = images.resize(painted, 400, 400, bicubic=True)
    if shadow == "contact":
        scene = finish.contact_shadow(scene, cutout, box)
    made = finish.finish(painted, cutout, box, (400, 400), Recipe(shadow=shadow))
    assert np.array_equal(made, compositing.compose(scene, cutout, box))


def test_grounding_costs_no_more_than_a_few_contact_shadows():
    photo, mask = (images.resize(a, 900, 900, bicubic=True) for a in world.packshot("teapot", 256))
    cutout = cutouts.cut(photo, mask)
    box = layout.place(cutout, (1080, 1080), placements()["square"], 1)
    painted = np.random.default_rng(3).integers(0, 256, (128, 128, 3), np.uint8)

    def seconds(recipe: Recipe) -> float:
        times = []
        for _ in range(4):
            started = time.process_time()
            finish.finish(painted, cutout, box, (1080, 1080), recipe)
            times.append(time.process_time() - started)
        return min(times)

    everything = Recipe(shadow="grounded", harmonise=EVERYTHING)
    assert seconds(everything) < 6 * seconds(Recipe(shadow="contact"))
