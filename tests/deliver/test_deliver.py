"""The job: what is planned, made once, published in one commit, and what a second run does not do again."""

from contextlib import contextmanager

import pyarrow as pa
import pytest

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError, CoverageTooLow, PublishConflict, TooManyRejects
from adbooster.deliver.checks import check
from adbooster.deliver.config import DeliverConfig
from adbooster.deliver.job import deliver
from adbooster.engine import stage_times
from adbooster.pictures import images
from adbooster.pictures.layout import Box
from adbooster.storage import tables
from adbooster.storage.vacuum import named
from tests.conftest import row
from tests.deliver.conftest import config
from tests.deliver.pictures import publish
from tests.provenance.signers import AUTHORITY, signing

WIDE = Box(45, 90, 150, 100)  # a product that no upright slot holds


def delivered(root, **wanted):
    rows = tables.read(root, "deliveries").to_pylist()
    return [r for r in rows if all(r[name] == value for name, value in wanted.items())]


def mark(root, creative_id, word):
    marks = pa.Table.from_pylist([row(schema.MARKS, creative_id=creative_id, mark=word)], schema.MARKS)
    tables.merge(root, "marks", marks, "creative_id", tables.version(root, "marks"), {})


def test_a_catalog_goes_to_every_channel_through_the_pool(warm_ray, root, small, tmp_path):
    """From end to end: every slot is filled or says why, files hold the creative's pixels, their marks and a signature."""
    from adbooster.provenance import credentials, xmp

    publish(root, products=("P1", "P2"), cohorts=("c1", "c2"), box=WIDE)
    channels = small("google_pmax", "google_merchant", "meta", "pinterest", "tiktok", "web")
    report = deliver(config(root, channels, signing=signing(tmp_path / "signer")))
    rows = delivered(root)
    assert len(rows) == 4 * 12 == sum(c.wanted for c in report.channels.values())
    assert all((r["uri"] is None) == (r["reason"] is not None) for r in rows)
    assert report.made_by == {"crop": sum(c.filled for c in report.channels.values())}
    assert {r["slot"] for r in rows if r["reason"]} == {"story", "tall_portrait_marketing_image"}
    assert {r["reason"] for r in rows if r["reason"]} == {"needs_extension"}
    assert (report.delivered, report.failures, report.deliveries_version) == (4, {}, 0)
    for found in (r for r in rows if r["uri"]):
        content = root.read(found["uri"])
        assert images.decode(content).shape[:2] == (found["height_px"], found["width_px"])
        assert xmp.read(content).digital_source_type == found["digital_source_type"]
        assert xmp.read(content).source == f"urn:sha256:{found['master_sha256']}"
        assert found["psnr_db"] >= 36
        signed = credentials.read(content, AUTHORITY.pem.decode())
        assert (signed.state, signed.digital_source_type) == ("Trusted", found["digital_source_type"])
    types = {r["channel"]: r["digital_source_type"] for r in rows if r["uri"]}
    assert types["google_merchant"] == "trainedAlgorithmicMedia"
    assert types["meta"] == "compositeWithTrainedAlgorithmicMedia"
    assert {f"delivery/{name}/latest.json" for name in report.channels} <= set(root.stats("delivery"))
    assert stage_times.read(root, "d1")["deliver"]["Renderer"]["rows"] == report.to_render


def test_an_unchanged_catalog_costs_nothing(root, small, rendered):
    publish(root, cohorts=("c1", "c2"))
    channels = small("meta", "web")
    first = deliver(config(root, channels))
    before = root.stats("delivery")
    second = deliver(config(root, channels, run_id="d2"))
    assert (first.to_render, second.to_render, len(rendered)) == (rendered[0].num_rows, 0, 1)
    assert (second.changed, second.removed, second.deliveries_version) == (0, 0, 0)
    assert root.stats("delivery") == before
    assert (first.gallery_uri, second.gallery_uri) == (f"{root.uri}/runs/d1/report.html", None), "no picture is opened"
    assert second.channels["meta"].filled == first.channels["meta"].filled > 0
    assert (second.channels["meta"].feed.added, second.channels["meta"].feed.changed) == (0, 0)


def test_only_what_changed_is_made_and_what_is_gone_is_removed(root, small, rendered):
    publish(root, products=("P1", "P2", "P3"))
    channels = small("tiktok")
    deliver(config(root, channels))
    uri = {r["product_id"]: r["uri"] for r in delivered(root)}
    old = tables.read(root, "creatives")
    version = tables.version(root, "creatives")
    gone = [r["creative_id"] for r in old.to_pylist() if r["product_id"] == "P2"]
    tables.merge(root, "creatives", old.slice(0, 0), "creative_id", version, {}, delete=gone)
    publish(root, products=("P3",), box=Box(60, 90, 80, 100))
    report = deliver(config(root, channels, run_id="d2"))
    assert rendered[1].num_rows == report.to_render == 1
    assert (report.changed, report.removed, report.deliveries_version) == (1, 1, 1)
    now = {r["product_id"]: r["uri"] for r in delivered(root)}
    assert sorted(now) == ["P1", "P3"]
    assert now["P1"] == uri["P1"]
    assert now["P3"] != uri["P3"]
    assert {r["product_id"]: r["run_id"] for r in delivered(root)} == {"P1": "d1", "P3": "d2"}
    feed = report.channels["tiktok"].feed
    assert (feed.entries, feed.added, feed.changed, feed.removed) == (2, 0, 1, 1)


def test_the_same_file_is_made_once_for_all_that_show_it(root, small, rendered):
    """Two channels with the same slot and marks share a file; another source type makes it another file."""
    publish(root)
    same = (
        small("tiktok")
        + small("tiktok", name="copy")
        + small("tiktok", name="other", digital_source_type="compositeSynthetic")
    )
    deliver(config(root, same))
    assert rendered[0].num_rows == 2
    uris = {r["channel"]: r["uri"] for r in delivered(root)}
    assert uris["tiktok"] == uris["copy"] != uris["other"]


def test_other_settings_make_other_files(root, small, rendered):
    publish(root)
    channels = small("tiktok")
    deliver(config(root, channels))
    deliver(config(root, channels, run_id="d2", encoding={"quality": 90}))
    deliver(config(root, channels, run_id="d3", encoding={"quality": 90}, provenance={"prompt": True}))
    assert [call.num_rows for call in rendered] == [1, 1, 1]
    from adbooster.provenance import xmp

    assert xmp.read(root.read(delivered(root)[0]["uri"])).prompt == "a scene for c1"


@contextmanager
def killed_at(function, monkeypatch):
    """What runs inside ends, as if killed, where it calls this function."""

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(function, killed)
        with pytest.raises(KeyboardInterrupt):
            yield


def test_a_killed_run_is_gone_on_with(root, small, rendered, monkeypatch):
    """What it made is not made again, by whichever run comes next; what failed is tried again."""
    publish(root, products=("P1", "P2"))
    channels = small("tiktok")

    with killed_at("adbooster.storage.tables.merge", monkeypatch):
        deliver(config(root, channels))
    assert not root.stats("delivery")
    report = deliver(config(root, channels, run_id="d2"))
    assert (report.to_render, len(rendered)) == (0, 1)
    assert len(delivered(root)) == 2


def test_a_run_killed_before_its_feeds_is_made_whole_by_the_next(root, small, rendered, monkeypatch):
    publish(root)
    channels = small("tiktok", "web")

    with killed_at("adbooster.deliver.feed_files.publish", monkeypatch):
        deliver(config(root, channels))
    assert not root.stats("delivery")
    report = deliver(config(root, channels, run_id="d2"))
    assert (report.to_render, report.changed) == (0, 0)
    assert root.exists("delivery/web/latest.json")
    assert root.exists("delivery/tiktok/feed.tsv")


def test_who_commits_second_publishes_nothing(root, small, rendered, monkeypatch):
    publish(root)
    channels = small("tiktok")
    from adbooster.deliver import job

    render = job._render

    def overtaken(settings, root, requests):
        render(settings, root, requests)
        monkeypatch.setattr(job, "_render", render)
        deliver(config(root, small("web"), run_id="fast"))

    monkeypatch.setattr(job, "_render", overtaken)
    with pytest.raises(PublishConflict):
        deliver(config(root, channels, run_id="slow"))
    assert root.folders("delivery") == ["web"]


def test_channels_of_other_runs_stay(root, small, rendered):
    publish(root, products=("P1",))
    deliver(config(root, small("tiktok")))
    report = deliver(config(root, small("web"), run_id="d2"))
    assert report.removed == 0
    assert {r["channel"] for r in delivered(root)} == {"tiktok", "web"}
    assert report.not_renewed == ["tiktok"]


@pytest.mark.parametrize(
    ("require", "left"),
    [("any", {}), ("not_rejected", {"rejected": 1}), ("approved", {"rejected": 1, "not_approved": 1})],
)
def test_what_people_have_said_decides(root, small, rendered, require, left):
    creatives = publish(root, products=("yes", "no", "unseen"))
    mark(root, creatives[0]["creative_id"], "approved")
    mark(root, creatives[1]["creative_id"], "rejected")
    report = deliver(config(root, small("tiktok"), require=require))
    assert report.left_out == left
    assert report.delivered == 3 - sum(left.values())
    assert "yes" in {r["product_id"] for r in delivered(root)}


def test_originals_lower_ranks_and_retired_products_are_not_delivered(root, small, rendered):
    from datetime import UTC, datetime

    publish(root, products=("P1",))
    publish(root, products=("P2",), fallback=True, layout=None)
    publish(root, products=("P3",))
    publish(root, products=("P3",), rank=1, creative_id="e" * 16)
    publish(root, products=("P4",))
    samples = [r for r in tables.read(root, "samples").to_pylist() if r["product_id"] == "P4"]
    samples[0]["retired_at"] = datetime.now(UTC)
    rows = pa.Table.from_pylist(samples, schema.SAMPLES)
    tables.merge(root, "samples", rows, "sample_id", tables.version(root, "samples"), {})
    report = deliver(config(root, small("tiktok")))
    assert (report.creatives, report.left_out) == (4, {"original": 1, "retired": 1})
    assert {r["product_id"] for r in delivered(root)} == {"P1", "P3"}
    best = {r["creative_id"] for r in tables.read(root, "creatives").to_pylist() if r["rank"] == 0}
    assert {r["creative_id"] for r in delivered(root)} <= best


def test_a_slot_takes_the_placement_that_it_shows_most_of(root, small, rendered):
    publish(root, box=WIDE)
    publish(root, placement="story", size=(216, 384), box=Box(60, 180, 90, 80))
    deliver(config(root, small("meta")))
    rows = {r["slot"]: (r["placement"], r["reason"]) for r in delivered(root)}
    assert rows == {"square": ("square", None), "portrait": ("square", None), "story": ("story", None)}


def test_a_creative_without_a_mask_or_file_is_a_row_with_a_reason(root, small, rendered):
    publish(root, products=("P1",), photo_sha256="another photo")
    publish(root, products=("P2",), uri="objects/00/gone.webp", box=WIDE)
    publish(root, products=tuple(f"Q{i}" for i in range(12)))
    report = deliver(config(root, small("tiktok")))
    reasons = {r["product_id"]: r["reason"] for r in delivered(root)}
    assert (reasons["P1"], reasons["P2"], reasons["Q1"]) == ("missing_mask", "missing_image", None)
    assert report.channels["tiktok"].empty == {"missing_mask": 1, "missing_image": 1}
    assert report.failures == {"missing_image": 1}
    again = deliver(config(root, small("tiktok"), run_id="d2"))
    assert again.to_render == 1  # a file that was not there may be there tomorrow


def test_a_product_with_a_new_photo_keeps_what_is_delivered(root, small, rendered):
    """Its creative is live until it is painted again, and its mask went with the photo it was painted from."""
    publish(root, products=("P1", "P2"))
    deliver(config(root, small("tiktok")))
    before, feed = delivered(root), root.read("delivery/tiktok/feed.tsv")
    samples = tables.read(root, "samples").to_pylist()
    rows = pa.Table.from_pylist([samples[0] | {"photo_sha256": "new"}, samples[1]], schema.SAMPLES)
    tables.merge(root, "samples", rows, "sample_id", tables.version(root, "samples"), {})
    report = deliver(config(root, small("tiktok"), run_id="d2"))
    assert (report.changed, report.removed, report.channels["tiktok"].filled) == (0, 0, 2)
    assert (delivered(root), root.read("delivery/tiktok/feed.tsv")) == (before, feed)
    assert deliver(config(root, small("tiktok"), run_id="d3", dry_run=True)).channels["tiktok"].filled == 2


def test_a_run_that_would_empty_a_feed_publishes_nothing_unless_allowed(root, small, rendered):
    creatives = publish(root, products=tuple(f"P{i:02}" for i in range(24)), cohorts=("c1", "c2"))[::2]
    values = [
        {"withdrawal_id": value, "kind": kind, "value": value} for kind, value in (("cohort", "c2"), ("product", "P12"))
    ]
    withdrawn = [pa.Table.from_pylist([row(schema.WITHDRAWALS, **value)], schema.WITHDRAWALS) for value in values]
    tables.merge(root, "withdrawals", withdrawn[0], "withdrawal_id", None, {})
    channels = small("tiktok")
    deliver(config(root, channels))
    before = (tables.version(root, "deliveries"), root.stats("delivery"))
    for creative in creatives[:11]:
        mark(root, creative["creative_id"], "approved")
    with pytest.raises(
        CoverageTooLow, match=r"13 of 24 entries .* tiktok, .* 0.5 \(left out: 24 withdrawn, 13 not_approved\)"
    ):
        deliver(config(root, channels, run_id="d2", require="approved"))
    assert (tables.version(root, "deliveries"), root.stats("delivery")) == before
    tables.merge(root, "withdrawals", withdrawn[1], "withdrawal_id", 0, {})
    report = deliver(config(root, channels, run_id="d3", require="approved"))
    assert report.channels["tiktok"].feed.removed == 13
    for creative in creatives[:11]:
        mark(root, creative["creative_id"], "rejected")
    with pytest.raises(CoverageTooLow, match="11 of 11"):
        deliver(config(root, channels, run_id="d4"))
    report = deliver(config(root, channels, run_id="d5", require="approved", max_removed_share=1))
    assert report.channels["tiktok"].feed.entries == 0


def test_too_many_failures_publish_nothing(root, small, rendered):
    publish(root, products=("P1", "P2"), uri="objects/00/gone.webp")
    with pytest.raises(TooManyRejects, match="2 of 2 renditions failed .2 missing_image"):
        deliver(config(root, small("tiktok")))
    assert tables.version(root, "deliveries") is None
    assert not root.stats("delivery")


def test_a_dry_run_writes_nothing(root, small, rendered):
    publish(root, box=WIDE)
    before = root.stats("")
    report = deliver(config(root, small("meta"), dry_run=True))
    assert (report.to_render, report.channels["meta"].wanted, rendered) == (2, 3, [])
    assert report.channels["meta"].empty == {"needs_extension": 1}
    assert root.stats("") == before


def test_nothing_live_is_an_empty_delivery(root, small, rendered):
    report = deliver(config(root, small("tiktok")))
    assert (report.creatives, report.channels["tiktok"].feed.entries) == (0, 0)


def test_vacuum_and_rollback_know_the_files(root, small, rendered):
    publish(root)
    deliver(config(root, small("tiktok")))
    assert {r["uri"] for r in delivered(root)} <= named(tables.read(root, "deliveries"))


def test_an_empty_slot_says_how_far_it_would_have_to_be_extended(root, small, rendered):
    publish(root, box=WIDE)
    deliver(config(root, small("meta")))
    found = delivered(root, slot="story")[0]
    assert (found["uri"], found["made_by"], found["digital_source_type"]) == (None, None, None)
    frame = found["frame"]
    assert frame["y_px"] < 0 or frame["y_px"] + frame["height_px"] > 240
    assert found["rendition_id"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://cdn.shop.example/ads", "https"),
        ("https://cdn.shop.example/ads?v=1", "query"),
        ("https://cdn.shop.example/ads#x", "fragment"),
        ("https://u:p@cdn.shop.example/ads", "user"),
        ("https://cdn.shop.example/a,b", "comma"),
        ("https://cdn.shop.example/a/../b", "ASCII"),
        ("https:///ads", "https"),
        ("https://cdn.shöp.example/ads", "ASCII"),
    ],
)
def test_a_public_address_that_channels_could_not_use_is_refused(root, url, said):
    with pytest.raises(ValueError, match=said):
        DeliverConfig(root_uri=root.uri, channels=("meta",), public_base_url=url)


TOO_LARGE = {"ratio": [1, 1], "min_px": [300, 300], "wanted_px": [600, 600], "formats": ["jpeg"], "max_bytes": 150_000}
TOO_LARGE |= {"product": {"scale": [0.9, 1]}, "safe_area": {"top": 0.2, "left": 0.2}}


def test_settings_that_cannot_work_are_refused_before_a_picture_is_opened(root, small, tmp_path):
    long = "https://cdn.shop.example/" + "a" * 500
    with pytest.raises(ConfigError, match="pinterest takes 511"):
        check(config(root, ("pinterest",), public_base_url=long))
    with pytest.raises(ConfigError, match="feeds.catalog_uri cannot be used: there is no feed at"):
        check(config(root, ("tiktok",), feeds={"catalog_uri": str(tmp_path / "none.csv")}))
    (tmp_path / "catalog.csv").write_text("id,title,link\n1,a,b\n")
    with pytest.raises(ConfigError, match="feeds.catalog_uri .* lacks the column 'description'"):
        check(config(root, ("tiktok",), feeds={"catalog_uri": str(tmp_path / "catalog.csv")}))
    named = small("google_merchant", forms=["tsv", "merchant_api"])
    with pytest.raises(
        ConfigError, match=r"google_merchant has the form merchant_api, which needs feeds.content_language"
    ):
        check(config(root, named, feeds={"feed_label": "US"}))
    check(config(root, named, feeds={"feed_label": "US", "content_language": "en"}))
    with pytest.raises(ConfigError, match="two channels are called 'google_merchant' and would write the same folder"):
        check(config(root, ("google_merchant", *named), feeds={"feed_label": "US", "content_language": "en"}))
    with pytest.raises(ConfigError, match=r"slots.*no product has a place"):
        check(config(root, small("web", slots={"card": TOO_LARGE})))
    with pytest.raises(ValueError, match="min_quality 99"):
        config(root, ("tiktok",), encoding={"min_quality": 99})
    check(config(root, ("meta", "web")))


def test_killed_half_way_and_gone_on_with_the_table_is_that_of_an_undisturbed_run(
    root, small, rendered, monkeypatch, tmp_path
):
    from adbooster.deliver import job
    from adbooster.storage.objects import Root

    channels, undisturbed, render = small("meta", "web"), Root(str(tmp_path / "undisturbed")), job._render
    for there in (root, undisturbed):
        publish(there, products=("P1", "P2", "P3"))

    def half(settings, there, requests):
        render(settings, there, requests.slice(0, requests.num_rows // 2))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job, "_render", half)
        with pytest.raises(KeyboardInterrupt):
            deliver(config(root, channels))
    report = deliver(config(root, channels, run_id="d2"))
    deliver(config(undisturbed, channels, run_id="d2"))
    first, second, whole = (call["rendition_id"].to_pylist() for call in rendered)
    assert not set(first) & set(second)
    assert sorted(first + second) == sorted(whole)
    assert report.rendered == len(second)
    tables_now = [sorted(delivered(there), key=lambda r: r["delivery_id"]) for there in (root, undisturbed)]
    assert tables_now[0] == tables_now[1]
