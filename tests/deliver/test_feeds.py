"""Feeds: never seen half, with what changed beside them."""

import base64
import gzip
import hashlib
import json

import pyarrow as pa
import pytest

from adbooster.channels import feed_text
from adbooster.channels.feeds import Feeds, FeedSettings
from adbooster.channels.presets import load_channels
from adbooster.contracts import schema
from adbooster.contracts.errors import AdboosterError
from adbooster.deliver import feed_files
from adbooster.deliver.job import deliver
from adbooster.deliver.sources import Sources, check_catalog
from adbooster.deliver.withdraw import withdraw
from adbooster.storage import tables
from adbooster.storage.objects import Root
from tests.channels.made import BASE
from tests.channels.made import rows as made_rows
from tests.deliver.conftest import config
from tests.deliver.pictures import publish


def test_a_feed_is_published_last_and_whole(root, small, rendered, monkeypatch):
    """At every write, what the pointer names is there and whole; a run that ends between leaves the last feed."""
    publish(root, products=("P1", "P2"))
    channels = small("tiktok")
    deliver(config(root, channels))
    first = feed_files.read_pointer(root, "tiktok")
    publish(root, products=("P3",))
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
    assert len(feed_text.parse(root.read(first["feed"]), "tsv", "sku_id")) == 2
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
    assert list(feed_text.parse(root.read(second["delta"]), "tsv", "sku_id")) == ["P3"]
    assert json.loads(root.read(second["changes"])) == {"added": ["P3"], "changed": [], "removed": []}
    assert root.read(second["fetch"]) == root.read(second["feed"])
    assert hashlib.sha256(root.read(second["feed"])).hexdigest() in second["feed"]
    publish(root, products=("P4",))
    deliver(config(root, channels, run_id="d3"))
    assert not root.exists(first["feed"])
    assert root.exists(second["feed"])
    assert len(root.files("delivery/tiktok")) == 6


def test_each_catalog_has_its_own_feeds_over_the_files_of_the_root(root, small, rendered):
    channels = small("tiktok")
    for name, products in (("de", ("P1",)), ("fr", ("P1", "P2"))):
        shop = Root(f"{root.uri}/catalogs/{name}")
        publish(shop, products=products)
        deliver(config(shop, channels))
        feed = feed_text.parse(root.read(f"catalogs/{name}/delivery/tiktok/feed.tsv"), "tsv", "sku_id")
        assert list(feed) == list(products)
        assert all(root.exists(row["image_link"].removeprefix(f"{BASE}/")) for row in feed.values())


def test_the_best_creative_of_a_product_comes_first(root, small, rendered):
    creatives = publish(root, cohorts=("c1", "c2"))
    better = creatives[1] | {"margin": 0.3}
    worse = creatives[0] | {"margin": 0.1}
    table = pa.Table.from_pylist([worse, better], schema.CREATIVES)
    tables.merge(root, "creatives", table, "creative_id", tables.version(root, "creatives"), {})
    deliver(config(root, small("google_merchant"), feeds={"custom_label": 1}))
    pointer = feed_files.read_pointer(root, "google_merchant")
    assert feed_text.parse(root.read(pointer["feed"]), "tsv", "id")["P1"]["custom_label_1"] == "c2"


CATALOG = {
    "csv": 'ID,link,price,availability,condition,description\nP1,https://shop/1,9.00 EUR,in stock,new,"a, thing"\nP9,a,b,c,d,e',
    "tsv": "id\tlink\tprice\tavailability\tcondition\tdescription\nP1\thttps://shop/1\t9.00 EUR\tin stock\tnew\ta, thing",
    "xml": """<rss xmlns:g="http://base.google.com/ns/1.0"><channel><item><g:id>P1</g:id><link>https://shop/1</link>
        <g:price>9.00 EUR</g:price><g:availability>in stock</g:availability><g:condition>new</g:condition>
        <description>a, thing</description></item></channel></rss>""",
    "atom": """<feed xmlns="http://www.w3.org/2005/Atom" xmlns:g="http://base.google.com/ns/1.0"><entry><g:id>P1</g:id>
        <link href="https://shop/1"/><g:price>9.00 EUR</g:price><g:availability>in stock</g:availability>
        <g:condition>new</g:condition><g:description>a, thing</g:description></entry></feed>""",
    "jsonl": """{"offerId": "P1", "productAttributes": {"link": "https://shop/1", "availability": "in stock",
        "condition": "new", "description": "a, thing", "price": {"amountMicros": "9000000", "currencyCode": "EUR"}}}""".replace(
        "\n", ""
    ),
}


@pytest.mark.parametrize("form", CATALOG)
@pytest.mark.parametrize("zipped", [False, True])
def test_a_catalog_is_read_in_any_form_that_feeds_have(root, tmp_path, form, zipped):
    publish(root, products=("P1", "P2"))
    path = tmp_path / "catalog"
    content = CATALOG[form].encode("utf-8-sig")
    path.write_bytes(gzip.compress(content) if zipped else content)
    (tiktok,) = load_channels(["tiktok"])
    check_catalog(str(path), [tiktok])
    rows = pa.Table.from_pylist(made_rows(tiktok, ("P1", "P2")), schema.DELIVERIES)
    settings = FeedSettings(channel=tiktok, public_base_url=BASE, feeds=Feeds(catalog_uri=str(path)))
    feed = Sources(root, rows).feed(settings)
    assert feed.left_out["not_in_catalog"] == 1
    (found,) = feed.entries.values()
    assert found | FACTS == found
    assert (found["title"], found["brand"]) == ("The P1", "B")


FACTS = {
    "link": "https://shop/1",
    "price": "9.00 EUR",
    "availability": "in stock",
    "condition": "new",
    "description": "a, thing",
}


def test_a_product_whose_text_is_not_utf8_is_left_out(root, tmp_path):
    publish(root, products=("P1", "P2"))
    path = tmp_path / "catalog.csv"
    lines = ["id,link,price,availability,condition,description"]
    lines += [f"{p},https://shop/1,9 EUR,in stock,new,{text}" for p, text in (("P1", "Größe"), ("P2", "size"))]
    path.write_text("\n".join(lines), encoding="latin-1")
    (tiktok,) = load_channels(["tiktok"])
    rows = pa.Table.from_pylist(made_rows(tiktok, ("P1", "P2")), schema.DELIVERIES)
    settings = FeedSettings(channel=tiktok, public_base_url=BASE, feeds=Feeds(catalog_uri=str(path)))
    feed = Sources(root, rows).feed(settings)
    assert (list(feed.entries), feed.left_out["unreadable_in_catalog"]) == (["P2"], 1)


def test_a_catalog_is_named_in_nothing_that_channels_can_read(root, small, rendered, tmp_path):
    publish(root)
    path = tmp_path / "catalog.txt"
    path.write_text(CATALOG["csv"])
    report = deliver(config(root, small("tiktok"), feeds={"catalog_uri": str(path)}))
    assert report.channels["tiktok"].feed.entries == 1
    assert not [name for name in root.stats("delivery") if b"catalog.txt" in root.read(name)]


GOOGLE = {"content_language": "en", "feed_label": "US"}


def test_one_pointer_names_the_feed_in_every_form(root, small, rendered):
    channels = small("google_merchant", forms=["tsv", "xml", "merchant_api"])
    publish(root, products=("P1", "a/b", "P3"))
    deliver(config(root, channels, feeds=GOOGLE))
    publish(root, products=("P4",))
    withdraw(root, "product", ["a/b"], "w1")
    deliver(config(root, channels, feeds=GOOGLE, run_id="d2"))
    pointer = feed_files.read_pointer(root, "google_merchant")
    assert list(pointer["files"]) == ["tsv", "xml", "merchant_api"]
    assert pointer["feed"] == pointer["files"]["tsv"]["feed"]
    for form, about in pointer["files"].items():
        assert root.read(about["fetch"]) == root.read(about["feed"])
        assert set(feed_text.parse(root.read(about["feed"]), form, "id")) == {"P1", "P3", "P4"}
        assert set(feed_text.parse(root.read(about["delta"]), form, "id")) == {"P4"}
        assert set(feed_text.parse(root.read(about["previous"]), form, "id")) == {"P1", "P3"}
    named = {path for about in pointer["files"].values() for path in about.values() if isinstance(path, str)}
    there = {f"delivery/google_merchant/{name}" for name in root.files("delivery/google_merchant")}
    assert there == named | {pointer["changes"], "delivery/google_merchant/latest.json"}
    assert json.loads(root.read(pointer["changes"])) == {"added": ["P4"], "changed": [], "removed": []}


def test_what_leaves_the_feed_is_deleted_by_its_name_in_merchant_center(root, small, rendered):
    """And under another label all products are others: the former ones go, all of the feed is new."""
    channels = small("google_merchant", forms=["merchant_api"])
    publish(root, products=("P1", "a/b"))
    deliver(config(root, channels, feeds=GOOGLE))

    def deleted():
        about = feed_files.read_pointer(root, "google_merchant")["files"]["merchant_api"]
        return [json.loads(line) for line in root.read(about["delete"]).splitlines()], about

    assert deleted()[0] == []
    withdraw(root, "product", ["a/b"], "w1")
    ((gone,), _) = deleted()
    assert gone["offerId"] == "a/b"
    assert gone["name"].removeprefix("productInputs/") == base64.urlsafe_b64encode(b"en~US~a/b").decode().rstrip("=")
    deliver(config(root, channels, feeds=GOOGLE | {"feed_label": "GB"}, run_id="d2"))
    found, about = deleted()
    assert [line["name"] for line in found] == ["productInputs/en~US~P1"]
    assert root.read(about["delta"]) == root.read(about["feed"])
    assert b'"feedLabel": "GB"' in root.read(about["feed"])


def test_a_form_that_is_left_out_is_not_fetched_any_longer(root, small, rendered):
    """What channels fetched there would keep what is withdrawn; one that is new holds everything in its delta."""
    publish(root, products=("P1", "P2"))
    deliver(config(root, small("google_merchant", forms=["xml"])))
    deliver(config(root, small("google_merchant", forms=["tsv"]), run_id="d2"))
    pointer = feed_files.read_pointer(root, "google_merchant")
    assert (pointer["kind"], list(pointer["files"])) == ("tsv", ["tsv"])
    assert set(feed_text.parse(root.read(pointer["delta"]), "tsv", "id")) == {"P1", "P2"}
    assert (pointer["added"], pointer["changed"], pointer["removed"]) == (0, 0, 0)
    assert not root.exists("delivery/google_merchant/feed.xml")


def test_a_feed_with_several_forms_is_published_last_and_whole(root, small, rendered, monkeypatch):
    """A run that ends after any of its writes leaves the last pointer with all that it names; the next one finishes."""
    channels = small("google_merchant", forms=["tsv", "xml", "merchant_api"])
    publish(root, products=("P1", "P2"))
    deliver(config(root, channels, feeds=GOOGLE))
    first = feed_files.read_pointer(root, "google_merchant")
    publish(root, products=("P3",))
    write = Root.write
    for n in range(1, 99):
        left = [n]

        def dies(self, relative, content, left=left):
            if relative.startswith("delivery/"):
                left[0] -= 1
                if not left[0]:
                    raise KeyboardInterrupt
            write(self, relative, content)

        with monkeypatch.context() as patch:
            patch.setattr(Root, "write", dies)
            try:
                deliver(config(root, channels, feeds=GOOGLE, run_id=f"e{n}"))
                break
            except KeyboardInterrupt:
                pass
        assert feed_files.read_pointer(root, "google_merchant") == first
        for form, about in first["files"].items():
            assert set(feed_text.parse(root.read(about["feed"]), form, "id")) == {"P1", "P2"}
    assert n > 10
    for form, about in feed_files.read_pointer(root, "google_merchant")["files"].items():
        assert set(feed_text.parse(root.read(about["fetch"]), form, "id")) == {"P1", "P2", "P3"}


def test_a_pointer_of_a_former_version_is_taken_up(root, small, rendered):
    """It names one file and no forms: an unchanged feed is left as it is."""
    publish(root)
    channels = small("tiktok")
    deliver(config(root, channels))
    pointer = feed_files.read_pointer(root, "tiktok")
    former = {key: value for key, value in pointer.items() if key != "files"}
    root.write("delivery/tiktok/latest.json", json.dumps(former).encode())
    deliver(config(root, channels, run_id="d2"))
    assert feed_files.read_pointer(root, "tiktok") == former


def test_a_feed_that_its_channel_would_refuse_stops_the_run_before_anything_is_written(root, small, rendered):
    """Here tables/deliveries says that files are larger than the slot takes; what is withdrawn leaves all the same."""
    publish(root, products=("P1", "P2"))
    channels = small("google_merchant", "web")
    deliver(config(root, channels))
    before = {name: root.read(f"delivery/{name}") for c in ("google_merchant", "web") for name in [f"{c}/latest.json"]}
    rows = tables.read(root, "deliveries")
    large = pa.Table.from_pylist(
        [r | {"size_bytes": 17_000_000} for r in rows.to_pylist() if r["slot"] == "lifestyle"], schema.DELIVERIES
    )
    version = tables.version(root, "deliveries")
    tables.merge(root, "deliveries", large, "delivery_id", version, {})
    publish(root, products=("P3",))
    with pytest.raises(
        AdboosterError, match=r"feed of google_merchant .* entry 'P1', lifestyle_image_link .* has 17000000 bytes"
    ):
        deliver(config(root, channels, run_id="d2"))
    assert tables.version(root, "deliveries") == version + 1
    assert before == {name: root.read(f"delivery/{name}") for name in before}
    assert withdraw(root, "product", ["P1"], "w1").failed == {}
    assert b"P1" not in root.read("delivery/google_merchant/feed.tsv")


def test_on_object_storage_it_is_the_same(s3_root, root, small, rendered):
    """The same files and feeds as on disk; only the addresses below the root differ."""
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
