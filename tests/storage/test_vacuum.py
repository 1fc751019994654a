"""What vacuum removes, and that it never removes what is live, in reach of a rollback, or being made."""

import hashlib
import json
import os
import time
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pap
import pytest

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError, SchemaError
from adbooster.pictures import images
from adbooster.storage import tables
from adbooster.storage.lock import NightLock
from adbooster.storage.maintenance import MaintainConfig, maintain
from adbooster.storage.objects import Root
from adbooster.storage.rollback import rollback
from adbooster.storage.vacuum import FIRST, Names, Vacuumed, keys, named, vacuum
from tests.conftest import row
from tests.storage.test_rollback import live, publish

WEEK, NONE = timedelta(days=7), timedelta(0)


def age(root: Root, days: float, *folders: str) -> None:
    """Local files below these folders as old as that."""
    for folder in folders:
        for file in root.stats(folder):
            at = time.time() - days * 86400
            os.utime(root.path(file), (at, at))


def swept(root: Root, retention: timedelta, **how) -> tuple[Vacuumed, list[str]]:
    """What a vacuum reports, and every name that goes."""
    names: list[str] = []
    return vacuum(root, retention, tell=names.append, **how), names


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

    planned, told = swept(root, NONE, dry_run=True, force=True)
    before = {**root.stats("objects"), **root.stats("tables"), **root.stats("runs")}
    assert planned.listed_in is None
    assert not root.stats("vacuum"), "a dry run writes nothing"
    done, gone = swept(root, NONE, force=True)
    assert gone == told
    assert planned == done.model_copy(update={"dry_run": True, "listed_in": None}), (
        "a dry run says what is then removed"
    )
    assert (done.table_files, done.staged_parts, done.objects) == (1, 1, 2)
    assert gone[0].startswith("tables/creatives/")
    assert gone[1:] == ["runs/finished/staged/creatives-x/new.parquet", *sorted([orphan, old])]
    assert done.first == gone == root.read(done.listed_in).decode().splitlines()
    after = {**root.stats("objects"), **root.stats("tables"), **root.stats("runs")}
    assert set(before) - set(after) == set(gone)
    assert done.size_bytes == sum(before[file].size_bytes for file in gone)
    assert live(root) == {"kept", "new"}
    assert root.exists(resumed)
    assert root.exists(published)
    assert root.exists("weights/1/unet.safetensors")
    assert tables.version(root, "creatives") == 1, "a night that was planned before it can still publish"
    with pytest.raises(ConfigError, match="past the retention"):
        rollback(root, "creatives", 0)
    again = vacuum(root, NONE, force=True)
    assert (again.objects, again.table_files, again.staged_parts, again.listed_in) == (0, 0, 0, None)


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
    assert (done.objects, done.table_files) == (0, 0)
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
    done, names = swept(root, WEEK)
    assert (done.table_files, names[1:]) == (1, [gone])
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
    assert (done.objects, done.table_files) == (0, 0)
    rollback(root, "creatives", 0)
    assert live(root) == {"a"}


def test_what_a_running_job_has_just_stored_stays(root):
    publish(root, ["a"])
    orphan = root.put(b"a week old, named by nothing", "webp")
    age(root, 8, "objects")
    young = root.put(b"painted a moment ago", "webp")
    assert root.put(b"a week old, named by nothing", "webp") == orphan, "painted again by the night that runs now"
    assert vacuum(root, WEEK).objects == 0
    assert root.exists(young)
    age(root, 8, "objects")
    assert swept(root, WEEK)[1] == sorted([orphan, young])
    assert live(root) == {"a"}


def test_parts_of_a_run_that_was_given_up_go_and_those_of_this_week_stay(root):
    publish(root, ["a"])
    given_up, resumed = stage(root, "given-up", "x"), stage(root, "killed", "y")
    root.write("runs/cut/staged/creatives-x/z.parquet", b"PAR1 cut short")
    age(root, 8, "objects", "runs/given-up")
    age(root, 6, "runs/killed")
    _, names = swept(root, WEEK)
    assert names == ["runs/given-up/staged/creatives-x/x.parquet", given_up]
    assert vacuum(root, NONE, force=True).staged_parts == 0, "an unfinished run can be resumed for a week"
    assert root.exists(resumed)


def test_photos_and_masks_of_samples_are_named(stocked):
    sample = tables.read(stocked, "samples").to_pylist()[0]
    age(stocked, 30, "objects")
    done = vacuum(stocked, WEEK)
    assert (done.objects, done.objects_kept) == (0, 2)
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


def test_a_night_that_runs_is_said_and_loses_nothing(root, monkeypatch):
    publish(root, ["a"])
    orphan = root.put(b"a week old, named by nothing", "webp")
    age(root, 8, "objects")
    with NightLock(root, "tonight"):
        young = root.put(b"painted a moment ago", "webp")
        done, names = swept(root, WEEK)
        assert (names, done.night) == ([orphan], "tonight")
        with pytest.raises(ConfigError, match="night tonight runs below"):
            vacuum(root, NONE, force=True)
    assert root.exists(young)
    done, names = swept(root, NONE, force=True)
    assert (names, done.night) == ([young], None)


def test_a_compaction_keeps_what_a_rollback_needs_and_then_lets_it_go(root):
    for i in range(20):
        publish(root, [f"c{i}"])
    age(root, 30, "objects", "tables/creatives")
    maintain(MaintainConfig(root_uri=root.uri, run_id="m"))
    assert vacuum(root, WEEK).table_files == 0
    assert vacuum(root, NONE, force=True).table_files == 20
    assert live(root) == {f"c{i}" for i in range(20)}


def random_names(count: int, seed: int) -> list[str]:
    made = [hashlib.sha256(f"{seed} {i}".encode()).hexdigest() for i in range(count)]
    return [f"objects/{sha[:2]}/{sha}.webp" for sha in made]


def test_names_beyond_memory_are_the_same_set(tmp_path, monkeypatch):
    """Spilled often and with doubles taken out on the disk, every name is found and no other."""
    monkeypatch.setattr("adbooster.storage.vacuum.SPILL_KEYS", 7)
    inside, outside = random_names(3000, 1), random_names(3000, 2)
    names = Names(str(tmp_path))
    for start in range(0, 3000, 50):
        some = inside[start : start + 50]
        names.add(pa.array([*some, *some, None, "https://shop/x.png", inside[0], "objects/aa/1.webp"]))
    for folder in {name[:10] for name in inside + outside}:
        here = [name for name in inside + outside if name.startswith(folder)]
        found = np.isin(keys(pa.array(here)), names.of(folder))
        assert [name for name, there in zip(here, found, strict=True) if there] == [n for n in here if n in set(inside)]
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert size < 3 * 3000 * 8


def test_many_objects_are_counted_and_the_first_are_named(root):
    publish(root, ["a"])
    orphans = [root.put(f"orphan {i}".encode(), "webp") for i in range(FIRST + 30)]
    done, names = swept(root, NONE, force=True)
    assert (done.objects, done.first, names) == (FIRST + 30, sorted(orphans)[:FIRST], sorted(orphans))
    assert root.read(done.listed_in).decode().splitlines() == sorted(orphans)


def test_progress_is_said_now_and_then(root, monkeypatch):
    publish(root, ["a"])
    monkeypatch.setattr("adbooster.storage.vacuum.EVERY_S", 0.0)
    said: list[str] = []
    vacuum(root, WEEK, progress=said.append)
    assert said == ["the names in 1 of 1 files are read", "1 of 1 folders: 0 objects are removed, 1 stay"]
