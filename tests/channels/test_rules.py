"""Feeds as other readers find them, against the rules that the platforms publish, written down here a second time."""

import base64
import csv
import io
import json
import re
from urllib.parse import urlsplit

import pytest
from lxml import etree

from adbooster.channels import feed_text
from adbooster.channels.presets import load_channels
from tests.channels.made import BASE, FACTS, HOSTILE, UNWRITABLE, made, rows

G = "{http://base.google.com/ns/1.0}"
COHORTS = ("snow", 'a <b> & "c", d|e', "حملة العيد", "🎃 halloween", *(f"c{i:02}" for i in range(12)))
GOOGLE = {"content_language": "en", "feed_label": "US", "additional_images": 10, "custom_label": 3}


def table(content, separator):
    """Cells by column; a tab-delimited file knows no quotes."""
    how = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if separator == "\t" else {"strict": True}
    header, *lines = csv.reader(io.StringIO(content.decode("utf-8", "strict"), newline=""), **how)
    assert all(len(line) == len(header) for line in lines)
    return [dict(zip(header, line, strict=True)) for line in lines]


def addressed(address, longest, endings):
    """What Google, Meta, Pinterest and TikTok ask of the address of a picture."""
    assert len(address) <= longest
    assert re.fullmatch(r"https://[A-Za-z0-9./_~-]+", address), "ASCII; no comma, space, query or fragment"
    assert urlsplit(address).path.rsplit(".", 1)[1] in endings


def google_items(form):
    """(id, lifestyle links, additional links, label) of every entry, each form by a reader of its own."""
    content = feed_text.encode(made("google_merchant", HOSTILE, COHORTS, forms=(form,), **GOOGLE))
    if form == "tsv":
        names = ("lifestyle_image_link", "additional_image_link", "custom_label_3")
        for line in table(content, "\t"):
            assert set(line) == {"id", *names}, "columns of the shop's own feed would be replaced"
            yield line["id"], [line[names[0]]], line[names[1]].split(","), line[names[2]]
    elif form == "xml":
        rss = etree.fromstring(content)
        assert (rss.tag, rss.get("version")) == ("rss", "2.0")
        assert all(rss.findtext(f"channel/{name}") for name in ("title", "link", "description"))
        for item in rss.iterfind("channel/item"):
            names = ("id", "lifestyle_image_link", "additional_image_link", "custom_label_3")
            found = [[e.text for e in item.iterfind(f"{G}{name}")] for name in names]
            assert sum(map(len, found)) == len(item)
            (own,), lifestyle, more, (label,) = found
            yield own, lifestyle, more, label
    else:
        for line in content.decode().split("\n")[:-1]:
            body = json.loads(line)
            assert set(body) == {"offerId", "contentLanguage", "feedLabel", "productAttributes"}
            assert (body["contentLanguage"], body["feedLabel"]) == ("en", "US")
            about = body["productAttributes"]
            assert set(about) == {"lifestyleImageLinks", "additionalImageLinks", "customLabel3"}
            yield body["offerId"], about["lifestyleImageLinks"], about["additionalImageLinks"], about["customLabel3"]


@pytest.mark.parametrize("form", ["tsv", "xml", "merchant_api"])
def test_google_finds_the_same_in_every_form_and_nothing_to_refuse(form):
    found = list(google_items(form))
    assert {own for own, *_ in found} == set(HOSTILE) - UNWRITABLE
    assert found == list(google_items("tsv"))
    for own, lifestyle, more, label in found:
        assert len(own) <= 50
        assert len(lifestyle) == 1
        assert len(more) <= 10
        assert len({*lifestyle, *more}) == 1 + len(more)
        assert 0 < len(label) <= 100
        for address in lifestyle + more:
            addressed(address, 2000, {"jpg", "jpeg", "png", "webp"})


def test_a_field_that_an_entry_does_not_have_is_not_in_its_product_input():
    """An insert replaces what the data source had: an empty list would be a value."""
    feed = made("google_merchant", forms=("merchant_api", "xml"), **GOOGLE)
    body = json.loads(feed_text.encode(feed, "merchant_api"))
    assert set(body["productAttributes"]) == {"lifestyleImageLinks", "customLabel3"}
    assert etree.fromstring(feed_text.encode(feed, "xml")).find(f".//{G}additional_image_link") is None


@pytest.mark.parametrize("offer_id", ["sku-1_A", "a/b", "50%", "a~b", "a.b", "ü", "a b", "😀+1"])
def test_product_inputs_are_named_so_that_the_merchant_api_finds_them(offer_id):
    name = feed_text.product_input(offer_id, {"contentLanguage": "en", "feedLabel": "US"})
    if offer_id == "sku-1_A":
        assert name == "en~US~sku-1_A"
    else:
        assert re.fullmatch(r"[A-Za-z0-9_-]+", name)
        padded = name + "=" * (-len(name) % 4)
        assert base64.urlsafe_b64decode(padded).decode() == f"en~US~{offer_id}"


def test_meta_finds_every_picture_with_its_tags():
    facts = {p: {"title": f'{p} "x", <y> &\t{"t" * 90}'} for p in HOSTILE}
    feed = made("meta", HOSTILE, COHORTS, facts)
    found = table(feed_text.encode(feed), ",")
    assert {item["id"] for item in found} == set(HOSTILE) - UNWRITABLE
    shapes = {frozenset(slot.tags): slot.ratio for slot in load_channels(["meta"])[0].slots.values()}
    assert shapes[frozenset({"ASPECT_RATIO_4_5_PREFERRED"})] == (4, 5)
    assert shapes[frozenset({"ASPECT_RATIO_9_16_PREFERRED", "STORY_PREFERRED", "REELS_PREFERRED"})] == (9, 16)
    for item in found:
        assert len(item["id"]) <= 100
        assert len(item["title"]) <= 200
        numbers = [int(m[1]) for name in item if (m := re.fullmatch(r"image\[(\d+)\]\.url", name))]
        assert numbers == list(range(20))
        for i in numbers:
            addressed(item[f"image[{i}].url"], 2000, {"jpg", "jpeg", "png"})
            tags = [value for name, value in item.items() if name.startswith(f"image[{i}].tag[") and value]
            assert tags
            assert all(len(tag) <= 100 and "," not in tag for tag in tags)
            assert frozenset(tags[1:]) in shapes


@pytest.mark.parametrize(
    ("name", "key", "needed", "longest", "endings"),
    [
        ("pinterest", "id", {"description"}, (127, 500, 511), {"jpg", "jpeg", "png", "webp"}),
        ("tiktok", "sku_id", {"description", "condition", "brand"}, (100, 150, 2000), {"jpg", "jpeg", "png"}),
    ],
)
def test_pinterest_and_tiktok_find_all_that_they_need(name, key, needed, longest, endings):
    """Products of which the shop's feed says too little, or whose page's address is too long, are left out."""
    facts = {p: {"title": f"{p} <b>", "brand": "B"} | FACTS for p in HOSTILE}
    facts |= {f"no {field}": facts["ü/~%"] | {field: ""} for field in ("description", "condition", "brand", "price")}
    facts |= {"far": facts["ü/~%"] | {"link": "https://s/" + "a" * 2000}, "gone": {"title": "x"}}
    feed = made(name, tuple(facts), COHORTS, facts, catalog_uri="/catalog.csv")
    found = table(feed_text.encode(feed), "\t")
    optional = {"description", "condition", "brand"} - needed
    assert {item[key] for item in found} == set(HOSTILE) - UNWRITABLE | {f"no {field}" for field in optional}
    assert feed.left_out["link_too_long"] == feed.left_out["not_in_catalog"] == 1
    assert feed.left_out["incomplete_in_catalog"] == len(needed) + 1
    for item in found:
        assert all(item[field] for field in needed | {"title", "link", "price", "availability", "image_link"})
        assert len(item[key]) <= longest[0]
        assert len(item["title"]) <= longest[1]
        assert len(item["link"]) <= longest[2]
        more = item["additional_image_link"].split(",")
        assert len(more) <= 10
        for address in [item["image_link"], *more]:
            addressed(address, longest[2], endings)


def test_google_ads_finds_a_group_a_cohort_with_pictures_of_four_ratios():
    groups = json.loads(feed_text.encode(made("google_pmax", ("P1", "P2"), COHORTS, custom_label=2)))["entries"]
    assert [group["cohort_id"] for group in groups] == sorted(COHORTS)
    ratios = {
        "MARKETING_IMAGE": (1.91, (600, 314)),
        "SQUARE_MARKETING_IMAGE": (1, (300, 300)),
        "PORTRAIT_MARKETING_IMAGE": (0.8, (480, 600)),
        "TALL_PORTRAIT_MARKETING_IMAGE": (0.5625, (600, 1067)),
    }
    for group in groups:
        label = group["audience_signal"]
        assert 0 < len(label) <= 100
        assert group["asset_group"] == label
        assert group["listing_group"] == {"custom_label_2": label}
        assert group["synthetic_content_info"] == {"advertiser_attestation": "IS_SYNTHETIC"}
        assert set(group["assets"]) == set(ratios)
        for kind, assets in group["assets"].items():
            ratio, least = ratios[kind]
            assert 1 <= len(assets) <= 20
            for asset in assets:
                addressed(asset["url"], 2048, {"jpg", "jpeg", "png"})
                assert abs(asset["width_px"] / asset["height_px"] / ratio - 1) <= 0.01
                width, height = map(float, asset["ratio"].split(":"))
                assert width / height == pytest.approx(ratio)
                assert (asset["width_px"], asset["height_px"]) >= least
                assert asset["size_bytes"] <= 5_120_000
    assert len({group["audience_signal"] for group in groups}) == len(COHORTS)


@pytest.mark.parametrize(
    ("name", "formats", "least", "most_bytes"),
    [
        ("google_merchant", {"jpeg", "png", "webp"}, {"lifestyle": (500, 500)}, 16_000_000),
        ("google_pmax", {"jpeg", "png"}, {"tall_portrait_marketing_image": (600, 1067)}, 5_120_000),
        ("meta", {"jpeg", "png"}, {"square": (500, 500), "portrait": (600, 750)}, 8_000_000),
        ("tiktok", {"jpeg", "png"}, {"square": (500, 500)}, 5_000_000),
    ],
)
def test_what_slots_may_hold_is_what_platforms_take(name, formats, least, most_bytes):
    slots = load_channels([name])[0].slots
    for slot in slots.values():
        assert set(slot.formats) <= formats
        assert slot.max_bytes <= most_bytes
    for slot, size in least.items():
        assert all(n >= m for n, m in zip(slots[slot].min_px, size, strict=True))


def test_a_product_page_finds_every_picture_by_cohort_and_slot():
    (entry,) = json.loads(feed_text.encode(made("web", cohorts=COHORTS)))["entries"]
    assert set(entry["cohorts"]) == set(COHORTS)
    wanted = {f"{BASE}/{row['uri']}" for row in rows(load_channels(["web"])[0], cohorts=COHORTS)}
    assert {about["url"] for slots in entry["cohorts"].values() for about in slots.values()} == wanted
