"""What feeds say: parsed back by other readers, within what was asked for."""

import csv
import io
import json
from typing import Any

import pytest

from adbooster.channels import feed_text
from adbooster.channels.feeds import Feed, Feeds
from adbooster.channels.presets import load_channels
from tests.channels.made import BASE, FACTS, HOSTILE, NAMES, UNWRITABLE, made


def read(feed: Feed) -> list[Any]:
    """The file as Python's own readers read it."""
    text = feed_text.encode(feed).decode()
    if feed.forms[0] == "json":
        return json.loads(text)["entries"]
    how = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if feed.forms[0] == "tsv" else {}
    return list(csv.DictReader(io.StringIO(text, newline=""), **how))


def test_googles_feed_overrides_nothing_but_the_lifestyle_picture():
    found = read(made("google_merchant", cohorts=("c1", "c2")))
    assert list(found[0]) == ["id", "lifestyle_image_link"]
    assert found[0]["lifestyle_image_link"].startswith(f"{BASE}/objects/")


def test_more_of_googles_feed_is_asked_for():
    cohorts = tuple(f"c{i:02}" for i in range(14))
    feed = made("google_merchant", cohorts=cohorts, additional_images=10, custom_label=3)
    (found,) = read(feed)
    assert found["custom_label_3"] == "c00"
    more = found["additional_image_link"].split(",")
    assert len(more) == len(set(more)) == 10
    assert found["lifestyle_image_link"] not in more
    assert feed.left_out["too_many_images"] == 3
    with pytest.raises(ValueError, match="additional_images"):
        Feeds(additional_images=11)


def test_metas_pictures_carry_cohort_and_shape_as_tags():
    found = read(made("meta", products=("P1", "P2"), cohorts=("snow", "beach")))
    item = found[0]
    tags = [[item[f"image[{i}].tag[{j}]"] for j in range(4)] for i in range(6)]
    assert {t[0] for t in tags} == {"snow", "beach"}
    assert ["snow", "ASPECT_RATIO_4_5_PREFERRED", "", ""] in tags
    assert ["beach", "ASPECT_RATIO_9_16_PREFERRED", "STORY_PREFERRED", "REELS_PREFERRED"] in tags
    assert len({item[f"image[{i}].url"] for i in range(6)}) == 6
    many = made("meta", cohorts=tuple(f"c{i:02}" for i in range(9)))
    assert many.left_out["too_many_images"] == 7
    assert "image[19].url" in many.columns
    assert "image[20].url" not in many.columns


def test_an_asset_group_is_a_cohort():
    found = read(made("google_pmax", products=("P1", "P2"), cohorts=("c1", "c2"), custom_label=0))
    assert [group["cohort_id"] for group in found] == ["c1", "c2"]
    group = found[0]
    assert set(group["assets"]) >= {"MARKETING_IMAGE", "SQUARE_MARKETING_IMAGE"}
    assert {a["product_id"] for a in group["assets"]["MARKETING_IMAGE"]} == {"P1", "P2"}
    assert group["listing_group"] == {"custom_label_0": "c1"}
    assert group["synthetic_content_info"] == {"advertiser_attestation": "IS_SYNTHETIC"}
    crowd = made("google_pmax", products=tuple(f"P{i:02}" for i in range(23)))
    assert len(read(crowd)[0]["assets"]["MARKETING_IMAGE"]) == 20
    assert crowd.left_out["too_many_images"] == 12


@pytest.mark.parametrize("name", ["pinterest", "tiktok"])
def test_catalog_feeds_take_over_what_the_shop_says(name, tmp_path):
    facts = {"P1": {"title": "One", "brand": "B"} | FACTS}
    feed = made(name, ("P1", "P2"), ("c1", "c2"), facts | {"P2": {"title": "Two"}}, catalog_uri="/catalog.csv")
    (found,) = read(feed)
    assert (found["link"], found["price"], found["availability"], found["title"]) == (
        "https://s/1",
        "9 EUR",
        "in stock",
        "One",
    )
    assert found["image_link"].endswith(".jpg")
    assert "," not in found["image_link"]
    assert found["additional_image_link"].startswith(BASE)
    assert found["sku_id" if name == "tiktok" else "id"] == "P1"
    assert feed.left_out["not_in_catalog"] == 2 - 1


@pytest.mark.parametrize("name", NAMES)
def test_hostile_ids_titles_and_cohorts_are_data(name):
    """What can be written comes back as it was; an id that would have to be altered is left out."""
    facts = {p: {"title": f"{p}\r\n\tx", "brand": p} for p in HOSTILE}
    feed = made(name, HOSTILE, HOSTILE, facts)
    slots = len(load_channels([name])[0].slots)
    found = read(feed)
    if feed.key == "cohort_id":
        ids = {a["product_id"] for group in found for assets in group["assets"].values() for a in assets}
        assert all("\t" not in group["asset_group"] and "<" not in group["asset_group"] for group in found)
    else:
        ids = {entry[feed.key] for entry in found}
        assert len(found) == len(ids)
    assert ids == set(HOSTILE) - UNWRITABLE
    assert feed.left_out["unwritable_id"] == 3 * len(HOSTILE) * slots


def test_what_a_channel_would_refuse_is_left_out():
    assert made("google_merchant", ("x" * 51,)).left_out == {"id_too_long": 1}
    facts = {"P1": {"title": "t" * 201}}
    assert made("meta", facts=facts).left_out["title_too_long"] == 3
    assert read(made("meta", facts=facts)) == []
