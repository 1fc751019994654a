"""A feed that its channel would refuse is stopped with the entry, the field, the value and the rule."""

from dataclasses import replace

import pytest

from adbooster.channels import validation
from adbooster.channels.presets import load_channels
from adbooster.contracts.errors import AdboosterError
from tests.channels.made import BASE, FACTS, HOSTILE, NAMES, made, rows

COHORTS = tuple(f"c{i:02}" for i in range(14))
GOOD = f"{BASE}/objects/ab/{'ab' * 32}.jpg"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_built_passes(name):
    """Whatever the ids, titles and cohorts, and however many scenes there are."""
    facts = {p: {"title": f"{p}\n<x>", "brand": p} | FACTS for p in HOSTILE}
    google = {"content_language": "de", "feed_label": "CH-DE", "additional_images": 10, "custom_label": 0}
    feed = made(name, HOSTILE, (*HOSTILE, *COHORTS), facts, **google, catalog_uri="/c.csv")
    validation.check(feed, rows(feed.settings.channel, HOSTILE, (*HOSTILE, *COHORTS)))
    assert feed.entries


def spoiled(name, field, value, **about):
    """A feed of one entry with another value in one field, and the rows of its pictures."""
    feed = made(name, **about)
    (key,) = feed.entries
    return replace(feed, entries={key: feed.entries[key] | {field: value}}), rows(feed.settings.channel)


@pytest.mark.parametrize(
    ("name", "field", "value", "rule"),
    [
        ("google_merchant", "id", "x" * 51, "at most 50 characters, has 51"),
        ("tiktok", "sku_id", "x" * 101, "at most 100 characters"),
        ("google_merchant", "id", "", "should be there"),
        ("google_merchant", "id", "a\u202eb", "one line without control characters"),
        ("meta", "title", "t" * 201, "at most 200 characters"),
        ("tiktok", "title", "a\tb", "one line"),
        ("pinterest", "custom_label_0", "c" * 101, "at most 100 characters"),
        ("meta", "image[0].tag[0]", "c" * 101, "at most 100 characters"),
        ("google_merchant", "lifestyle_image_link", GOOD.replace("https", "http"), "an https address"),
        ("google_merchant", "lifestyle_image_link", f"{GOOD}?v=1", "no query"),
        ("google_merchant", "lifestyle_image_link", GOOD.replace("/ads", "/äds"), "should be ASCII"),
        (
            "google_merchant",
            "lifestyle_image_link",
            GOOD.replace(".jpg", ".avif"),
            "should end in .jpeg, .jpg, .png, .webp",
        ),
        ("tiktok", "image_link", GOOD.replace(".jpg", ".webp"), "should end in .jpeg, .jpg, .png"),
        ("pinterest", "image_link", f"{BASE}/{'a' * 500}.jpg", "at most 511 characters"),
        ("meta", "image[0].url", GOOD, "should be a picture of tables/deliveries"),
        ("meta", "image[0].url", f"{GOOD} ", "without spaces"),
    ],
)
def test_a_value_that_is_refused_is_named(name, field, value, rule):
    feed, about = spoiled(name, field, value)
    with pytest.raises(AdboosterError) as stopped:
        validation.check(feed, about)
    said = str(stopped.value)
    assert f"the feed of {name} would be refused: entry 'P1', {field} " in said
    assert rule in said
    assert said.endswith("nothing was published")


@pytest.mark.parametrize(
    ("name", "changes", "rule"),
    [
        ("google_merchant", {"width_px": 1480}, "has 1480 x 1500 pixels, the slot lifestyle is 1 : 1 within 1%"),
        ("tiktok", {"width_px": 499, "height_px": 499}, "has 499 x 499 pixels, the slot square needs 500 x 500"),
        ("pinterest", {"size_bytes": 10_000_001}, "has 10000001 bytes, the slot pin takes 10000000"),
        ("tiktok", {"format": "webp"}, "is webp, the slot square takes jpeg, png"),
        ("pinterest", {"format": "png"}, "is png, and its address says otherwise"),
        ("google_merchant", {"slot": "hero"}, "the slot 'hero', which the channel does not have"),
    ],
)
def test_a_picture_that_is_refused_is_named(name, changes, rule):
    feed = made(name)
    about = [row | changes for row in rows(feed.settings.channel)]
    with pytest.raises(AdboosterError, match=f"entry 'P1', .*image_link .*: .*{rule}"):
        validation.check(feed, about)
    validation.check(feed, rows(feed.settings.channel))


def test_a_ratio_within_one_percent_passes():
    feed = made("google_merchant")
    validation.check(feed, [row | {"width_px": 1490} for row in rows(feed.settings.channel)])


def test_a_channels_file_that_asks_for_more_pictures_than_the_platform_takes_is_stopped():
    feed = made("pinterest", cohorts=COHORTS, limits={"images": 14})
    with pytest.raises(AdboosterError, match="additional_image_link 13: should hold at most 10 pictures"):
        validation.check(feed, rows(feed.settings.channel, cohorts=COHORTS))


def test_assets_in_a_group_are_counted_by_type():
    feed = made("google_pmax", cohorts=("c1",))
    group = feed.entries["c1"]
    many = replace(
        feed, entries={"c1": group | {"assets": {"MARKETING_IMAGE": group["assets"]["MARKETING_IMAGE"] * 21}}}
    )
    with pytest.raises(AdboosterError, match=r"assets.MARKETING_IMAGE.url 21: should hold at most 20"):
        validation.check(many, rows(feed.settings.channel))


def test_two_entries_of_one_id_are_stopped():
    feed = made("google_merchant", ("P1", "P2"))
    twice = replace(feed, entries={key: entry | {"id": "P1"} for key, entry in feed.entries.items()})
    with pytest.raises(AdboosterError, match="id 'P1': is the id of 2 entries"):
        validation.check(twice, rows(load_channels(["google_merchant"])[0], ("P1", "P2")))
