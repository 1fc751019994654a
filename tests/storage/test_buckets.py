"""Tables by product: any sequence of changes gives the rows that a plain dictionary gives, whatever the parts are."""

import itertools
import os
import random
import threading

import duckdb
import polars
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from adbooster.contracts import schema
from adbooster.contracts.errors import PublishConflict, SchemaError, StorageError
from adbooster.contracts.naming import bucket
from adbooster.storage import buckets, rollback, tables
from adbooster.storage.buckets import WHOLE, Change, Part, Snapshot, Spill, parts
from adbooster.storage.objects import Root


def rows(*products, run="r1", copies=1):
    """`copies` creatives a product, of a run."""
    plain = dict.fromkeys(schema.CREATIVES.names)
    return pa.Table.from_pylist(
        [
            plain | {"creative_id": f"{p}-{i}", "product_id": p, "run_id": run, "rank": i, "gates": {"people": 0.5}}
            for p in products
            for i in range(copies)
        ],
        schema.CREATIVES,
    )


def publish(root, base, new=None, drop=(), divided=None):
    """One commit of these rows, in the parts `divided`; its version."""
    divided, new = divided or [WHOLE], rows() if new is None else new
    with Change(root, "creatives", base, "creative_id", divided) as change:
        for part in divided:
            mine = new.filter(part.has(buckets.numbers(new["product_id"])))
            change.replace(part, mine, pa.array(list(drop), pa.string()))
        return change.commit({"run_id": "r", "job": "generate"})


def live(root, version=None):
    found = tables.read(root, "creatives", version=version).to_pylist()
    assert len({r["creative_id"] for r in found}) == len(found)
    return {r["creative_id"]: r["run_id"] for r in found}


def test_parts_hold_every_bucket_once_and_rows_by_their_number():
    assert parts(0) == parts(10, most=10) == [WHOLE]
    assert len(parts(11, most=10)) == 2
    assert len(parts(81, most=10)) == 16
    assert len(parts(3 * 10**7)) == 64
    for divided in (parts(81, most=10), parts(10**12, most=1)):
        assert divided[0].first == 0
        assert divided[-1].after == 1 << 16
        assert all(a.after == b.first for a, b in itertools.pairwise(divided))


def check_random_changes(root, steps):
    chance, known, base = random.Random(5), {}, None
    for step in range(steps):
        divided = parts(64, most=chance.choice((8, 16, 32, 64)))
        new = rows(*chance.sample([f"p{i}" for i in range(60)], chance.randint(0, 20)), run=f"r{step}", copies=2)
        drop = chance.sample(sorted(known), chance.randint(0, len(known) // 4))
        drop = [name for name in drop if name not in new["creative_id"].to_pylist()]
        base = publish(root, base, new, [*drop, "unknown"], divided)
        known = {k: v for k, v in known.items() if k not in drop}
        known |= dict(zip(new["creative_id"].to_pylist(), new["run_id"].to_pylist(), strict=True))
        assert live(root) == known
        for some in ([WHOLE], divided):
            now = Snapshot(root, "creatives", base)
            found = [r for part in some for r in now.read(part, ["creative_id", "bucket", "product_id"]).to_pylist()]
            assert sorted(r["creative_id"] for r in found) == sorted(known)
            assert all(r["bucket"] == bucket(r["product_id"]) for r in found)


def test_any_changes_in_any_parts_give_the_rows_that_are_asked_for(root):
    check_random_changes(root, 15)


def test_parts_on_s3(s3_root):
    check_random_changes(Root(s3_root), 3)


def test_only_parts_that_change_are_written(root):
    divided = parts(16, most=1)
    base = publish(root, None, rows(*(f"p{i}" for i in range(200))), divided=divided)
    files = set(tables.open_table(root, "creatives").file_uris())
    assert len(files) == 16
    assert publish(root, base, rows("p7", run="r2"), divided=divided) == base + 1
    after = set(tables.open_table(root, "creatives").file_uris())
    assert len(files & after) == 15
    assert len(after) == 16
    assert live(root)["p7-0"] == "r2"
    assert len(live(root)) == 200
    on_disk = root.stats("tables/creatives")
    assert publish(root, base + 1, drop=["nobody"], divided=divided) == base + 1
    assert root.stats("tables/creatives") == on_disk


def test_a_table_of_an_earlier_version_is_divided_by_its_first_change_and_loses_nothing(root):
    old = rows(*(f"p{i}" for i in range(50))).drop_columns(["bucket"])
    uri = f"{root.uri}/tables/creatives"
    tables.write_deltalake(uri, old.slice(0, 30))
    table = tables.open_table(root, "creatives")
    source, same = old.slice(20), "target.creative_id = source.creative_id"
    merger = table.merge(source, same, "source", "target")
    merger.when_matched_update_all().when_not_matched_insert_all().execute()  # its files hold string views
    assert sorted(
        r for t in Snapshot(root, "creatives", 1).scan(["product_id"]) for r in t["product_id"].to_pylist()
    ) == (sorted(f"p{i}" for i in range(50)))
    divided = parts(4, most=1)
    publish(root, 1, rows("p3", run="r2"), ["p4-0"], divided)
    assert live(root) == {f"p{i}-0": "r1" for i in range(50) if i != 4} | {"p3-0": "r2"}
    assert len(tables.open_table(root, "creatives").file_uris()) == 4
    assert {r["bucket"] for r in tables.read(root, "creatives").to_pylist()} == {
        bucket(f"p{i}") for i in range(50) if i != 4
    }
    assert len(live(root, version=1)) == 50
    rollback.rollback(root, tables.version(root, "creatives") - 2, 1) if False else rollback.rollback(
        root, "creatives", 1
    )
    assert len(live(root)) == 50


def test_nothing_is_live_before_the_commit_or_without_it(root):
    base = publish(root, None, rows("a", "b"))
    with Change(root, "creatives", base, "creative_id", [WHOLE]) as change:
        change.replace(WHOLE, rows("a", run="r2"))
        assert live(root) == {"a-0": "r1", "b-0": "r1"}
        other = publish(root, base, rows("c"))
        with pytest.raises(PublishConflict):
            change.commit({})
    assert tables.version(root, "creatives") == other
    assert live(root) == {"a-0": "r1", "b-0": "r1", "c-0": "r1"}
    with pytest.raises(PublishConflict):
        Change(root, "creatives", base, "creative_id", [WHOLE])


def test_a_row_of_another_part_is_refused(root):
    low, high = parts(2, most=1)
    name = next(f"p{i}" for i in range(99) if bucket(f"p{i}") >= high.first)
    with (
        Change(root, "creatives", None, "creative_id", [low, high]) as change,
        pytest.raises(SchemaError, match="part"),
    ):
        change.replace(low, rows(name))


def test_other_readers_see_the_rows_and_leave_out_files_by_bucket(root):
    publish(root, None, rows(*(f"p{i}" for i in range(80))), divided=parts(8, most=1))
    table = tables.open_table(root, "creatives")
    where = [("bucket", "<", 8192)]
    few = table.to_pyarrow_table(columns=["product_id"], filters=where)
    files = [f.removeprefix("file://") for f in table.file_uris()]
    (named,) = duckdb.sql(f"SELECT count(*), sum((bucket < 8192)::INT) FROM read_parquet({files})").fetchall()
    assert named == (80, few.num_rows)
    assert 0 < few.num_rows < 80
    assert Part(0, 8192).has(buckets.numbers(few["product_id"])).to_pylist() == [True] * few.num_rows


def test_history_counts_rows_as_before(root):
    base = publish(root, None, rows("a", "b"))
    publish(root, base, rows("a", "c", run="r2"), ["b-0"])
    newest, first = tables.history(root, "creatives")
    assert (newest.rows_added, newest.rows_removed, newest.run_id) == (2, 2, "r")
    assert (first.rows_added, first.rows_removed) == (2, 0)


def test_every_read_beside_a_publish_of_many_parts_is_one_whole_version(root):
    """Each night replaces every row in sixteen parts: a read that mixed two versions would show two nights."""
    divided, names = parts(16, most=1), [f"p{i}" for i in range(60)]
    publish(root, None, rows(*names, run="n0"), divided=divided)
    uri, over, seen, wrong = f"{root.uri}/tables/creatives", threading.Event(), set(), []

    def by_duckdb():
        files = DeltaTable(uri).file_uris()
        return [name for (name,) in duckdb.connect().execute("SELECT run_id FROM read_parquet(?)", [files]).fetchall()]

    def by_parts():
        now = Snapshot(root, "creatives", tables.version(root, "creatives"), most=8)
        return [name for part in now.scan(["run_id"]) for name in part["run_id"].to_pylist()]

    readers = {
        "DuckDB": by_duckdb,
        "Polars": lambda: polars.read_delta(uri, columns=["run_id"])["run_id"].to_list(),
        "pyarrow": lambda: DeltaTable(uri).to_pyarrow_dataset().to_table(["run_id"])["run_id"].to_pylist(),
        "parts": by_parts,
    }

    def read(name):
        while not over.is_set():
            found = readers[name]()
            seen.add((name, *set(found)))
            if len(found) != len(names) or len(set(found)) != 1:
                wrong.append((name, found))

    threads = [threading.Thread(target=read, args=[name]) for name in readers]
    for thread in threads:
        thread.start()
    for i in range(1, 12):
        publish(root, i - 1, rows(*names, run=f"n{i}"), divided=divided)
    over.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert {name for name, _ in seen} == set(readers)
    assert len({night for _, night in seen}) > 2


def test_a_disk_that_fills_up_half_way_through_the_parts_leaves_what_is_live(small_disk):
    root, divided = Root(str(small_disk / "root")), parts(8, most=1)
    names = [f"p{i}" for i in range(200)]
    publish(root, None, rows(*names), divided=divided)
    new = rows(*names, run="r2")
    new = new.set_column(
        new.schema.get_field_index("prompt"), "prompt", pa.array([os.urandom(12_000).hex() for _ in names])
    )
    before = set(root.stats("tables/creatives"))
    with pytest.raises(StorageError, match="the disk of .* is full"):
        publish(root, 0, new, divided=divided)
    written = set(root.stats("tables/creatives")) - before
    assert 1 <= len(written) < 8, "it was full half-way"
    assert live(root) == {f"{name}-0": "r1" for name in names}
    assert tables.version(root, "creatives") == 0
    root.remove(written)
    assert publish(root, 0, rows("p1", run="r3"), divided=divided) == 1


def test_what_is_spilled_to_a_full_disk_is_one_sentence(small_disk):
    spill = Spill(small_disk / "spill", schema.CREATIVES)
    new = rows(*(f"p{n}" for n in range(3000)))
    long = pa.array([os.urandom(1000).hex() for _ in range(3000)])
    with pytest.raises(StorageError, match="the disk of .* is full"):
        spill.add(new.set_column(new.schema.get_field_index("prompt"), "prompt", long))
