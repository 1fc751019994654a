"""Feeds: parsed back by other readers, within the channels' rules, and never seen half."""

import csv
import hashlib
import io
import json

import pyarrow as pa
import pytest

from adbooster.channels.feeds import FeedSettings, build
from adbooster.channels.presets import load_channels
from adbooster.contracts import schema
from adbooster.deliver import feed_files
from adbooster.deliver.config import Feeds
from adbooster.deliver.job import deliver
from adbooster.prepare import feeds as incoming
from adbooster.storage import tables
from tests.deliver.conftest import config
from tests.deliver.pictures import publish

BASE = "https://cdn.shop.example/ads"
HOSTILE = (
    '=HYPERLINK("x")',
    "a,b;c|d",
    "<script>",
    "../../etc",
    "ü/~%",
    'say "hi"',
    "'quoted'",
    " leading",
    "tab\tbed",
    "",
)


def rows(channel, products=("P1",), cohorts=("c1",), **changes):
    """Filled rows of a channel, as Sources hands them on; every picture is another file."""
    found = []
    for product in products:
        for i, cohort in enumerate(cohorts):
            for name in channel.slots:
                sha = hashlib.sha256(f"{product} {cohort} {name}".encode()).hexdigest()
                facts = {"width_px": 600, "height_px": 600, "size_bytes": 9000, "creative_id": sha[:16], "sha256": sha}
                place = {"product_id": product, "cohort_id": cohort, "slot": name, "channel": channel.name}
                found.append(place | facts | {"uri": f"objects/{sha[:2]}/{sha}.jpg", "score": 1 - i / 10} | changes)
    return found


def made(name, products=("P1",), cohorts=("c1",), facts=None, **feeds):
    channel = load_channels([name])[0]
    settings = FeedSettings(channel=channel, public_base_url=BASE, feeds=Feeds(**feeds))
    facts = facts or {p: {"title": f"The {p}", "brand": "B"} for p in products}
    return build(settings, rows(channel, products, cohorts), facts)


def read(feed):
    """The file as Python's own readers read it."""
    text = feed_files.encode(feed).decode()
    if feed.kind == "json":
        return json.loads(text)["entries"]
    how = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if feed.kind == "tsv" else {}
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
    facts = {"P1": {"title": "One", "brand": "B", "link": "https://s/1", "price": "9 EUR", "availability": "in stock"}}
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


@pytest.mark.parametrize("name", ["google_pmax", "google_merchant", "meta", "pinterest", "tiktok", "web"])
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
    assert ids == set(HOSTILE) - {" leading", "tab\tbed", ""}
    assert feed.left_out["unwritable_id"] == 3 * len(HOSTILE) * slots


def test_what_a_channel_would_refuse_is_left_out():
    assert made("google_merchant", ("x" * 51,)).left_out == {"id_too_long": 1}
    facts = {"P1": {"title": "t" * 201}}
    assert made("meta", facts=facts).left_out["title_too_long"] == 3
    assert read(made("meta", facts=facts)) == []


def test_the_feeds_that_go_out_can_come_in(tmp_path):
    """Meta's feed, read by this project's own reader of feeds."""
    path = tmp_path / "feed.csv"
    path.write_bytes(feed_files.encode(made("meta", ("P1", "P,2", 'P"3'))))
    found = incoming.read(str(path)).pictures.to_pylist()
    assert {p["product_id"] for p in found} == {"P1", "P,2", 'P"3'}
    assert all(p["reject"] is None for p in found)
    assert all(p["image_uri"].startswith(BASE) for p in found)


def test_a_feed_is_published_last_and_whole(root, small, rendered, monkeypatch):
    """At every write, what the pointer names is there and whole; a run that ends between leaves the last feed."""
    publish(root, products=("P1", "P2"))
    channels = small("tiktok")
    deliver(config(root, channels))
    first = feed_files.read_pointer(root, "tiktok")
    publish(root, products=("P3",))
    from adbooster.storage.objects import Root

    write = Root.write

    def dies(self, relative, content):
        if relative.endswith("latest.json"):
            raise KeyboardInterrupt
        write(self, relative, content)

    with monkeypatch.context() as patch:
        patch.setattr(Root, "write", dies)
        with pytest.raises(KeyboardInterrupt):
            deliver(config(root, channels, run_id="d2"))
    assert feed_files.read_pointer(root, "tiktok") == first
    assert len(feed_files.parse(root.read(first["feed"]), "tsv", "sku_id")) == 2
    report = deliver(config(root, channels, run_id="d3")).channels["tiktok"].feed
    assert (report.entries, report.added, report.changed, report.removed) == (3, 1, 0, 0)


def test_beside_a_feed_lie_its_delta_and_the_feed_before(root, small, rendered):
    publish(root, products=("P1", "P2"))
    channels = small("tiktok")
    deliver(config(root, channels))
    first = feed_files.read_pointer(root, "tiktok")
    publish(root, products=("P3",))
    deliver(config(root, channels, run_id="d2"))
    second = feed_files.read_pointer(root, "tiktok")
    assert second["previous"] == first["feed"]
    assert list(feed_files.parse(root.read(second["delta"]), "tsv", "sku_id")) == ["P3"]
    assert json.loads(root.read(second["changes"])) == {"added": ["P3"], "changed": [], "removed": []}
    assert root.read(second["fetch"]) == root.read(second["feed"])
    assert hashlib.sha256(root.read(second["feed"])).hexdigest() in second["feed"]
    publish(root, products=("P4",))
    deliver(config(root, channels, run_id="d3"))
    assert not root.exists(first["feed"])
    assert root.exists(second["feed"])
    assert len(root.files("delivery/tiktok")) == 6


def test_the_best_creative_of_a_product_comes_first(root, small, rendered):
    creatives = publish(root, cohorts=("c1", "c2"))
    better = creatives[1] | {"margin": 0.3}
    worse = creatives[0] | {"margin": 0.1}
    table = pa.Table.from_pylist([worse, better], schema.CREATIVES)
    tables.merge(root, "creatives", table, "creative_id", tables.version(root, "creatives"), {})
    deliver(config(root, small("google_merchant"), feeds={"custom_label": 1}))
    pointer = feed_files.read_pointer(root, "google_merchant")
    assert feed_files.parse(root.read(pointer["feed"]), "tsv", "id")["P1"]["custom_label_1"] == "c2"


@pytest.mark.parametrize("separator", [",", "\t"])
def test_a_catalog_is_read_as_csv_or_tsv(root, small, rendered, tmp_path, separator):
    publish(root, products=("P1", "P2"))
    lines = [
        ("ID", "link", "price", "availability"),
        ("P1", "https://shop/1", "9 EUR", "in stock"),
        ("P9", "a", "b", "c"),
    ]
    path = tmp_path / "catalog.txt"
    path.write_text("\n".join(separator.join(line) for line in lines), encoding="utf-8-sig")
    report = deliver(config(root, small("tiktok"), feeds={"catalog_uri": str(path)}))
    feed = report.channels["tiktok"].feed
    assert (feed.entries, feed.left_out) == (1, {"not_in_catalog": 1})
    found = feed_files.parse(root.read("delivery/tiktok/feed.tsv"), "tsv", "sku_id")
    assert found["P1"]["price"] == "9 EUR"
    assert not [name for name in root.stats("delivery") if b"catalog.txt" in root.read(name)], "delivery/ is public"
    assert found["P1"]["title"] == "The P1"


def test_on_object_storage_it_is_the_same(s3_root, root, small, rendered):
    """The same files and feeds as on disk; only the addresses below the root differ."""
    from adbooster.storage.objects import Root

    channels = small("tiktok", "web")
    found = []
    for there in (root, Root(s3_root)):
        publish(there, products=("P1", "P2"))
        deliver(config(there, channels))
        again = deliver(config(there, channels, run_id="d2"))
        assert (again.to_render, again.changed, again.channels["web"].feed.changed) == (0, 0, 0)
        publish(there, products=("P3",))
        deliver(config(there, channels, run_id="d3"))
        objects = sorted(r["uri"] for r in tables.read(there, "deliveries").to_pylist())
        found.append((objects, there.read("delivery/tiktok/feed.tsv"), sorted(there.files("delivery/web"))))
    assert found[0] == found[1]
