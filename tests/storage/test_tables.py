import os
import subprocess
import sys
import threading
from datetime import timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pap
import pytest

from adbooster.contracts import schema
from adbooster.contracts.errors import PublishConflict, SchemaError
from adbooster.storage import tables
from adbooster.storage.objects import Root
from tests.faults import Faults, FaultyS3


def rows(ids, query="q"):
    return pa.Table.from_pylist(
        [dict.fromkeys(schema.COHORTS.names) | {"cohort_id": i, "query": query} for i in ids], schema.COHORTS
    )


def live(root):
    return {r["cohort_id"]: r["query"] for r in tables.read(root, "cohorts").to_pylist()}


def merge(root, ids, query, base, delete=()):
    return tables.merge(root, "cohorts", rows(ids, query), "cohort_id", base, {"run_id": "r"}, delete)


def check_one_commit_adds_replaces_and_drops(root):
    assert merge(root, ["a", "b"], "old", None) == 0
    assert merge(root, ["b", "c"], "new", 0, delete=["a"]) == 1
    assert live(root) == {"b": "new", "c": "new"}
    assert tables.open_table(root, "cohorts").history(1)[0]["run_id"] == "r"
    assert {r["cohort_id"] for r in tables.read(root, "cohorts", ["cohort_id"], version=0).to_pylist()} == {"a", "b"}


def test_one_commit_on_disk(root):
    check_one_commit_adds_replaces_and_drops(root)


def test_one_commit_on_s3(s3_root):
    check_one_commit_adds_replaces_and_drops(Root(s3_root))


def test_a_run_planned_on_an_older_version_changes_nothing(root):
    merge(root, ["a"], "old", None)
    merge(root, ["b"], "other run", 0)
    with pytest.raises(PublishConflict, match="version 0"):
        merge(root, ["a"], "late", 0)
    assert live(root) == {"a": "old", "b": "other run"}


def race_commits_exactly_one(root):
    merge(root, ["a"], "old", None)
    outcomes = []

    def run(i):
        try:
            outcomes.append(merge(root, [f"n{i}"], "new", 0))
        except PublishConflict:
            outcomes.append("conflict")

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(map(str, outcomes)) == ["1", "conflict", "conflict", "conflict"]
    assert len(live(root)) == 2


def test_of_four_at_once_one_commits_on_disk(root):
    race_commits_exactly_one(root)


def test_of_four_at_once_one_commits_on_s3(s3_root):
    race_commits_exactly_one(Root(s3_root))


def test_rows_of_another_shape_are_refused(root):
    with pytest.raises(SchemaError, match="family"):
        tables.merge(root, "cohorts", pa.table({"cohort_id": ["a"]}), "cohort_id", None, {})
    assert tables.open_table(root, "cohorts") is None


def test_a_table_never_written_is_empty(root):
    assert tables.read(root, "creatives").num_rows == 0
    assert tables.version(root, "creatives") is None


COMMITS = r"PUT .*_delta_log/\d+\.json"


@pytest.mark.parametrize("fault", ["refused", "lost", "reset"])
def test_a_commit_whose_answer_is_an_error_is_known_for_what_it_is(s3_root, s3_endpoint, fault):
    """Done but not acknowledged, a commit is met again by its own retry: it is ours, and no conflict."""
    root = Root(s3_root)
    merge(root, ["a"], "first", None)
    program = (
        "from tests.storage.test_tables import *\n"
        f"print(merge(Root({s3_root!r}), ['b'], 'second', 0))\n"
        f"print(merge(Root({s3_root!r}), ['c'], 'third', 1))"
    )
    with FaultyS3(s3_endpoint, Faults(**{fault: 1.0}, where=COMMITS, most=1)) as s3:
        env = os.environ | {"AWS_ENDPOINT_URL": s3.endpoint}  # another process: delta-rs holds this one's lock at times
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=100)
        assert s3.faults.counts == {fault: 1}
    assert done.stdout.split() == ["1", "2"], done.stderr[-2000:]
    assert live(root) == {"a": "first", "b": "second", "c": "third"}


def test_another_runs_commit_is_not_taken_for_ours(s3_root, s3_endpoint, monkeypatch):
    root = Root(s3_root)
    merge(root, ["a"], "old", None)
    planned = tables.open_table(root, "cohorts")
    merge(root, ["b"], "other run", 0)
    opened, real = iter([planned]), tables.open_table  # opened before the other run's commit, and again after the error
    monkeypatch.setattr(tables, "open_table", lambda *where: next(opened, None) or real(*where))
    with pytest.raises(PublishConflict, match="committed to tables/cohorts first"):
        merge(root, ["c"], "late", 0)
    assert live(root) == {"a": "old", "b": "other run"}


def test_parts_are_read_whatever_their_number(root):
    for i in range(100):
        sink = pa.BufferOutputStream()
        pap.write_table(rows([f"c{i}"]), sink)
        root.write(f"runs/r/staged/cohorts/{i:03}.parquet", sink.getvalue().to_pybytes())
    root.write("runs/r/staged/cohorts/cut.parquet", b"PAR1 cut short")
    found = tables.read_staged(root, "runs/r/staged/cohorts", schema.COHORTS)
    assert found["cohort_id"].to_pylist() == [f"c{i}" for i in range(100)]


def test_a_part_older_than_a_column_is_read_with_nulls(root):
    """What a killed run of an earlier version staged is taken up."""
    sink = pa.BufferOutputStream()
    pap.write_table(rows(["a"]).drop_columns(["text_model"]), sink)
    root.write("runs/r/staged/cohorts/0.parquet", sink.getvalue().to_pybytes())
    found = tables.read_staged(root, "runs/r/staged/cohorts", schema.COHORTS)
    assert (found.schema, found["cohort_id"].to_pylist()) == (schema.COHORTS, ["a"])
    assert found["text_model"].null_count == 1


def test_a_table_older_than_a_column_is_read_with_nulls_and_grows(root):
    from deltalake import write_deltalake

    young = {"shares", "negative", "centroid", "text_model"}
    old = pa.schema([f for f in schema.COHORTS if f.name not in young])
    row = {"cohort_id": "a", "query": "boots", "interests": ["boots"], "size": 1, "version": "1"}
    write_deltalake(f"{root.uri}/tables/cohorts", pa.Table.from_pylist([row], old))
    assert tables.read(root, "cohorts").to_pylist()[0]["negative"] is None
    new = pa.Table.from_pylist([row | {"cohort_id": "b", "negative": "rain", "centroid": [1.0]}], schema.COHORTS)
    tables.merge(root, "cohorts", new, "cohort_id", 0, {})
    found = {r["cohort_id"]: (r["negative"], r["centroid"]) for r in tables.read(root, "cohorts").to_pylist()}
    assert found == {"a": (None, None), "b": ("rain", [1.0])}


def test_only_rows_that_are_asked_for_are_read_of_a_table_that_was_merged_into(root):
    merge(root, ["a", "b"], "old", None)
    merge(root, ["b", "c"], "new", 0)
    merge(root, ["d"], "last", 1)
    for wanted, found in ((["b", "d", "x"], {"b", "d"}), ([], set())):
        where = pc.field("cohort_id").isin(pa.array(wanted, pa.string()))
        read = tables.read(root, "cohorts", ["cohort_id", "query"], where=where)
        assert set(read["cohort_id"].to_pylist()) == found
    assert tables.read(root, "cohorts", ["cohort_id"], 0, pc.field("cohort_id") == "c").num_rows == 0


def test_replace_puts_all_rows_in_place_of_all_in_one_commit(root):
    def rows(*users):
        return [pa.RecordBatch.from_pylist([{"user_hash": u, "cohort_id": "c"}], schema.MEMBERS) for u in users]

    first = tables.replace(root, "members", rows("a", "b"), None, {"content": "x"})
    assert tables.metadata(root, "members")["content"] == "x"
    tables.replace(root, "members", rows("b"), first, {})
    assert tables.read(root, "members")["user_hash"].to_pylist() == ["b"]
    with pytest.raises(PublishConflict):
        tables.replace(root, "members", rows("c"), first, {})


def test_rows_that_are_live_no_more_are_found_where_a_table_last_had_them(root):
    wanted, columns = pa.array(["a", "b", "never"]), ["cohort_id", "query"]
    assert tables.ever(root, "cohorts", wanted, columns).num_rows == 0
    merge(root, ["a", "b", "c"], "old", None)
    merge(root, ["a"], "new", 0, delete=["b"])
    found = tables.ever(root, "cohorts", wanted, columns).to_pylist()
    assert {r["cohort_id"]: r["query"] for r in found} == {"a": "new", "b": "old"}
    assert tables.ever(root, "cohorts", wanted, columns, versions=1)["query"].to_pylist() == ["new"]
    root.remove(tables.expired(root, "cohorts", timedelta(0)))
    assert tables.ever(root, "cohorts", wanted, columns)["query"].to_pylist() == ["new"]
