"""Runs that are killed, overtaken or fail among their feeds: what is withdrawn is in no file that channels fetch."""

import json
from contextlib import contextmanager

import pytest

from adbooster.cli.console import main
from adbooster.contracts.errors import ConfigError, PublishConflict
from adbooster.deliver import feed_files
from adbooster.deliver.checks import check
from adbooster.deliver.job import deliver
from adbooster.deliver.sources import read_withdrawn
from adbooster.deliver.withdraw import withdraw
from adbooster.storage import tables
from adbooster.storage.objects import Root
from tests.deliver.conftest import config
from tests.deliver.pictures import publish

STABLE = "delivery/tiktok/feed.tsv"


@contextmanager
def dying(monkeypatch, name):
    """Whoever would write a file of this name is killed before it."""
    write = Root.write

    def dies(self, relative, content):
        if relative.endswith(name):
            raise KeyboardInterrupt
        write(self, relative, content)

    with monkeypatch.context() as patch:
        patch.setattr(Root, "write", dies)
        yield


def retire(root, product):
    old = tables.read(root, "creatives")
    gone = [r["creative_id"] for r in old.to_pylist() if r["product_id"] == product]
    tables.merge(root, "creatives", old.slice(0, 0), "creative_id", tables.version(root, "creatives"), {}, delete=gone)


def test_a_feed_that_was_left_half_published_is_replaced_though_the_pointer_names_the_right_one(
    root, small, rendered, monkeypatch
):
    channels = small("tiktok")
    publish(root, products=("P1",))
    deliver(config(root, channels))
    right = root.read(STABLE)
    publish(root, products=("P2",))
    with pytest.raises(KeyboardInterrupt), dying(monkeypatch, "latest.json"):
        deliver(config(root, channels, run_id="d2"))
    assert root.read(STABLE) != right
    retire(root, "P2")
    deliver(config(root, channels, run_id="d3"))
    assert root.read(STABLE) == right


def feed(root, channel="tiktok", key="sku_id"):
    """What channels fetch, by id; what the pointer names is the same."""
    pointer = feed_files.read_pointer(root, channel)
    assert root.read(pointer["fetch"]) == root.read(pointer["feed"])
    return feed_files.parse(root.read(pointer["fetch"]), pointer["kind"], key)


def test_what_is_withdrawn_during_the_commit_is_in_no_feed(root, small, rendered, monkeypatch):
    """It is not delivered yet, so that the withdrawal commits nothing to deliveries and the delivery's commit succeeds."""
    publish(root, products=("P1", "P2"))
    channels, merge = small("tiktok"), tables.merge

    def overtaken(root, name, *args, **more):
        if name == "deliveries":
            monkeypatch.setattr(tables, "merge", merge)
            withdraw(root, "product", ["P1"], "w")
        return merge(root, name, *args, **more)

    monkeypatch.setattr(tables, "merge", overtaken)
    with pytest.raises(PublishConflict, match="withdrawn"):
        deliver(config(root, channels))
    assert not root.stats("delivery")
    deliver(config(root, channels, run_id="d2"))
    assert set(feed(root)) == {"P2"}


@pytest.mark.parametrize("before", ["feed.tsv", "latest.json"])
def test_what_is_withdrawn_while_a_feed_is_written_is_not_the_last_word(root, small, rendered, monkeypatch, before):
    publish(root, products=("P1", "P2"))
    write = Root.write

    def overtaken(self, relative, content):
        if relative.endswith(before):
            monkeypatch.setattr(Root, "write", write)
            withdraw(self, "product", ["P1"], "w")
        write(self, relative, content)

    monkeypatch.setattr(Root, "write", overtaken)
    with pytest.raises(PublishConflict, match="withdrawn"):
        deliver(config(root, small("tiktok")))
    assert set(feed(root)) == {"P2"}


def test_a_withdrawal_that_was_killed_is_repeated_or_finished_by_another(root, small, rendered, monkeypatch):
    publish(root, products=("P1", "P2", "P3", "P4"))
    deliver(config(root, small("tiktok")))
    with pytest.raises(KeyboardInterrupt), dying(monkeypatch, "feed.tsv"):
        withdraw(root, "product", ["P1"], "w1")
    retire(root, "P1")  # neither live nor delivered any more
    assert set(feed(root)) == {"P1", "P2", "P3", "P4"}
    assert withdraw(root, "product", ["P1"], "w2").new == 0
    assert set(feed(root)) == {"P2", "P3", "P4"}

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("adbooster.deliver.withdraw._take_out", killed)
        with pytest.raises(KeyboardInterrupt):
            withdraw(root, "product", ["P2"], "w3")
    assert withdraw(root, "product", ["P3"], "w4").rows == 2
    assert set(feed(root)) == {"P4"}


def test_a_channel_that_fails_is_named_and_stops_no_other(root, small, rendered, tmp_path, capsys):
    """A catalog that is gone stops none: its columns are those of the last feed."""
    publish(root, products=("P1", "P2"))
    catalog = tmp_path / "catalog.csv"
    lines = ["id,link,price,availability,condition,description"]
    lines += [f"P{n},https://s/{n},9 EUR,in stock,new,a thing" for n in (1, 2)]
    catalog.write_text("\n".join(lines))
    deliver(config(root, small("meta", "tiktok", "web"), feeds={"catalog_uri": str(catalog)}))
    whole = feed(root)
    catalog.unlink()
    root.remove(["channels/meta.json"])
    with pytest.raises(SystemExit) as stopped:
        main(["withdraw", "--product", "P1", "--root-uri", root.uri, "--json"])
    said = capsys.readouterr()
    assert stopped.value.code == 1
    assert "meta (ConfigError: channels/meta.json is gone" in said.err
    assert list(json.loads(said.out)["failed"]) == ["meta"]
    assert feed(root) == {"P2": whole["P2"]}
    assert set(feed(root, "web", "id")) == {"P2"}
    assert read_withdrawn(root).product == {"P1"}
    assert {r["product_id"] for r in tables.read(root, "deliveries").to_pylist()} == {"P2"}


def test_an_address_that_is_stored_without_its_secret_is_refused(root):
    uri = "https://shop.example/catalog.csv?token=abcdefghij"
    with pytest.raises(ConfigError, match=r"feeds.catalog_uri .*token=\*\*\* holds a secret"):
        check(config(root, ("tiktok",), feeds={"catalog_uri": uri}))
