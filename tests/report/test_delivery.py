"""What the page shows of deliveries: the slots of creatives, their feed rows, counts of all, and what is withdrawn."""

import json
import time
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from adbooster.contracts import schema
from adbooster.deliver.job import deliver
from adbooster.deliver.withdraw import withdraw
from adbooster.pictures import images
from adbooster.pictures.layout import Box
from adbooster.report import delivery, gallery, published
from adbooster.report.page import write_report
from adbooster.storage import tables
from adbooster.storage.buckets import Snapshot
from adbooster.storage.objects import Root
from tests.conftest import row
from tests.deliver.conftest import config, rendered, small
from tests.deliver.pictures import publish

__all__ = ["rendered", "small"]
WIDE = Box(45, 90, 150, 100)  # a product that no upright slot holds
HOSTILE = "</script><script>window.taken = 1</script>\"'<!-- {{data}}"


def shown(root, run_id: str) -> dict:
    """The deliveries in the page of a run."""
    page = root.read(f"runs/{run_id}/report.html").decode()
    return json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])["delivery"]


def slots(data: dict, **wanted) -> list[dict]:
    return [s for c in data["creatives"] for s in c["slots"] if all(s[name] == v for name, v in wanted.items())]


def test_a_delivery_alone_leaves_a_page_with_every_slot(root, small, rendered):
    publish(root, products=("P1", "P2"), cohorts=("c1", "c2"), box=WIDE)
    report = deliver(config(root, small("google_pmax", "meta", "web")))
    assert report.gallery_uri == f"{root.uri}/runs/d1/report.html"
    data = shown(root, "d1")
    assert (len(data["creatives"]), data["delivered"]) == (4, 4)
    counts = {c["name"]: (c["wanted"], c["filled"], c["empty"], c["made_by"]) for c in data["channels"]}
    assert counts == {n: (c.wanted, c.filled, c.empty, {"crop": c.filled}) for n, c in report.channels.items()}
    live = {(r["creative_id"], r["channel"], r["slot"]): r for r in tables.read(root, "deliveries").to_pylist()}
    assert len(slots(data)) == len(live)
    for creative in data["creatives"]:
        assert (creative["width"], creative["height"], creative["layout"]) == (240, 240, vars(WIDE))
        assert data["pictures"][creative["thumb"]].startswith("data:image/webp;base64,")
        for slot in creative["slots"]:
            stored = live[creative["creative_id"], slot["channel"], slot["slot"]]
            assert (slot["uri"], slot["frame"], slot["reason"]) == (stored["uri"], stored["frame"], stored["reason"])
            if slot["reason"]:
                assert "thumb" not in slot
            else:
                assert slot["url"] == f"https://cdn.shop.example/ads/{slot['uri']}"
                assert slot["digital_source_type"] == "compositeWithTrainedAlgorithmicMedia"
                assert data["pictures"][slot["thumb"]].startswith("data:image/webp;base64,")
    assert {s["reason"] for s in slots(data, slot="story")} == {"needs_extension"}
    assert data["slots"]["google_pmax/tall_portrait_marketing_image"]["safe_area"]["bottom"] == 0.2


def test_a_slot_shows_the_delivered_file_and_not_the_creative(root, small, rendered):
    publish(root)
    deliver(config(root, small("web")))
    data = shown(root, "d1")
    from base64 import b64decode

    for slot in slots(data):
        picture = images.decode(b64decode(data["pictures"][slot["thumb"]].split(",")[1]))
        stored = images.resize(images.decode(root.read(slot["uri"])), picture.shape[1], picture.shape[0])
        assert np.abs(picture.astype(int) - stored).mean() < 6
        assert abs(picture.shape[1] / picture.shape[0] - slot["width_px"] / slot["height_px"]) < 0.02


def test_feed_rows_speak_of_the_creative_alone(root, small, rendered):
    publish(root, products=("P1", "P2"), cohorts=("c1", "c2"))
    deliver(config(root, small("google_merchant", "google_pmax", "meta", "web"), feeds={"custom_label": 1}))
    data = shown(root, "d1")
    best, other = (next(c for c in data["creatives"] if c["cohort"]["id"] == n) for n in ("c1", "c2"))
    merchant = dict(fact[:2] for fact in best["feed"]["google_merchant"]["facts"])
    assert merchant["id"] == "P1"
    assert merchant["custom_label_1"] == "c1"
    (slot,) = (s for s in best["slots"] if s["channel"] == "google_merchant")
    assert merchant["lifestyle_image_link"] == slot["url"]
    assert slot["in_feed"]
    assert [s["in_feed"] for s in other["slots"] if s["channel"] == "google_merchant"] == [False]
    for creative in data["creatives"]:
        mine = {s["url"] for s in creative["slots"] if s["uri"]}
        for channel in ("google_pmax", "meta", "web"):
            told = creative["feed"][channel]["facts"]
            addresses = {text for _, text, is_address in told if is_address}
            assert addresses
            assert addresses <= mine
    tags = [text for name, text, _ in other["feed"]["meta"]["facts"] if name.endswith("tag[0]")]
    assert set(tags) == {"c2"}


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b'{"key": "id"}', b"\xff\xfe", b'{"key": "id", "kind": "tsv", "feed": "gone"}']
)
def test_what_cannot_be_read_of_a_channel_is_said_and_the_rest_is_shown(root, small, rendered, content):
    publish(root)
    deliver(config(root, small("google_merchant", "web")))
    root.write("delivery/google_merchant/latest.json", content)
    root.write("channels/web.json", content)
    pointer = json.loads(root.read("delivery/web/latest.json"))
    root.write(pointer["feed"], b'{"entries": [[], null]}')
    delivery.write(root, "d1", {})
    write_report(root, "d1")
    data = shown(root, "d1")
    problems = {c["name"]: c["feed"]["problem"] for c in data["channels"]}
    assert all("cannot be read" in problem for problem in problems.values())
    assert all(s["in_feed"] is None and data["pictures"][s["thumb"]] for s in slots(data))
    assert {s["url"] for s in slots(data, channel="web")} == {None}
    assert "web/card" not in data["slots"]


def test_the_same_on_s3(s3_root, small, rendered):
    root = Root(s3_root)
    publish(root)
    deliver(config(root, small("google_merchant", "web")))
    data = shown(root, "d1")
    assert all(s["in_feed"] and data["pictures"][s["thumb"]] for s in slots(data))
    assert {c["feed"]["problem"] for c in data["channels"]} == {""}


def test_a_large_json_feed_is_not_read(root, small, rendered, monkeypatch):
    publish(root)
    monkeypatch.setattr(published, "MOST_WHOLE", 10)
    deliver(config(root, small("web")))
    data = shown(root, "d1")
    assert "too large" in data["channels"][0]["feed"]["problem"]
    assert data["creatives"][0]["feed"] == {}


def test_marks_and_what_the_rule_leaves_out(root, small, rendered):
    made = publish(root, products=("P1", "P2", "P3"))
    marks = [
        row(schema.MARKS, creative_id=c["creative_id"], mark=m)
        for c, m in zip(made, ("approved", "rejected"), strict=False)
    ]
    tables.merge(root, "marks", pa.Table.from_pylist(marks, schema.MARKS), "creative_id", None, {})
    deliver(config(root, small("tiktok"), require="approved"))
    data = shown(root, "d1")
    assert [(c["product"]["id"], c["mark"]) for c in data["creatives"]] == [("P1", "approved")]
    assert data["numbers"]["require"] == "approved"
    assert data["numbers"]["left_out"] == {"rejected": 1, "not_approved": 1}


def test_withdrawn_files_that_are_still_stored_are_counted_and_named(root, small, rendered):
    publish(root, products=("P1", "P2"), cohorts=("c1", "c2"))
    channels = small("tiktok", "web")
    deliver(config(root, channels))
    assert shown(root, "d1")["withdrawn"] == {}
    done = withdraw(root, "product", ["P1"], "w1")
    withdraw(root, "cohort", ["c2"], "w2")
    deliver(config(root, channels, run_id="d2"))
    data = shown(root, "d2")
    found = data["withdrawn"]
    assert [(w["kind"], w["value"]) for w in found["listed"]] == [("cohort", "c2"), ("product", "P1")]
    live = {r["uri"] for r in tables.read(root, "deliveries").to_pylist()}
    files = {f["uri"] for f in found["files"]}
    assert found["may_be_cached"] == len(files) > done.may_be_cached
    assert set(done.addresses) <= {address for f in found["files"] for address in f["urls"]}
    assert not files & live
    assert {c["product"]["id"] for c in data["creatives"]} == {"P2"}
    gone = found["files"][0]["uri"]
    root.remove([gone])
    assert gone not in {f["uri"] for f in delivery.collect(root)["withdrawn"]["files"]}


def test_a_withdrawal_that_no_version_reaches_is_still_listed(root):
    rows = [{"withdrawal_id": "w", "kind": "cohort", "value": "c", "withdrawn_at": datetime.now(UTC), "run_id": "w"}]
    tables.merge(root, "withdrawals", pa.Table.from_pylist(rows, schema.WITHDRAWALS), "withdrawal_id", None, {})
    found = delivery.collect(root)
    assert (found["withdrawn"]["ids"], found["withdrawn"]["may_be_cached"]) == (1, 0)
    assert (found["creatives"], found["channels"], found["delivered"]) == ([], [], 0)


def test_hostile_texts_are_data(root, small, rendered):
    publish(root, products=(HOSTILE,), cohorts=(HOSTILE,))
    channels = small("meta", "web")
    deliver(config(root, channels))
    withdraw(root, "cohort", [HOSTILE], "w1")
    delivery.write(root, "d2", {"left_out": {HOSTILE: 1}})
    for run in ("d1", "d2"):
        write_report(root, run)
        page = root.read(f"runs/{run}/report.html").decode()
        assert (page.count("</script>"), page.count("<script")) == (2, 2)
        assert "<!--" not in page
    assert shown(root, "d1")["creatives"][0]["product"]["id"] == HOSTILE
    assert shown(root, "d2")["withdrawn"]["listed"][0]["value"] == HOSTILE


def test_a_dry_run_and_a_run_without_deliveries_show_none(root, small):
    publish(root)
    report = deliver(config(root, small("web"), dry_run=True))
    assert report.gallery_uri is None
    assert not root.exists("runs/d1")
    write_report(root, "e1")
    assert shown(root, "e1") is None


def test_in_a_night_the_page_keeps_what_generate_put_on_it(root, small, rendered):
    publish(root)
    gallery.write(root, "d1", Snapshot(root, "creatives", 0).scan, {"painted": 7}, 300)
    deliver(config(root, small("web")))
    page = root.read("runs/d1/report.html").decode()
    data = json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    assert data["numbers"] == {"painted": 7}
    assert len(data["delivery"]["creatives"]) == 1


def test_the_page_is_made_again_without_opening_a_picture(root, small, rendered):
    publish(root)
    deliver(config(root, small("web")))
    before = shown(root, "d1")
    for folder in root.names("objects"):
        root.clear(f"objects/{folder}")
    write_report(root, "d1", {"notes": ["measured"]})
    assert shown(root, "d1") == before


def test_an_unchanged_catalog_opens_no_picture_for_its_page(root, small, rendered, monkeypatch):
    publish(root)
    channels = small("web", "tiktok")
    deliver(config(root, channels))
    opened = []
    keep = gallery.thumbnails
    monkeypatch.setattr(gallery, "thumbnails", lambda root, uris, px: opened.extend(uris) or keep(root, uris, px))
    delivery.collect(root)
    assert opened == []
    root.write("runs/d1/delivery.json", b'{"creatives": [{"uri": 1, "thumb": 9, "slots": []}], "pictures": []}')
    data = delivery.collect(root)
    assert len(opened) == len(data["pictures"]) > 0


def test_pictures_that_are_gone_or_beyond_the_room_leave_an_empty_place(root, small, rendered, monkeypatch):
    publish(root, products=("P1", "P2"))
    deliver(config(root, small("web")))
    monkeypatch.setattr(delivery, "EMBEDDED_BYTES", 10)
    assert {s["thumb"] for s in slots(delivery.collect(root))} == {None}
    monkeypatch.undo()
    root.clear("runs/d1")
    for folder in root.names("objects"):
        root.clear(f"objects/{folder}")
    data = delivery.collect(root)
    assert data["pictures"] == []
    assert {s["thumb"] for s in slots(data)} == {None}


def many(n: int) -> pa.Table:
    """Rows of deliveries of n creatives in five slots each, three of them filled with noise; no two creatives are alike."""
    ids = [f"{i:016x}" for i in range(n)]
    kinds = [("web", "card"), ("web", "hero"), ("meta", "feed"), ("meta", "story"), ("meta", "square")]
    columns = {name: pa.nulls(5 * n, schema.DELIVERIES.field(name).type) for name in schema.DELIVERIES.names}
    columns["creative_id"] = pa.array([i for i in ids for _ in kinds])
    columns["delivery_id"] = pa.array([f"{i}{k}" for i in ids for k in range(5)])
    columns["product_id"] = pa.array([f"P{i // 10}" for i in range(n) for _ in kinds])
    columns["cohort_id"] = pa.array([f"c{i % 10}" for i in range(n) for _ in kinds])
    columns["channel"], columns["slot"] = (pa.array([kind[at] for _ in ids for kind in kinds]) for at in (0, 1))
    columns["reason"] = pa.array([None, None, None, "too_small", "needs_extension"] * n)
    columns["made_by"] = pa.array(["crop", "extension", "crop", None, None] * n)
    return pa.table(columns, schema=schema.DELIVERIES)


def test_ten_thousand_creatives_cost_what_is_shown(root):
    """50,000 rows: all are counted; pictures, slots and bytes in the page have bounds that rows do not move."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 224, 224, 3), np.uint8)
    uris = [root.put(images.encode_lossless(picture), "webp") for picture in noise]
    rows = many(10_000)
    filled = np.array([None if reason else uris[i % 8] for i, reason in enumerate(rows["reason"].to_pylist())])
    at = rows.column_names.index("uri")
    rows = rows.set_column(at, "uri", pa.array(filled, pa.string()))
    tables.merge(root, "deliveries", rows, "delivery_id", None, {})
    began = time.monotonic()
    delivery.write(root, "d1", {})
    seconds = time.monotonic() - began
    write_report(root, "d1")
    data = shown(root, "d1")
    assert data["delivered"] == 10_000
    counts = {c["name"]: (c["wanted"], c["filled"], c["made_by"], c["empty"]) for c in data["channels"]}
    assert counts["web"] == (20_000, 20_000, {"crop": 10_000, "extension": 10_000}, {})
    assert counts["meta"] == (30_000, 10_000, {"crop": 10_000}, {"too_small": 10_000, "needs_extension": 10_000})
    assert len(data["creatives"]) == delivery.MOST
    assert len(slots(data)) == 5 * delivery.MOST <= delivery.MOST_SLOTS
    assert sum(map(len, data["pictures"])) <= delivery.EMBEDDED_BYTES
    assert len(root.read("runs/d1/report.html")) < 2_000_000
    assert seconds < 20


def test_many_slots_a_creative_leave_room_for_fewer_creatives(root, monkeypatch):
    monkeypatch.setattr(delivery, "MOST_SLOTS", 50)
    tables.merge(root, "deliveries", many(300), "delivery_id", None, {})
    data = delivery.collect(root)
    assert (len(data["creatives"]), len(slots(data)), data["delivered"]) == (10, 50, 300)
    assert all(len(c["slots"]) == 5 for c in data["creatives"])
