"""Tables that age: merged files and short logs change no row, no reader and no rollback."""

import os
import random
import threading
import time

import duckdb
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError, LockHeld, PublishConflict
from adbooster.contracts.naming import BUCKETS, bucket
from adbooster.night import state
from adbooster.storage import tables
from adbooster.storage.buckets import Change, Part
from adbooster.storage.lock import NightLock
from adbooster.storage.maintenance import MaintainConfig, MaintainReport, maintain
from adbooster.storage.objects import Root
from adbooster.storage.rollback import rollback
from tests.conftest import row
from tests.storage.test_rollback import live, publish
from tests.storage.test_tables import rows as cohorts
from tests.storage.test_vacuum import age, commit_of


def upkeep(root: Root, **settings) -> MaintainReport:
    return maintain(MaintainConfig(root_uri=root.uri, run_id="upkeep", **settings))


def nights(root: Root, count: int, table: str = "creatives") -> None:
    """So many nights that add a creative each: a data file each."""
    for i in range(count):
        publish(root, [f"c{i}"])


def files(root: Root, table: str = "creatives") -> int:
    return len(tables.open_table(root, table).file_uris())


def ages_well(root: Root, count: int = 20) -> None:
    nights(root, count)
    names, run = live(root), tables.metadata(root, "creatives")["run_id"]
    assert files(root) == 20
    report = upkeep(root)
    assert (report.compacted, report.errors, report.left) == (1, {}, [])
    done = report.tables["creatives"]
    assert (done.files, done.files_after, done.checkpoint, files(root)) == (20, 1, True, 1)
    assert any(".checkpoint." in name for name in root.files("tables/creatives/_delta_log"))
    assert live(root) == names
    assert tables.version(root, "creatives") == 20
    assert tables.metadata(root, "creatives")["run_id"] == run == "night 18"
    assert tables.history(root, "creatives")[0].operation == "OPTIMIZE"
    told = state.status(root)
    assert (told.live_version, told.live_run_id) == (19, "night 18"), "status names the night that published"
    again = upkeep(root)
    assert (again.compacted, again.tables["creatives"].checkpoint) == (0, False)
    assert tables.version(root, "creatives") == 20
    with pytest.raises(ConfigError, match="live already"):
        rollback(root, "creatives", 19)
    rollback(root, "creatives", 10)
    assert live(root) == {f"c{i}" for i in range(11)}
    assert publish(root, ["after"]) == 22


def test_a_table_of_many_nights_is_merged_and_all_that_reads_it_goes_on(root):
    ages_well(root)


def test_the_same_on_s3(s3_root):
    ages_well(Root(s3_root))


def test_a_second_compaction_still_names_the_night(root):
    nights(root, 3)
    upkeep(root, small_files=3)
    upkeep(root, history_days=60)
    assert [v.operation for v in tables.history(root, "creatives")[:2]] == ["SET TBLPROPERTIES", "OPTIMIZE"]
    assert tables.metadata(root, "creatives")["run_id"] == "night 1"
    assert tables.published(root, "creatives").version == 2
    assert "60 days" in tables.open_table(root, "creatives").metadata().configuration["delta.logRetentionDuration"]
    upkeep(root, history_days=60)
    assert tables.version(root, "creatives") == 4


def test_few_files_and_files_of_chosen_buckets_stay(root):
    nights(root, 15)
    assert upkeep(root).compacted == 0
    parts = [Part(first, first + 2048) for first in range(0, BUCKETS, 2048)]
    products = {
        part: next(f"p{i}" for i in range(10**6) if part.first <= bucket(f"p{i}") < part.after) for part in parts
    }
    base = tables.version(root, "samples")
    with Change(root, "samples", base, "sample_id", parts) as change:
        for part, product in products.items():
            made = [row(schema.SAMPLES, sample_id=product, product_id=product)]
            change.replace(part, pa.Table.from_pylist(made, schema.SAMPLES))
        change.commit({"run_id": "n"})
    assert files(root, "samples") == 32
    done = upkeep(root)
    assert (done.compacted, files(root, "samples")) == (0, 32)


def test_a_reader_of_the_version_before_reads_on(root):
    """Whoever has opened a table knows its files: compaction takes none of them away, a vacuum only after the retention."""
    nights(root, 20)
    names = {f"c{i}" for i in range(20)}
    opened = DeltaTable(f"{root.uri}/tables/creatives")
    listed, dataset = opened.file_uris(), opened.to_pyarrow_dataset()
    scan = dataset.scanner(columns=["creative_id"], batch_size=1).to_batches()
    found = [next(scan)]
    assert upkeep(root).compacted == 1
    found += list(scan)
    assert {name for part in found for name in part["creative_id"].to_pylist()} == names
    assert set(opened.to_pyarrow_table()["creative_id"].to_pylist()) == names
    assert set(dataset.to_table()["creative_id"].to_pylist()) == names
    asked = duckdb.connect().execute("select creative_id from read_parquet(?, union_by_name=true)", [listed])
    assert {name for (name,) in asked.fetchall()} == names
    assert live(root, version=4) == {f"c{i}" for i in range(5)}


def test_every_read_beside_nights_and_compactions_is_one_whole_version(root):
    """Each night replaces every row: a read that mixed two versions would show two nights, or not ten rows."""

    def night(i: int) -> pa.Table:
        made = [row(schema.CREATIVES, creative_id=f"c{n}", run_id=f"n{i}") for n in range(10)]
        return pa.Table.from_pylist(made, schema.CREATIVES)

    tables.merge(root, "creatives", night(0), "creative_id", None, {})
    over, seen, wrong = threading.Event(), set(), []

    def check(names: list[str]) -> None:
        seen.update(names)
        if len(names) != 10 or len(set(names)) != 1:
            wrong.append(names)

    def read() -> None:
        while not over.is_set():
            check(tables.read(root, "creatives", ["run_id"])["run_id"].to_pylist())
            check([n for part in tables.batches(root, "creatives", ["run_id"]) for n in part["run_id"].to_pylist()])

    def ask() -> None:
        connection = duckdb.connect()
        while not over.is_set():
            listed = DeltaTable(f"{root.uri}/tables/creatives").file_uris()
            check([n for (n,) in connection.execute("select run_id from read_parquet(?)", [listed]).fetchall()])

    readers = [threading.Thread(target=work) for work in (read, ask)]
    for reader in readers:
        reader.start()
    for i in range(1, 15):
        tables.merge(root, "creatives", night(i), "creative_id", tables.version(root, "creatives"), {})
        upkeep(root, small_files=2)
    over.set()
    for reader in readers:
        reader.join()
    assert not wrong
    assert len(seen) > 3


@pytest.mark.parametrize("seed", range(4))
def test_a_short_log_keeps_every_version_within_the_retention(root, seed):
    """Nights of 60 days, with checkpoints wherever they fell; whatever was live in the last 30 days can be live again."""
    chance = random.Random(seed)
    nights(root, 20)
    days = sorted((chance.uniform(0, 60) for _ in range(20)), reverse=True)
    for version in chance.sample(range(9), 4):
        DeltaTable(f"{root.uri}/tables/creatives", version=version).create_checkpoint()
    for version, days_ago in enumerate(days):
        commit_of(root, version, days_ago)
    folder = f"{root.uri}/tables/creatives/_delta_log"
    for name in os.listdir(folder):
        if name[0] != "_":
            at = time.time() - days[int(name[:20])] * 86400
            os.utime(f"{folder}/{name}", (at, at))
    done = upkeep(root).tables["creatives"]
    assert done.checkpoint
    reached = {v for v in range(20) if v == 19 or days[v + 1] <= 30}
    for version in reached:
        assert live(root, version=version) == {f"c{i}" for i in range(version + 1)}
    rollback(root, "creatives", min(reached))
    assert live(root) == {f"c{i}" for i in range(min(reached) + 1)}


def test_what_is_past_the_retention_leaves_the_log(root):
    nights(root, 12)
    upkeep(root, small_files=99)
    for i in range(12, 24):
        publish(root, [f"c{i}"])
    age(root, 40, "tables/creatives/_delta_log")
    for i in range(24, 36):
        publish(root, [f"c{i}"])
    upkeep(root, small_files=99)
    assert min(v.version for v in tables.history(root, "creatives")) == 11, "from the checkpoint of the first upkeep on"
    assert live(root) == {f"c{i}" for i in range(36)}


def test_only_under_the_lock(root):
    """A night that planned before a compaction could not publish, so none comes between; and one that failed commits nothing."""
    nights(root, 20)
    with NightLock(root, "night"):
        held = os.environ.pop("ADBOOSTER_NIGHT_LOCK")
        with pytest.raises(LockHeld, match="night night has held"):
            upkeep(root)
        assert tables.version(root, "creatives") == 19
        os.environ["ADBOOSTER_NIGHT_LOCK"] = held
        assert upkeep(root).compacted == 1
    assert upkeep(root).compacted == 0


def test_a_commit_of_a_job_without_the_lock_that_comes_between_loses_nothing(root):
    nights(root, 3)

    def late(table: DeltaTable, commit) -> None:
        publish(root, ["meanwhile"])
        table.optimize.compact(commit_properties=commit)

    tables.upkeep(root, "creatives", late)
    assert live(root) == {"c0", "c1", "c2", "meanwhile"}
    assert tables.metadata(root, "creatives")["run_id"] == "night 2"
    assert tables.published(root, "creatives").version == 3

    def too_late(table: DeltaTable, commit) -> None:
        publish(root, [], delete=["c0"])
        table.optimize.compact(target_size=10**9, commit_properties=commit)

    publish(root, ["another"])
    with pytest.raises(PublishConflict):
        tables.upkeep(root, "creatives", too_late)
    assert live(root) == {"c1", "c2", "meanwhile", "another"}


def test_what_a_night_said_is_known_when_the_log_does_not_reach_back_to_it(root):
    nights(root, 3)
    upkeep(root, small_files=2)
    table = tables.open_table(root, "creatives")
    table.create_checkpoint()
    age(root, 40, "tables/creatives/_delta_log")
    table.cleanup_metadata()
    assert [v.version for v in tables.history(root, "creatives")] == [3]
    assert tables.metadata(root, "creatives")["run_id"] == "night 1"
    assert tables.published(root, "creatives").run_id == "night 1"


def test_an_error_of_one_table_is_said_and_the_others_are_maintained(root, monkeypatch):
    nights(root, 20)
    tables.merge(root, "cohorts", cohorts(["a"]), "cohort_id", None, {})
    root.write("tables/cohorts/_delta_log/00000000000000000001.json", b"{not json")
    report = upkeep(root)
    assert set(report.errors) == {"cohorts"}
    assert report.tables["creatives"].files_after == 1
    assert upkeep(root, time_s=0).left == list(tables.TABLES)


def test_a_full_disk_leaves_the_table_as_it_was(small_disk):
    root = Root(str(small_disk / "root"))
    for i in range(20):
        many = [row(schema.CREATIVES, creative_id=f"{i}-{n}", prompt=os.urandom(500).hex()) for n in range(30)]
        made = pa.Table.from_pylist(many, schema.CREATIVES)
        tables.merge(root, "creatives", made, "creative_id", tables.version(root, "creatives"), {})
    names = sorted(tables.read(root, "creatives", ["creative_id"])["creative_id"].to_pylist())
    room = os.statvfs(small_disk)
    (small_disk / "fill").write_bytes(bytes(room.f_bavail * room.f_bsize - 200_000))
    report = upkeep(root)
    assert "the disk of" in report.errors["creatives"]
    assert "is full" in report.errors["creatives"]
    assert (tables.version(root, "creatives"), files(root)) == (19, 20)
    assert sorted(tables.read(root, "creatives", ["creative_id"])["creative_id"].to_pylist()) == names
    (small_disk / "fill").unlink()
    assert upkeep(root).compacted == 1
    assert sorted(tables.read(root, "creatives", ["creative_id"])["creative_id"].to_pylist()) == names
