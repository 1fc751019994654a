"""What vacuum removes, and that it never removes what is live, in reach of a rollback, or being made."""

import json
import os
import time
from datetime import timedelta

import pyarrow as pa
import pyarrow.parquet as pap
import pytest

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError, SchemaError
from adbooster.pictures import images
from adbooster.storage import tables
from adbooster.storage.objects import Root
from adbooster.storage.rollback import rollback
from adbooster.storage.vacuum import named, vacuum
from tests.conftest import row
from tests.storage.test_rollback import live, publish

WEEK, NONE = timedelta(days=7), timedelta(0)


def age(root: Root, days: float, *folders: str) -> None:
    """Local files below these folders as old as that."""
    for folder in folders:
        for file in root.stats(folder):
            at = time.time() - days * 86400
            os.utime(root.path(file), (at, at))


def stage(root: Root, run: str, content: str) -> str:
    """A part that a run staged, and its object."""
    uri = root.put(content.encode(), "webp")
    part = pa.Table.from_pylist([row(schema.STAGED, creative_id=content, uri=uri)], schema.STAGED)
    sink = pa.BufferOutputStream()
    pap.write_table(part, sink)
    root.write(f"runs/{run}/staged/creatives-x/{content}.parquet", sink.getvalue().to_pybytes())
    return uri


def removes_what_nothing_names_and_nothing_else(root: Root) -> None:
    publish(root, ["old", "kept"])
    publish(root, ["new"], delete=["old"])
    orphan = root.put(b"painted by a run that never published", "webp")
    resumed = stage(root, "unfinished", "resumed")
    published = stage(root, "finished", "new")
    root.write("runs/finished/report.json", b"{}")
    root.write("weights/1/unet.safetensors", b"w")
    old = next(r["uri"] for r in tables.read(root, "creatives", version=0).to_pylist() if r["creative_id"] == "old")

    planned = vacuum(root, NONE, dry_run=True, force=True)
    before = {**root.stats("objects"), **root.stats("tables"), **root.stats("runs")}
    done = vacuum(root, NONE, force=True)
    assert planned.model_copy(update={"dry_run": False}) == done, "a dry run says what is then removed"
    assert done.objects == sorted([orphan, old])
    assert done.staged_parts == ["runs/finished/staged/creatives-x/new.parquet"]
    assert len(done.table_files) == 1
    gone = {*done.objects, *done.staged_parts, *done.table_files}
    after = {**root.stats("objects"), **root.stats("tables"), **root.stats("runs")}
    assert set(before) - set(after) == gone
    assert done.size_bytes == sum(before[file].size_bytes for file in gone)
    assert live(root) == {"kept", "new"}
    assert root.exists(resumed)
    assert root.exists(published)
    assert root.exists("weights/1/unet.safetensors")
    assert tables.version(root, "creatives") == 1, "a night that was planned before it can still publish"
    with pytest.raises(ConfigError, match="past the retention"):
        rollback(root, "creatives", 0)
    again = vacuum(root, NONE, force=True)
    assert not again.objects + again.table_files + again.staged_parts


def test_what_nothing_names_on_disk(root):
    removes_what_nothing_names_and_nothing_else(root)


def test_what_nothing_names_on_s3(s3_root):
    removes_what_nothing_names_and_nothing_else(Root(s3_root))


def test_a_rollback_within_the_retention_still_works(root):
    publish(root, ["a", "b"])
    publish(root, ["c"], delete=["a"])
    publish(root, ["d"], delete=["b"])
    age(root, 30, "objects", "tables/creatives")  # the files are a month old, the commits are of today
    done = vacuum(root, WEEK)
    assert not done.objects + done.table_files
    assert done.objects_kept == 4
    rollback(root, "creatives", 1)
    assert live(root) == {"b", "c"}
    rollback(root, "creatives", 0)
    assert live(root) == {"a", "b"}


def commit_of(root: Root, version: int, days_ago: float) -> None:
    """A commit as if it had been made that long ago."""
    log, moved = f"tables/creatives/_delta_log/{version:020}.json", int((time.time() - days_ago * 86400) * 1000)
    actions = [json.loads(line) for line in root.read(log).splitlines()]
    for action in actions:
        for body, key in (("commitInfo", "timestamp"), ("remove", "deletionTimestamp"), ("add", "modificationTime")):
            if body in action:
                action[body][key] = moved
    root.write(log, "".join(json.dumps(action) + "\n" for action in actions).encode())


def test_versions_past_the_retention_go_with_their_objects(root):
    """Of nights 20, 10 and 3 days ago the last two were live within the week; the first was not."""
    publish(root, ["a"])
    publish(root, ["b"], delete=["a"])
    publish(root, ["c"], delete=["b"])
    for version, days_ago in enumerate((20, 10, 3)):
        commit_of(root, version, days_ago)
    age(root, 30, "objects", "tables/creatives")
    gone = next(r["uri"] for r in tables.read(root, "creatives", version=0).to_pylist())
    done = vacuum(root, WEEK)
    assert done.objects == [gone]
    assert len(done.table_files) == 1
    with pytest.raises(ConfigError, match="past the retention"):
        rollback(root, "creatives", 0)
    rollback(root, "creatives", 1)
    assert live(root) == {"b"}


def test_a_retention_longer_than_deltas_own_holds_after_a_checkpoint(root):
    """A checkpoint forgets the files that were dropped more than a week ago; a rollback may still need them."""
    publish(root, ["a"])
    publish(root, ["b"], delete=["a"])
    for version, days_ago in enumerate((20, 10)):
        commit_of(root, version, days_ago)
    age(root, 30, "objects", "tables/creatives")
    tables.open_table(root, "creatives").create_checkpoint()
    done = vacuum(root, timedelta(days=14))
    assert not done.objects + done.table_files
    rollback(root, "creatives", 0)
    assert live(root) == {"a"}


def test_what_a_running_job_has_just_stored_stays(root):
    publish(root, ["a"])
    orphan = root.put(b"a week old, named by nothing", "webp")
    age(root, 8, "objects")
    young = root.put(b"painted a moment ago", "webp")
    assert root.put(b"a week old, named by nothing", "webp") == orphan, "painted again by the night that runs now"
    assert vacuum(root, WEEK).objects == []
    assert root.exists(young)
    age(root, 8, "objects")
    assert vacuum(root, WEEK).objects == sorted([orphan, young])
    assert live(root) == {"a"}


def test_parts_of_a_run_that_was_given_up_go_and_those_of_this_week_stay(root):
    publish(root, ["a"])
    given_up, resumed = stage(root, "given-up", "x"), stage(root, "killed", "y")
    root.write("runs/cut/staged/creatives-x/z.parquet", b"PAR1 cut short")
    age(root, 8, "objects", "runs/given-up")
    age(root, 6, "runs/killed")
    done = vacuum(root, WEEK)
    assert done.staged_parts == ["runs/given-up/staged/creatives-x/x.parquet"]
    assert done.objects == [given_up]
    assert vacuum(root, NONE, force=True).staged_parts == [], "an unfinished run can be resumed for a week"
    assert root.exists(resumed)


def test_photos_and_masks_of_samples_are_named(stocked):
    sample = tables.read(stocked, "samples").to_pylist()[0]
    age(stocked, 30, "objects")
    done = vacuum(stocked, WEEK)
    assert (done.objects, done.objects_kept) == ([], 2)
    images.decode(stocked.read(sample["photo_uri"]))
    images.decode_mask(stocked.read(sample["mask_uri"]))


@pytest.mark.parametrize(
    "text", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_uris_are_found_wherever_a_row_has_them(text):
    plain = {
        "uri": ["objects/aa/1.webp", None, "https://shop/x.png"],
        "own_photo_uris": [["objects/aa/2.png"], [], None],
        "renditions": [[{"uri": "objects/aa/3.webp", "width": 1}], None, []],
        "title": ["objects/aa/4.webp", "", ""],
    }
    one = pa.array(plain["uri"], pa.string()).cast(text)
    assert named(pa.table(plain | {"uri": one})) == {"objects/aa/1.webp", "objects/aa/2.png", "objects/aa/3.webp"}


def test_what_vacuum_cannot_look_into_stops_it():
    rows = pa.table({"renditions": pa.array([[("square", "objects/aa/1.webp")]], pa.map_(pa.string(), pa.string()))})
    with pytest.raises(SchemaError, match="renditions"):
        named(rows)


def test_too_short_a_retention_and_no_tables_are_said(root):
    with pytest.raises(ConfigError, match=r"below the minimum of 1 day.*--force"):
        vacuum(root, timedelta(hours=23))
    with pytest.raises(ConfigError, match="no tables below"):
        vacuum(root, WEEK)
