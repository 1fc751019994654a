import numpy as np
import pytest
from PIL import Image, ImageDraw

from adbooster.models.saliency import SaliencyNet
from adbooster.pictures.matting import product_mask, refine
from tests.benchmarks.cutout_quality import PAGES, errors, photo
from tests.conftest import MODELS

BAND_PX = 5


@pytest.fixture(scope="module")
def net():
    return SaliencyNet(MODELS / "mask" / "u2netp.onnx", "cpu")


@pytest.mark.parametrize(
    ("product", "page", "which", "most"),
    [("backpack", "grey", "sure", 0.9), ("scarf", "cream", "all", 0.2), ("scarf", "white", "all", 0.2)],
)
def test_the_page_seen_through_a_loop_is_cut_out(net, product, page, which, most):
    seen = photo(product, PAGES[page], shadow=False)
    probability = net.probabilities(seen.image)
    filled, opened = (errors(seen, refine(seen.image, probability, BAND_PX, how).mask_u8) for how in ("never", which))
    assert opened["holes_found_px"] > 0.98 * opened["holes_px"] > filled["holes_found_px"]
    assert opened["sad"] < most * filled["sad"]
    assert opened["product_lost"] <= filled["product_lost"] + 0.002


@pytest.mark.parametrize("page", list(PAGES))
def test_a_shadow_that_covers_the_page_about_a_product_closes_no_loop(net, page):
    """The page is seen in the whole photo, not in the product's box alone."""
    seen = photo("scarf", PAGES[page], shadow=True)
    found = product_mask(seen.image, net.probabilities(seen.image), None, 100_000, "all").mask_u8
    assert errors(seen, found)["holes_found_px"] > 0.98 * errors(seen, found)["holes_px"]


@pytest.mark.parametrize("page", list(PAGES))
def test_what_the_network_is_certain_of_stays_and_is_counted(net, page):
    seen = photo("scarf", PAGES[page], shadow=False)
    left = refine(seen.image, net.probabilities(seen.image), BAND_PX)
    opened = refine(seen.image, net.probabilities(seen.image), BAND_PX, "all")
    assert errors(seen, left.mask_u8)["holes_found_px"] == 0
    assert left.unsure_share > 0.05
    assert opened.unsure_share == 0


def shirt(page: int, print_: int, shaded: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A dark shirt with a print in its middle on a page; and what a network holds for product."""
    picture, product = Image.new("RGB", (256, 256), (page,) * 3), Image.new("L", (256, 256))
    ImageDraw.Draw(picture).rectangle([60, 50, 196, 210], fill=(40, 44, 60))
    ImageDraw.Draw(product).rectangle([60, 50, 196, 210], fill=255)
    photo_u8 = np.asarray(picture).copy()
    photo_u8[100:140, 100:150] = print_
    photo_u8[100:140, 100:150] -= (np.arange(40)[:, None, None] * shaded // 40).astype(np.uint8)
    return photo_u8, np.asarray(product, np.float32) / 255


@pytest.mark.parametrize(
    ("page", "print_", "shaded"), [(255, 255, 0), (248, 243, 0), (240, 240, 0), (225, 240, 0), (238, 238, 40)]
)
def test_a_print_is_no_hole(page, print_, shaded):
    """Of the page's own white, nearly that, another one, or a shaded one."""
    photo_u8, probability = shirt(page, print_, shaded)
    assert refine(photo_u8, probability, BAND_PX).mask_u8[105:135, 105:145].min() == 255


def test_of_a_scene_nothing_is_opened():
    """No plane fits its colours, so nothing has the page's colour."""
    photo_u8, probability = shirt(230, 230)
    noisy = photo_u8.astype(int) + np.random.default_rng(0).integers(-20, 20, photo_u8.shape)
    scene = np.where(probability[..., None] > 0, photo_u8, noisy.clip(0, 255)).astype(np.uint8)
    assert refine(photo_u8, probability, BAND_PX, "all").mask_u8[120, 120] == 0
    left = refine(scene, probability, BAND_PX, "all")
    assert left.mask_u8[120, 120] == 255
    assert left.unsure_share == 0


def test_a_page_that_darkens_to_one_side_is_still_one_page():
    photo_u8, probability = shirt(250, 0)
    fall = (np.arange(256) * 40 // 256).astype(np.uint8)[None, :, None]
    page = (photo_u8 == 250).all(2, keepdims=True) | (photo_u8 == 0).all(2, keepdims=True)
    shaded = np.where(page, 250 - fall, photo_u8)
    assert refine(shaded, probability, BAND_PX, "all").mask_u8[120, 120] == 0
