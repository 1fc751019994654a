import numpy as np
import pytest
from PIL import Image, ImageFilter

from adbooster.pictures import compositing, cutouts, images, layout, proof, quality


@pytest.fixture(scope="module")
def placed(packshot):
    """(picture uint8 [256,256,3], cutout, box): the product on noise."""
    cutout = cutouts.cut(*packshot)
    box = layout.Box(40, 60, cutout.alpha.shape[1] // 2, cutout.alpha.shape[0] // 2)
    scene = np.random.default_rng(0).integers(60, 200, (256, 256, 3), dtype=np.uint8)
    return compositing.compose(scene, cutout, box), cutout, box


def alpha_of(placed):
    picture, cutout, box = placed
    alpha = np.zeros(picture.shape[:2], np.uint8)
    alpha[box.slices] = cutout.scaled(box.width_px, box.height_px).alpha
    return alpha


def test_an_unaltered_product_is_equal(placed):
    assert proof.identity(*placed) == {"product_max_diff": 0, "psnr_db": 99.0}


def test_one_altered_pixel_is_found(placed):
    picture, cutout, box = placed
    solid = np.argwhere(alpha_of(placed) == 255)
    y, x = solid[len(solid) // 2]
    altered = picture.copy()
    altered[y, x, 1] ^= 1
    assert proof.identity(altered, cutout, box)["product_max_diff"] == 1


def test_a_lossy_file_has_a_psnr(placed):
    picture, cutout, box = placed
    content, _ = images.encode(picture, "jpeg", 80)
    found = proof.identity(images.decode(content), cutout, box)
    assert found["product_max_diff"] > 0
    assert 20 < found["psnr_db"] < 60


def test_sharpness_is_of_the_background(placed):
    picture, alpha = placed[0], alpha_of(placed)
    blurred = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(4)))
    sharp, soft = quality.light(picture, alpha), quality.light(blurred, alpha)
    assert soft["sharpness"] < sharp["sharpness"] / 4
    product_changed = picture.copy()
    product_changed[alpha == 255] = 0
    assert quality.light(product_changed, alpha) == pytest.approx(sharp)


def test_exposure_and_lost_light(placed):
    alpha = alpha_of(placed)
    white = quality.light(np.full((256, 256, 3), 255, np.uint8), alpha)
    assert (white["exposure"], white["clipped_share"], white["sharpness"]) == pytest.approx((1, 1, 0), abs=1e-3)
    grey = quality.light(np.full((256, 256, 3), 128, np.uint8), alpha)
    assert (grey["exposure"], grey["clipped_share"]) == pytest.approx((0.502, 0), abs=1e-3)


def test_a_picture_that_is_all_product_has_no_background(placed):
    found = quality.light(placed[0], np.full((256, 256), 255, np.uint8))
    assert found == {"sharpness": None, "exposure": None, "clipped_share": None}
