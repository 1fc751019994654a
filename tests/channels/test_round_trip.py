"""The feeds that go out can come in: this project's own reader of feeds finds the same ids and addresses in them.

A supplemental feed has neither titles nor main pictures: Google joins it to the shop's own rows, and so does this test.
"""

import csv
import gzip
import io
import json
from collections import defaultdict

import pytest
from lxml import etree

from adbooster.channels import feed_text
from tests.channels.made import FACTS, HOSTILE, UNWRITABLE, made
from tests.whole_feed import whole_feed

G = "{http://base.google.com/ns/1.0}"
COHORTS = ("c1", "c2", "c3")
TITLES = {p: f'{p} — "the" <b>קפה</b> & 🎃, \t; |' for p in HOSTILE}
PRODUCTS = set(HOSTILE) - UNWRITABLE
GOOGLE = {"content_language": "en", "feed_label": "US", "additional_images": 2, "custom_label": 3}


def come_in(tmp_path, content, zipped=False):
    """{product: {role: addresses}} and {product: title}, as prepare takes them."""
    path = tmp_path / "feed"
    path.write_bytes(gzip.compress(content) if zipped else content)
    found = whole_feed(str(path))
    links, titles = defaultdict(lambda: defaultdict(list)), {}
    for picture in found.pictures.to_pylist():
        assert picture["reject"] is None
        links[picture["product_id"]][picture["role"]].append(picture["image_uri"])
        titles[picture["product_id"]] = picture["title"]
    return {product: dict(roles) for product, roles in links.items()}, titles, found.format


def photo(product):
    return f"https://shop.example/{list(HOSTILE).index(product)}.png"


def supplemental(form):
    feed = made("google_merchant", HOSTILE, COHORTS, forms=(form,), **GOOGLE)
    expected = {
        product: {
            "main": [photo(product)],
            "additional": entry["additional_image_link"].split(","),
            "lifestyle": [entry["lifestyle_image_link"]],
        }
        for product, entry in feed.entries.items()
    }
    return feed_text.encode(feed), expected


def test_googles_tsv(tmp_path):
    content, expected = supplemental("tsv")
    header, *lines = content.decode().split("\n")[:-1]
    titles = {p: TITLES[p].replace("\t", " ") for p in PRODUCTS}
    joined = [f"{line}\t{titles[own]}\t{photo(own)}" for line in lines for own in [line.split("\t")[0]]]
    links, found, kind = come_in(tmp_path, "\n".join([f"{header}\ttitle\timage_link", *joined]).encode())
    assert (links, kind) == (expected, "google_tsv")
    assert found == {p: " ".join(t.split()) for p, t in titles.items()}


def test_googles_xml(tmp_path):
    content, expected = supplemental("xml")
    rss = etree.fromstring(content)
    for item in rss.iterfind("channel/item"):
        own = item.findtext(f"{G}id") or ""
        etree.SubElement(item, "title").text = TITLES[own]
        etree.SubElement(item, f"{G}image_link").text = photo(own)
    links, titles, kind = come_in(tmp_path, etree.tostring(rss, encoding="utf-8"), zipped=True)
    assert (links, kind) == (expected, "google_xml")
    assert titles == {p: " ".join(TITLES[p].split()) for p in PRODUCTS}


def test_bodies_for_the_merchant_api(tmp_path):
    content, expected = supplemental("merchant_api")
    bodies = [json.loads(line) for line in content.decode().split("\n")[:-1]]
    for body in bodies:
        own = body["offerId"]
        body["productAttributes"] |= {"title": TITLES[own], "imageLink": photo(own)}
    links, _, kind = come_in(tmp_path, "\n".join(map(json.dumps, bodies)).encode())
    assert (links, kind) == (expected, "jsonl")


def test_metas_csv(tmp_path):
    feed = made("meta", HOSTILE, COHORTS, {p: {"title": TITLES[p]} for p in HOSTILE})
    links, titles, kind = come_in(tmp_path, feed_text.encode(feed))
    expected = {p: [entry[f"image[{i}].url"] for i in range(9)] for p, entry in feed.entries.items()}
    assert {p: roles["main"] + roles["additional"] for p, roles in links.items()} == expected
    assert (set(links), kind) == (PRODUCTS, "meta_csv")
    assert titles == {p: " ".join(TITLES[p].split()) for p in PRODUCTS}


@pytest.mark.parametrize("name", ["pinterest", "tiktok"])
def test_catalogs(tmp_path, name):
    """TikTok calls the id sku_id: the shop maps that column, or renames it as here."""
    facts = {p: {"title": TITLES[p], "brand": "B"} | FACTS for p in HOSTILE}
    feed = made(name, HOSTILE, COHORTS, facts, catalog_uri="/c.csv")
    links, titles, kind = come_in(tmp_path, feed_text.encode(feed).replace(b"sku_id", b"id", 1))
    assert links == {
        p: {"main": [e["image_link"]], "additional": e["additional_image_link"].split(",")}
        for p, e in feed.entries.items()
    }
    assert (set(titles), kind) == (PRODUCTS, "google_tsv")


def test_a_spreadsheet_finds_the_same_in_metas_csv():
    feed = made("meta", HOSTILE, COHORTS, {p: {"title": TITLES[p]} for p in HOSTILE})
    assert [row["id"] for row in csv.DictReader(io.StringIO(feed_text.encode(feed).decode()))] == sorted(PRODUCTS)
