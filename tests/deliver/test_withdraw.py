"""`adbooster withdraw`: out of every feed at once, and it stays out."""

import json

import pytest

from adbooster.cli.console import main
from adbooster.contracts.errors import PublishConflict
from adbooster.deliver import feed_files, job
from adbooster.deliver.job import deliver
from adbooster.deliver.sources import read_withdrawn
from adbooster.deliver.withdraw import withdraw
from adbooster.storage import tables
from tests.deliver.conftest import config
from tests.deliver.pictures import publish


def ids(root, channel, key="id"):
    pointer = feed_files.read_pointer(root, channel)
    return set(feed_files.parse(root.read(pointer["fetch"]), pointer["kind"], key))


def said(capsys, root, *words):
    main(["withdraw", *words, "--root-uri", root.uri, "--json"])
    return json.loads(capsys.readouterr().out)


def test_a_product_leaves_every_feed_at_once_and_stays_out(root, small, rendered, capsys):
    publish(root, products=("P1", "P2"), cohorts=("c1", "c2"))
    channels = small("meta", "tiktok", "google_pmax")
    deliver(config(root, channels))
    before = root.stats("objects")
    done = said(capsys, root, "--product", "P1")
    assert (done["new"], done["rows"]) == (1, 2 * 8)
    assert ids(root, "meta") == ids(root, "tiktok", "sku_id") == {"P2"}
    groups = feed_files.parse(root.read("delivery/google_pmax/feed.json"), "json", "cohort_id")
    assert "P1" not in json.dumps(groups)
    assert root.stats("objects") == before
    assert done["may_be_cached"] == len(done["addresses"]) > 0
    assert all(address.startswith("https://cdn.shop.example/ads/objects/") for address in done["addresses"])
    report = deliver(config(root, channels, run_id="d2"))
    assert (report.changed, report.removed, report.left_out) == (0, 0, {"withdrawn": 2})
    assert len(rendered) == 1


def test_what_is_taken_back_is_delivered_again_without_encoding(root, small, rendered, capsys):
    publish(root, products=("P1", "P2"), cohorts=("c1", "c2"))
    channels = small("tiktok", "web")
    deliver(config(root, channels))
    said(capsys, root, "--cohort", "c2")
    shown = feed_files.parse(root.read("delivery/web/feed.json"), "json", "id")
    assert {cohort for entry in shown.values() for cohort in entry["cohorts"]} == {"c1"}
    assert said(capsys, root, "--cohort", "c2", "--undo")["new"] == 1
    report = deliver(config(root, channels, run_id="d2"))
    assert report.left_out == {}
    assert report.changed == 6
    shown = feed_files.parse(root.read("delivery/web/feed.json"), "json", "id")
    assert set(shown["P1"]["cohorts"]) == {"c1", "c2"}


def test_a_dry_run_changes_nothing_and_says_what_it_would(root, small, rendered, capsys):
    creatives = publish(root, products=("P1", "P2"))
    deliver(config(root, small("tiktok")))
    before = root.stats("")
    done = said(capsys, root, "--creative", creatives[0]["creative_id"], "--dry-run")
    assert (done["rows"], done["feeds"]["tiktok"]["removed"]) == (1, 1)
    assert root.stats("") == before
    main(["withdraw", "--creative", creatives[0]["creative_id"], "--dry-run", "--root-uri", root.uri])
    assert "would be taken out" in capsys.readouterr().out


def test_an_id_that_nothing_has_is_refused(root, small, rendered, capsys):
    publish(root)
    deliver(config(root, small("tiktok")))
    for words, text in (
        (["--product", "P9"], "no product 'P9' is live"),
        (["--product", "P1", "--undo"], "not withdrawn"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["withdraw", *words, "--root-uri", root.uri])
        assert stopped.value.code == 2
        assert text in capsys.readouterr().err


def test_what_is_withdrawn_while_a_delivery_works_is_not_delivered_by_it(root, small, rendered, monkeypatch):
    publish(root, products=("P1", "P2"))
    render = job._render

    def meanwhile(settings, root, requests):
        render(settings, root, requests)
        withdraw(root, "product", ["P1"], "w")

    monkeypatch.setattr(job, "_render", meanwhile)
    with pytest.raises(PublishConflict, match="withdrawn"):
        deliver(config(root, small("tiktok")))
    assert tables.version(root, "deliveries") is None
    assert read_withdrawn(root).product == {"P1"}
