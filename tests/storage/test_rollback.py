"""Back to an earlier night, on disk and on S3: all of it is there, or nothing is changed."""

import pyarrow as pa
import pytest

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError, PublishConflict
from adbooster.storage import tables
from adbooster.storage.objects import Root
from adbooster.storage.rollback import rollback
from tests.conftest import row


def publish(root: Root, names: list[str], delete=()) -> int:
    """One night whose creatives are files of these contents."""
    rows = [
        row(schema.CREATIVES, creative_id=name, request_id=name, uri=root.put(name.encode(), "webp")) for name in names
    ]
    base = tables.version(root, "creatives")
    table = pa.Table.from_pylist(rows, schema.CREATIVES)
    return tables.merge(root, "creatives", table, "creative_id", base, {"run_id": f"night {base}"}, delete)


def live(root: Root, version=None) -> set[str]:
    """What a reader of the live table finds in the files that it names."""
    return {root.read(r["uri"]).decode() for r in tables.read(root, "creatives", version=version).to_pylist()}


def two_nights_and_back(root: Root) -> None:
    publish(root, ["a", "b"])
    publish(root, ["c"], delete=["a"])
    planned = rollback(root, "creatives", 0, dry_run=True)
    assert (planned.version, tables.version(root, "creatives")) == (None, 1)
    done = rollback(root, "creatives", 0)
    assert (done.version, done.rows, done.rows_added, done.rows_removed, done.objects) == (2, 2, 1, 1, 2)
    assert live(root) == {"a", "b"}
    assert live(root, version=1) == {"b", "c"}, "what came after is still in the history"
    newest = tables.history(root, "creatives")[0]
    assert (newest.operation, newest.rollback_to, newest.rows_added, newest.rows_removed) == ("RESTORE", 0, 1, 1)
    assert tables.open_table(root, "creatives").history(1)[0]["rollback_from"] == "1"
    assert publish(root, ["d"]) == 3
    assert live(root) == {"a", "b", "d"}


def test_two_nights_and_back_on_disk(root):
    two_nights_and_back(root)


def test_two_nights_and_back_on_s3(s3_root):
    two_nights_and_back(Root(s3_root))


def test_what_cannot_be_restored_is_said_and_changes_nothing(root):
    with pytest.raises(ConfigError, match="there is no table"):
        rollback(root, "creatives", 0)
    publish(root, ["a"])
    publish(root, ["b"], delete=["a"])
    with pytest.raises(ConfigError, match="no version 7; its history has 0 to 1"):
        rollback(root, "creatives", 7)
    with pytest.raises(ConfigError, match="no version -1"):
        rollback(root, "creatives", -1)
    with pytest.raises(ConfigError, match="live already"):
        rollback(root, "creatives", 1)
    assert (tables.version(root, "creatives"), live(root)) == (1, {"b"})
    rollback(root, "creatives", 0)
    with pytest.raises(ConfigError, match="live already"):
        rollback(root, "creatives", 0)


def test_a_version_whose_objects_are_gone_is_refused(root):
    publish(root, ["a", "kept"])
    publish(root, ["b"], delete=["a"])
    uri = next(r["uri"] for r in tables.read(root, "creatives", version=0).to_pylist() if r["creative_id"] == "a")
    root.remove([uri])
    for dry_run in (True, False):
        with pytest.raises(ConfigError, match=f"1 of the 2 objects that it names are gone .{uri}."):
            rollback(root, "creatives", 0, dry_run)
    assert (tables.version(root, "creatives"), live(root)) == (1, {"b", "kept"})


def test_a_version_whose_files_are_gone_is_refused(root):
    publish(root, ["a"])
    first = {f for f in root.stats("tables/creatives") if f.endswith(".parquet")}
    publish(root, ["b"], delete=["a"])
    root.remove(first)
    with pytest.raises(ConfigError, match="1 of its 1 files are gone"):
        rollback(root, "creatives", 0)


def test_a_version_of_an_older_release_is_restored_and_gets_todays_columns(root):
    from deltalake import write_deltalake

    older = pa.table({"creative_id": ["a"], "request_id": ["a"], "uri": [root.put(b"a", "webp")]})
    write_deltalake(f"{root.uri}/tables/creatives", older)
    publish(root, ["b"], delete=["a"])
    rollback(root, "creatives", 0)
    assert live(root) == {"a"}
    publish(root, ["c"])
    assert live(root) == {"a", "c"}


def test_a_night_that_commits_meanwhile_wins(root):
    publish(root, ["a"])
    publish(root, ["b"])
    with pytest.raises(PublishConflict, match="nothing was rolled back"):
        tables.restore(root, "creatives", 0, base=0, metadata={})
    assert live(root) == {"a", "b"}


def test_a_night_planned_before_a_rollback_does_not_undo_it(root):
    publish(root, ["a"])
    publish(root, ["b"])
    rollback(root, "creatives", 0)
    night = pa.Table.from_pylist([row(schema.CREATIVES, creative_id="c")], schema.CREATIVES)
    with pytest.raises(PublishConflict):
        tables.merge(root, "creatives", night, "creative_id", 1, {})
    assert live(root) == {"a"}
