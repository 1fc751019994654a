"""`adbooster fsck` finds every kind of damage, says nothing of a whole root, and mends what a night can make again."""

import json
import os
import time
from datetime import timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from adbooster.cli.console import main
from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError, LockHeld, StorageError
from adbooster.prepare.job import prepare
from adbooster.report.fsck import fsck
from adbooster.report.repair import LISTED, Checked
from adbooster.storage import lock, tables
from adbooster.storage.lock import NightLock
from adbooster.storage.objects import Root
from adbooster.storage.rollback import rollback
from adbooster.storage.vacuum import vacuum
from tests.conftest import row
from tests.prepare.test_prepare import config, samples


@pytest.fixture
def whole(stocked) -> Root:
    """One product with photo and mask, three requests of two creatives each, and a delivery of the first."""
    sample = tables.read(stocked, "samples").to_pylist()[0]
    creatives = [
        row(
            schema.CREATIVES,
            creative_id=f"{request}{rank}",
            request_id=request,
            product_id="P1",
            rank=rank,
            photo_sha256=sample["photo_sha256"],
            gates=dict.fromkeys(schema.GATES.names) | {"product_max_diff": 0},
            uri=stocked.put(f"pixels of {request} {rank}".encode(), "webp"),
            size_bytes=len(f"pixels of {request} {rank}"),
            run_id="n",
        )
        for request in ("r1", "r2", "r3")
        for rank in (0, 1)
    ]
    made = pa.Table.from_pylist(creatives, schema.CREATIVES)
    tables.merge(stocked, "creatives", made, "creative_id", None, {"run_id": "n"})
    uri = stocked.put(b"a rendition", "jpg")
    delivery = row(schema.DELIVERIES, delivery_id="d1", creative_id="r10", uri=uri, size_bytes=len(b"a rendition"))
    tables.merge(
        stocked, "deliveries", pa.Table.from_pylist([delivery], schema.DELIVERIES), "delivery_id", None, {"run_id": "n"}
    )
    return stocked


def uri_of(root: Root, creative_id: str) -> str:
    rows = tables.read(root, "creatives").to_pylist()
    return next(r["uri"] for r in rows if r["creative_id"] == creative_id)


def live(root: Root, table: str = "creatives", column: str = "request_id") -> set[str]:
    return set(tables.read(root, table, [column])[column].to_pylist())


def found(done: Checked) -> list[tuple]:
    return sorted((f.problem, f.table, f.row) for f in done.findings)


def is_whole(root: Root) -> None:
    done = fsck(root, 1.0)
    assert (done.problems, done.findings, done.left) == ({}, [], [])
    assert done.rows == {"samples": 1, "creatives": 6, "deliveries": 1}
    assert (done.objects, done.hashed, done.unnamed, done.young) == (9, 9, 0, 0)


def test_a_whole_root(whole):
    is_whole(whole)
    assert fsck(whole, 0.0).hashed == 0


def damage_and_repair(root: Root) -> None:
    lost, cut, flipped = (uri_of(root, name) for name in ("r10", "r21", "r30"))
    content = root.read(flipped)
    root.remove([lost])
    root.write(cut, root.read(cut)[:-3])
    root.write(flipped, b"P" + content[1:])
    unread = fsck(root, 0.0)
    assert found(unread) == [("lost", "creatives", "r10"), ("wrong_size", "creatives", "r21")]
    done = fsck(root, 1.0)
    assert found(done) == sorted([*found(unread), ("wrong_content", "creatives", "r30")])
    assert live(root) == {"r1", "r2", "r3"}
    mended = fsck(root, 0.0, repair=True)
    assert mended.repaired == {"objects": 1, "creatives": 4}
    assert (mended.repaint, root.read(mended.repaint_in)) == (2, b"r1\nr2\n")
    assert live(root) == {"r3"}, "no rank of a request stays, or it would not be painted"
    assert lock.newest(root).released
    assert tables.metadata(root, "creatives")["run_id"].startswith("fsck-")
    assert fsck(root, 0.0).clean
    fsck(root, 1.0, repair=True)
    assert live(root) == set()
    assert not root.exists(flipped), "it is stored anew, however young, when its picture is made again"
    assert root.put(content, "webp") == flipped
    assert root.read(flipped) == content
    assert fsck(root, 1.0).clean


def test_creatives_whose_files_are_lost_or_wrong_are_painted_again(whole):
    damage_and_repair(whole)


def test_a_champion_that_is_lost_takes_its_place_with_it(whole):
    """What joined it there has another request, and would be left with a gap in the ranks."""
    rows = tables.read(whole, "creatives").to_pylist()
    at = {"r1": "c1", "r2": "c1", "r3": "c2"}
    moved = [r | {"cohort_id": at[r["request_id"]], "placement": "square"} for r in rows]
    tables.merge(whole, "creatives", pa.Table.from_pylist(moved, schema.CREATIVES), "creative_id", 0, {"run_id": "n"})
    whole.remove([uri_of(whole, "r10")])
    assert fsck(whole, 0.0, repair=True).repaired == {"creatives": 4}
    assert live(whole) == {"r3"}


def test_the_same_on_s3(s3_root, whole):
    """The root is copied file by file."""
    there = Root(s3_root)
    for name in whole.stats(""):
        there.write(name, whole.read(name))
    is_whole(there)
    damage_and_repair(there)


def test_a_share_is_the_same_each_time_and_grows(whole):
    for i in range(200):
        whole.put(f"more {i}".encode(), "webp")
    shares = [fsck(whole, share).hashed for share in (0.0, 0.25, 0.25, 0.5, 1.0)]
    assert shares == sorted(shares)
    assert shares[1] == shares[2]
    assert 20 < shares[1] < 90
    assert shares[-1] == 209


def test_what_no_version_names_is_counted_and_is_no_error(whole):
    young, old = whole.put(b"painted now", "webp"), whole.put(b"of a night that never published", "webp")
    at = time.time() - 2 * 86400
    os.utime(whole.path(old), (at, at))
    done = fsck(whole, 1.0)
    assert (done.clean, done.unnamed, done.young) == (True, 1, 1)
    rows = tables.read(whole, "creatives")
    tables.merge(whole, "creatives", rows.slice(0, 0), "creative_id", 0, {}, delete=["r10", "r11"])
    assert fsck(whole, 1.0).unnamed == 1, "an older version names what is not live any more"
    whole.write(young, b"damaged")
    done = fsck(whole, 1.0)
    assert [(f.problem, f.file, f.says) for f in done.findings] == [("wrong_content", young, "no live row names it")]
    assert fsck(whole, 1.0, repair=True).repaired == {"objects": 1}
    assert fsck(whole, 1.0).clean


def test_a_proof_that_does_not_hold_as_stored(whole):
    rows = tables.read(whole, "creatives").to_pylist()
    altered = rows[0] | {"gates": rows[0]["gates"] | {"product_max_diff": 3}}
    lossy = rows[2] | {"gates": rows[2]["gates"] | {"product_max_diff": 3, "psnr_db": 45.0}}
    stray = rows[4] | {"product_id": "P7"}
    changed = pa.Table.from_pylist([altered, lossy, stray], schema.CREATIVES)
    tables.merge(whole, "creatives", changed, "creative_id", 0, {})
    done = fsck(whole, 0.0, repair=True)
    assert found(done) == [
        ("no_photo_or_mask", "creatives", stray["creative_id"]),
        ("product_altered", "creatives", altered["creative_id"]),
    ]
    assert altered["request_id"] not in live(whole)
    assert lossy["request_id"] in live(whole)


def test_a_lost_photo_is_told_of_the_sample_and_of_the_creatives_that_show_it(whole):
    whole.remove([tables.read(whole, "samples").to_pylist()[0]["photo_uri"]])
    done = fsck(whole, 0.0)
    assert done.problems == {"lost": 1, "no_photo_or_mask": 6}


def test_a_rendition_that_is_lost_leaves_the_deliveries(whole):
    whole.remove([tables.read(whole, "deliveries")["uri"][0].as_py()])
    done = fsck(whole, 0.0, repair=True)
    assert (found(done), done.repaired) == ([("lost", "deliveries", "d1")], {"deliveries": 1})
    assert live(whole, "deliveries", "delivery_id") == set()


def test_a_sample_that_left_the_feed_and_its_photo_goes(whole):
    kept = tables.read(whole, "samples").to_pylist()[0]
    gone = kept | {"sample_id": "s2", "product_id": "P2", "photo_uri": whole.put(b"old photo", "photo")}
    tables.merge(whole, "samples", pa.Table.from_pylist([gone], schema.SAMPLES), "sample_id", 0, {})
    retire(whole, "s2")
    whole.remove([gone["photo_uri"]])
    assert fsck(whole, 0.0, repair=True).repaired == {"samples": 1}
    assert live(whole, "samples", "sample_id") == {"s1"}
    assert fsck(whole, 0.0).clean


def test_the_next_prepare_makes_samples_again(warm_ray, root, tiny_feed):
    """A photo, another one's mask, and one of each that is damaged: the table and the objects are as before."""
    prepare(config(root, tiny_feed))
    before, stored = samples(root), {name: root.read(name) for name in root.stats("objects")}
    assert len(before) == 4
    one, two, three, four = before.values()
    root.remove([one["photo_uri"], two["mask_uri"]])
    root.write(three["photo_uri"], root.read(three["photo_uri"])[:-9])
    root.write(four["mask_uri"], root.read(four["mask_uri"])[:-9])
    done = fsck(root, 1.0, repair=True)
    assert (done.problems, done.repaired) == ({"lost": 2, "wrong_content": 2}, {"objects": 2, "samples": 4})
    assert {r["reject"] for r in samples(root).values()} == {"failed_fetch", "failed_mask"}
    again = prepare(config(root, tiny_feed, run_id="r2"))
    assert (again.changed, again.new, again.rejects) == (4, 0, {})
    assert samples(root) == before
    assert {name: root.read(name) for name in root.stats("objects")} == stored
    assert fsck(root, 1.0).clean


def test_data_files_that_are_lost_cut_or_no_parquet(whole):
    tables.merge(
        whole, "creatives", tables.read(whole, "creatives").slice(0, 1), "creative_id", 0, {"run_id": "second"}
    )
    listed = tables.open_table(whole, "creatives").file_uris()
    older = set(tables.open_table(whole, "creatives", 0).file_uris())
    newest = f"tables/creatives/{next(f for f in listed if f not in older).rsplit('/', 1)[-1]}"
    content = whole.read(newest)
    for damaged, says in (
        (None, "not stored"),
        (content[:-1], "the log says"),
        (bytes(len(content)), "cannot be read"),
    ):
        whole.remove([newest]) if damaged is None else whole.write(newest, damaged)
        done = fsck(whole, 1.0, repair=True)
        assert [(f.problem, f.file) for f in done.findings] == [("data_file", newest)]
        assert says in done.findings[0].says
        assert "rollback --table creatives --to 0" in done.left[0]
        assert "creatives" not in done.rows
        assert done.unnamed is None, "what a file that cannot be read names is not known"
        assert done.repaired == {}
    assert rollback(whole, "creatives", 0).rows_added is None
    assert tables.history(whole, "creatives")[0].rows_added is None
    done = fsck(whole, 1.0)
    assert (done.problems, done.unnamed) == ({"old_data_file": 1}, None)
    assert newest in done.findings[0].says
    with pytest.raises(StorageError, match=newest):
        vacuum(whole, timedelta(days=7))
    whole.remove([newest])
    is_whole(whole)


def test_a_log_that_cannot_be_read(whole):
    whole.write("tables/creatives/_delta_log/00000000000000000001.json", b"{not json")
    done = fsck(whole, 1.0)
    assert [(f.problem, f.table) for f in done.findings] == [("table_unreadable", "creatives")]
    assert "bring back its _delta_log" in done.left[0]


def test_a_log_that_is_gone(whole):
    whole.remove(whole.stats("tables/creatives/_delta_log"))
    done = fsck(whole, 1.0, repair=True)
    assert [(f.problem, f.table) for f in done.findings] == [("table_unreadable", "creatives")]
    assert "tables/creatives has data files and no log; bring its _delta_log back" in done.left[0]
    assert (done.unnamed, done.repaired) == (None, {})


def retire(root: Root, sample_id: str) -> None:
    at = pa.array([time.time_ns() // 1000], pa.timestamp("us", tz="UTC"))
    rows = tables.read(root, "samples", where=pc.field("sample_id") == sample_id)
    rows = rows.set_column(rows.column_names.index("retired_at"), "retired_at", at)
    tables.merge(root, "samples", rows, "sample_id", tables.version(root, "samples"), {})


def test_a_photo_that_no_live_sample_names_may_be_gone(whole):
    """The product has another photo now, and creatives of the former one stayed live: a vacuum may remove it."""
    sample = tables.read(whole, "samples").to_pylist()[0]
    former, now = sample["photo_uri"], whole.put(b"the photo of today", "photo")
    changed = pa.Table.from_pylist([sample | {"photo_uri": now}], schema.SAMPLES)
    tables.merge(whole, "samples", changed, "sample_id", 0, {})
    content = whole.read(former)
    whole.write(former, b"damaged")
    damaged = fsck(whole, 1.0)
    assert [(f.problem, f.file) for f in damaged.findings] == [("wrong_content", former)]
    assert damaged.findings[0].says == "live creatives show this photo and no sample names it"
    whole.remove([former])
    assert fsck(whole, 1.0).clean
    whole.write(former, content)
    tables.merge(whole, "samples", pa.Table.from_pylist([sample], schema.SAMPLES), "sample_id", 1, {})
    retire(whole, "s1")
    whole.remove([former])
    assert fsck(whole, 1.0).problems == {"lost": 1}, "of the retired sample's row alone"


def test_no_repair_while_a_night_runs(whole, monkeypatch):
    whole.remove([uri_of(whole, "r10")])
    with NightLock(whole, "tonight"):
        monkeypatch.delenv(lock.HELD)  # as in another process
        with pytest.raises(LockHeld):
            fsck(whole, 0.0, repair=True)
        assert fsck(whole, 0.0).problems == {"lost": 1}
    assert live(whole) == {"r1", "r2", "r3"}


def test_many_findings_are_counted_and_the_first_are_told(root):
    rows = [
        row(schema.CREATIVES, creative_id=f"c{i}", request_id=f"c{i}", uri=f"objects/ab/ab{i:062x}.webp")
        for i in range(LISTED + 20)
    ]
    tables.merge(root, "creatives", pa.Table.from_pylist(rows, schema.CREATIVES), "creative_id", None, {})
    done = fsck(root)
    assert (done.problems, len(done.findings)) == ({"lost": LISTED + 20}, LISTED)
    assert fsck(root, repair=True).repaint == LISTED + 20
    assert fsck(root).clean


def test_the_command(whole, capsys):
    main(["fsck", "--root-uri", whole.uri, "--all"])
    text = capsys.readouterr().out
    assert "6 of creatives" in text
    assert text.endswith("all of it holds\n")
    whole.remove([uri_of(whole, "r10")])
    with pytest.raises(SystemExit, match="1"):
        main(["fsck", "--root-uri", whole.uri])
    text = capsys.readouterr().out
    assert "lost  1: a live row names an object that is not stored" in text
    assert "--repair mends" in text
    with pytest.raises(SystemExit, match="1"):
        main(["fsck", "--root-uri", whole.uri, "--repair", "--json"])
    assert json.loads(capsys.readouterr().out)["repaired"] == {"creatives": 2}
    main(["fsck", "--root-uri", whole.uri, "--sample", "0.5"])
    for wrong in ("2", "x", "-1"):
        with pytest.raises(SystemExit, match="2"):
            main(["fsck", "--root-uri", whole.uri, "--sample", wrong])
    with pytest.raises(ConfigError, match="no tables below"):
        fsck(Root(f"{whole.uri}/nowhere"))
