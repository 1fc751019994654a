import threading

import pyarrow as pa
import pytest

from adbooster import schema, tables
from adbooster.errors import PublishConflict, SchemaError
from adbooster.objects import Root


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
