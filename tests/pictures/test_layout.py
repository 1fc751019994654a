import numpy as np
import pytest
from scipy import ndimage

from adbooster.contracts.recipe import Stand, placements
from adbooster.pictures import compositing, cutouts, images, layout, proof

STAND = placements()["square"]


@pytest.fixture(scope="module")
def cutout(packshot):
    return cutouts.cut(*packshot)


def test_product_pixels_survive_to_the_stored_file(packshot, cutout):
    """The first promise, on stored bytes: inside the eroded mask they are the photo's, at 1:1."""
    photo, mask = packshot
    height, width = cutout.alpha.shape
    box = layout.Box(30, 40, width, height)
    background = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    stored = images.decode(images.encode_lossless(compositing.compose(background, cutout, box)))
    ys, xs = np.nonzero(mask > cutouts.ON)
    solid = ndimage.binary_erosion(mask == 255, iterations=2)[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    assert solid.sum() > 2000
    original = photo[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    assert np.array_equal(stored[box.slices][solid], original[solid])
    assert proof.product_difference(stored, cutout, box) == 0


def test_an_altered_product_is_found_out(cutout):
    height, width = cutout.alpha.shape
    box = layout.Box(0, 0, width, height)
    picture = compositing.compose(np.zeros((512, 512, 3), np.uint8), cutout, box)
    y, x = np.argwhere(cutout.alpha == 255)[50]
    picture[y, x, 1] ^= 1
    assert proof.product_difference(picture, cutout, box) == 1


def test_no_white_halo_on_a_dark_scene(cutout):
    """Along the soft edge the product's own colours show, not the white page it was photographed on."""
    dark = np.full((512, 512, 3), 10, np.uint8)
    box = layout.Box(100, 100, cutout.alpha.shape[1], cutout.alpha.shape[0])
    edge = (cutout.alpha > 40) & (cutout.alpha < 215)
    ours = compositing.compose(dark, cutout, box)[box.slices][edge].astype(float)
    alpha = cutout.alpha[edge, None] / 255
    naive = cutout.pixels[edge] * alpha + 10 * (1 - alpha)
    inside = cutout.pixels[cutout.alpha == 255].max(axis=1).mean()
    assert naive.mean() > ours.mean() + 10
    assert ours.max(axis=1).mean() < inside


@pytest.mark.parametrize("seed", range(20))
def test_placed_inside_and_never_enlarged(cutout, seed):
    box = layout.place(cutout, (512, 512), STAND, seed)
    assert box.width_px <= cutout.alpha.shape[1]
    assert box.height_px <= cutout.alpha.shape[0]
    assert 0 <= box.x_px <= 512 - box.width_px
    assert 0 <= box.y_px <= 512 - box.height_px
    assert layout.place(cutout, (512, 512), STAND, seed) == box


def test_scaled_down_stays_the_scaled_photo(cutout):
    small = cutout.scaled(40, 30)
    assert np.array_equal(small.pixels, images.resize(cutout.pixels, 40, 30))
    assert np.array_equal(small.colours[small.alpha == 255], small.pixels[small.alpha == 255])


def test_model_sees_the_product_where_it_will_stand(cutout):
    box = layout.place(cutout, (512, 512), STAND, 3)
    seen = compositing.overlay(cutout, box, (512, 512), (128, 128))
    image, mask = seen.image, seen.product_mask
    assert image.shape == (128, 128, 3)
    assert set(np.unique(mask)) == {0, 255}
    ys, xs = np.nonzero(mask)
    assert abs(xs.min() - box.x_px / 4) <= 2
    assert abs(ys.max() - (box.y_px + box.height_px) / 4) <= 2


@pytest.mark.parametrize("name", list(placements()))
def test_every_placement_holds_the_product_in_its_safe_zone(cutout, name):
    place = placements()[name]
    size = place.width_px // 2, place.height_px // 2
    for seed in range(20):
        box = layout.place(cutout, size, place, seed)
        assert 0 <= box.x_px <= size[0] - box.width_px
        assert 0 <= box.y_px <= size[1] - box.height_px
        if name == "story":
            assert box.y_px >= 0.14 * size[1]
            assert box.y_px + box.height_px <= 0.8 * size[1]


def test_the_anchor_decides_where_it_stands(cutout):
    left, right = (Stand(product_scale=(0.3, 0.3), ground_line=(0.9, 0.9), anchor_x=(a, a)) for a in (0, 1))
    assert layout.place(cutout, (512, 512), left, 1).x_px == 0
    box = layout.place(cutout, (512, 512), right, 1)
    assert box.x_px + box.width_px == 512


def test_a_preview_is_the_picture_in_small(cutout):
    """What is scored before the picture is finished shows what the finished one shows."""
    rng = np.random.default_rng(1)
    box = layout.place(cutout, (512, 512), STAND, 3)
    painted = images.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), 128, 128, bicubic=True)
    preview = compositing.overlay(cutout, box, (512, 512), (128, 128)).paste(painted)
    whole = compositing.compose(images.resize(painted, 512, 512, bicubic=True), cutout, box)
    assert np.abs(preview.astype(int) - images.resize(whole, 128, 128)).mean() < 2


@pytest.mark.parametrize("seed", range(30))
def test_training_crop_holds_the_product(packshot, seed):
    _, mask = packshot
    box = layout.training_crop(mask, seed)
    assert (mask[box.slices] > cutouts.ON).sum() == (mask > cutouts.ON).sum()
    assert box.width_px == box.height_px
