"""Feeds: never seen half, with what changed beside them."""

import hashlib
import json

import pyarrow as pa
import pytest

from adbooster.channels import feed_text
from adbooster.contracts import schema
from adbooster.deliver import feed_files
from adbooster.deliver.job import deliver
from adbooster.storage import tables
from tests.deliver.conftest import config
from tests.deliver.pictures import publish


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


def test_the_best_creative_of_a_product_comes_first(root, small, rendered):
    creatives = publish(root, cohorts=("c1", "c2"))
    better = creatives[1] | {"margin": 0.3}
    worse = creatives[0] | {"margin": 0.1}
    table = pa.Table.from_pylist([worse, better], schema.CREATIVES)
    tables.merge(root, "creatives", table, "creative_id", tables.version(root, "creatives"), {})
    deliver(config(root, small("google_merchant"), feeds={"custom_label": 1}))
    pointer = feed_files.read_pointer(root, "google_merchant")
    assert feed_text.parse(root.read(pointer["feed"]), "tsv", "id")["P1"]["custom_label_1"] == "c2"


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
    found = feed_text.parse(root.read("delivery/tiktok/feed.tsv"), "tsv", "sku_id")
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
