"""Presets of channels, and what a slot shows of a creative."""

import itertools

import pytest
import yaml

from adbooster.channels import frames
from adbooster.channels.presets import PRESETS, RATIO_TOLERANCE, Slot, load_channels
from adbooster.contracts.errors import ConfigError
from adbooster.pictures.layout import Box

NAMES = ("google_pmax", "google_merchant", "meta", "pinterest", "tiktok", "web")
SQUARE = {"ratio": [1, 1], "min_px": [100, 100], "wanted_px": [400, 400], "formats": ["jpeg"], "max_bytes": 100_000}
CHANNEL = {"name": "shop", "feed": "manifest", "limits": {"id": 50, "url": 500, "images": 5}, "slots": {"one": SQUARE}}


def slot(**changes):
    return Slot.model_validate(SQUARE | changes)


def file(tmp_path, content, name="shop.yaml"):
    path = tmp_path / name
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_every_preset_loads_under_its_name():
    assert [c.name for c in load_channels(NAMES)] == list(NAMES)
    assert sorted(p.stem for p in PRESETS.glob("*.yaml")) == sorted(NAMES)


def test_a_file_is_a_channel_of_its_own(tmp_path):
    channel = load_channels(["meta", file(tmp_path, CHANNEL)])[1]
    assert (channel.name, channel.slots["one"].wanted_px) == ("shop", (400, 400))
    assert channel.digital_source_type == "compositeWithTrainedAlgorithmicMedia"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "../up"}, "name"),
        ({"feed": "fax"}, "feed"),
        ({"digital_source_type": "digitalCapture"}, "digital_source_type"),
        ({"slots": {}}, "slots"),
        ({"slots": {"one": SQUARE | {"wanted_px": [400, 300]}}}, "is not of the ratio 1 : 1"),
        ({"slots": {"one": SQUARE | {"wanted_px": [90, 90]}}}, "less than min_px"),
        ({"slots": {"one": SQUARE | {"formats": ["avif"]}}}, "formats"),
        ({"slots": {"one": SQUARE | {"safe_area": {"left": 0.5, "right": 0.5}}}}, "no room for the product"),
        (
            {"slots": {"one": SQUARE | {"safe_area": {"left": 0.6}, "product": {"centre_x": [0, 0.5]}}}},
            "no product has",
        ),
        ({"slots": {"one": SQUARE | {"safe_area": {"top": 0.9}, "product": {"centre_y": [0, 0.8]}}}}, "no product has"),
        (
            {"slots": {"one": SQUARE | {"product": {"scale": [1, 2]}}}},
            r"no product has a place: at product.scale 1 or more .* reaches into the safe area",
        ),
        ({"slots": {"one": SQUARE | {"tags": ["X"]}}}, "meta_catalog"),
        ({"forms": ["xml"]}, "manifest is not written as xml, only as json"),
        ({"forms": ["json", "json"]}, "names one twice"),
        ({"feed": "tiktok_catalog", "slots": {"one": SQUARE | {"formats": ["webp"]}}}, "does not take"),
        ({"feed": "google_ads_assets"}, "asset"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_channel_that_cannot_work_is_refused_with_what_is_wrong(tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said):
        load_channels([file(tmp_path, CHANNEL | changes)])


def test_two_channels_do_not_share_a_folder(tmp_path):
    with pytest.raises(ConfigError, match="delivery/meta"):
        load_channels(["meta", file(tmp_path, CHANNEL | {"name": "meta"})])
    with pytest.raises(ConfigError, match="no channel 'nowhere'"):
        load_channels(["nowhere"])


def inside(box, product, slot):
    """The product lies in the frame, off its margins, where the slot wants it."""
    safe, place = slot.safe_area, slot.product
    left, top = product.x_px - box.x_px, product.y_px - box.y_px
    right, bottom = box.width_px - left - product.width_px, box.height_px - top - product.height_px
    assert left >= safe.left * box.width_px - 1e-6
    assert right >= safe.right * box.width_px - 1e-6
    assert top >= safe.top * box.height_px - 1e-6
    assert bottom >= safe.bottom * box.height_px - 1e-6
    x, y = (left + product.width_px / 2) / box.width_px, (top + product.height_px / 2) / box.height_px
    assert place.centre_x[0] - 1e-6 <= x <= place.centre_x[1] + 1e-6
    assert place.centre_y[0] - 1e-6 <= y <= place.centre_y[1] + 1e-6
    share = max(product.width_px, product.height_px) / min(box.width_px, box.height_px)
    assert place.scale[0] - 0.01 <= share <= place.scale[1] + 0.01


def test_every_frame_holds_the_product_is_no_enlargement_and_has_the_ratio():
    """Every slot of every preset, on masters of all placements, with products of many sizes and places."""
    masters = [(1080, 1080), (1200, 628), (1080, 1350), (1080, 1920), (512, 512)]
    slots = [s for c in load_channels(NAMES) for s in c.slots.values()]
    slots.append(slot(product={"centre_x": [0.4, 0.6], "centre_y": [0.5, 0.8], "scale": [0.3, 0.7]}))
    found = {
        "crop": 0,
        "needs_extension": 0,
        "too_small": 0,
    }  # each of these products has a place in each of these slots
    places = itertools.product(masters, (0.25, 0.5, 0.7), (0.6, 1.0, 1.6), (0.1, 0.5, 0.9), (0.5, 0.95))
    for (size, scale, shape, x, ground), s in itertools.product(list(places), slots):
        longer = scale * min(size)
        wide, high = round(longer * min(1, shape)), round(longer * min(1, 1 / shape))
        product = Box(round((size[0] - wide) * x), max(0, round(size[1] * ground) - high), wide, high)
        box, out, reason = frames.frame(size, product, s)
        found[reason or "crop"] += 1
        if reason == "too_small":
            assert box is out is None
            continue
        assert box is not None
        assert out is not None
        inside(box, product, s)
        assert out[0] <= box.width_px
        assert out[1] <= box.height_px
        assert all(least <= n <= most for least, n, most in zip(s.min_px, out, s.wanted_px, strict=True))
        assert abs(out[0] / out[1] / (s.ratio[0] / s.ratio[1]) - 1) <= RATIO_TOLERANCE
        within = box.x_px >= 0 and box.y_px >= 0
        within &= box.x_px + box.width_px <= size[0] and box.y_px + box.height_px <= size[1]
        assert within == (reason is None)
    assert min(found["crop"], found["needs_extension"], found["too_small"]) > 50


def test_the_largest_frame_is_taken_and_near_the_wanted_size_pixels_stay_as_they_are():
    product = Box(200, 200, 200, 200)
    assert frames.frame((600, 600), product, slot()) == (Box(0, 0, 600, 600), (400, 400), None)
    near = frames.frame((410, 600), Box(100, 200, 200, 200), slot())
    assert (near.frame.width_px, near.size) == (400, (400, 400))
    assert frames.frame((300, 600), Box(50, 200, 200, 200), slot()).size == (300, 300)


def test_the_ground_under_a_product_is_seen():
    """A product that stands low in its creative keeps some of the ground in a flat slot."""
    flat = frames.frame(
        (600, 600), Box(200, 300, 200, 250), slot(ratio=[2, 1], min_px=[200, 100], wanted_px=[400, 200])
    )
    assert flat.reason is None
    assert flat.frame.y_px + flat.frame.height_px >= 550 + 0.04 * flat.frame.height_px


def test_why_a_slot_stays_empty():
    wide = {"ratio": [2, 1], "min_px": [200, 100], "wanted_px": [400, 200]}
    tall = Box(100, 10, 100, 380)
    extended = frames.frame((400, 400), tall, slot(**wide))
    assert extended.reason == "needs_extension"
    assert extended.frame.height_px >= 380
    assert frames.frame((90, 90), Box(20, 20, 50, 50), slot()).reason == "needs_extension"
    assert frames.frame((90, 90), Box(20, 20, 50, 50), slot(product={"scale": [0.6, 1]})).reason == "too_small"
    assert frames.frame((20, 20), Box(2, 2, 16, 16), slot()).reason == "too_small"
    narrow = slot(safe_area={"left": 0.3, "right": 0.3}, product={"scale": [0.5, 1]})
    assert frames.frame((400, 400), Box(100, 190, 200, 20), narrow).reason == "product_outside"
    assert frames.frame((400, 400), Box(190, 100, 20, 200), narrow).reason is None


def test_a_safe_area_moves_the_frame():
    product = Box(50, 300, 100, 100)
    free = frames.frame((400, 800), product, slot())
    kept = frames.frame((400, 800), product, slot(safe_area={"bottom": 0.6}))
    assert free.reason is kept.reason is None
    assert kept.frame.y_px + kept.frame.height_px * 0.4 >= 400
    assert kept.frame != free.frame
