"""Tables that age well: small files merged, the log short and read from a checkpoint; no row changes.

A commit of a compaction names the files that replace others; those stay until a vacuum, so whoever reads an older version
reads on. A night that planned on the version before could not publish, so all of this runs under the night's lock.
"""

import logging
import re
import time
from contextlib import nullcontext

from deltalake import CommitProperties, DeltaTable
from pydantic import BaseModel, Field

from adbooster.contracts.settings import JobConfig
from adbooster.storage import buckets, lock, tables
from adbooster.storage.lock import NightLock
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)
_RETENTION = "delta.logRetentionDuration"
_DELTAS_OWN = "interval 30 days"  # where a table does not say otherwise
_TASKS = 2  # files that a compaction writes at one time
COMMITS_A_CHECKPOINT = 10  # whoever opens a table reads that many commits at most beside the checkpoint


class MaintainConfig(JobConfig):
    """Settings of the night's last step, which keeps tables quick to open and to read."""

    time_s: float = Field(default=900, ge=0)
    """No table is begun after so many seconds; the next night goes on with it. 0: tables are left as they are."""
    history_days: float | None = Field(default=30, ge=1)
    """For so long versions stay in a table's log, which rollback, audit and vacuum read; as long as the `--older-than` of
    `adbooster vacuum`, or longer. null: as the tables have it."""
    small_files: int = Field(default=16, ge=2)
    """A table's small files are merged from so many on: fewer cost a reader less than the merging does."""
    file_mb: int = Field(default=128, ge=1)
    """Size that files are merged to, in MB; small is less than half of it."""
    memory_gib: float = Field(default=1, gt=0)
    """Memory that a compaction may use before it goes on on the disk."""


class Maintained(BaseModel):
    """What was done for one table."""

    files: int
    """of the live version, before"""
    files_after: int
    checkpoint: bool = False
    log_removed: int = 0
    """files of the log that no version within `history_days` needs"""
    seconds: float = Field(default=0, ge=0)


class MaintainReport(BaseModel):
    """What was done for the tables."""

    job: str = "maintain"
    run_id: str
    tables: dict[str, Maintained] = {}
    errors: dict[str, str] = {}
    """by table: it is as it was, and the next night tries again"""
    left: list[str] = []
    """tables for which there was no time"""
    compacted: int = 0
    """tables whose small files were merged"""
    seconds: float = Field(default=0, ge=0)


def maintain(config: MaintainConfig) -> MaintainReport:
    """Merge small files, make checkpoints and shorten logs, a table at a time, under the night's lock or one of its own.

    The names of finished runs are kept too (tables.remember_finished).

    An error of a table is logged and in the report.
    raises  LockHeld if a night runs that this process is no part of
    """
    root, started = Root(config.root_uri), time.monotonic()
    report = MaintainReport(run_id=config.run_id)
    with nullcontext() if lock.held(root) else NightLock(root, config.run_id):
        for name in tables.TABLES:
            begun = time.monotonic()
            if begun - started >= config.time_s:
                report.left.append(name)
                continue
            try:
                done = _table(root, name, config)
            except Exception as e:  # of any kind: nothing depends on a table being maintained tonight
                log.error("tables/%s could not be maintained and is as it was: %s", name, e)
                report.errors[name] = f"{type(e).__name__}: {e}"
                continue
            if done:
                report.tables[name] = done.model_copy(update={"seconds": round(time.monotonic() - begun, 1)})
        try:
            tables.remember_finished(root)
        except OSError as e:
            log.error("the names of finished runs could not be kept; they are asked for one by one: %s", e)
    report.compacted = sum(done.files_after < done.files for done in report.tables.values())
    return report.model_copy(update={"seconds": round(time.monotonic() - started, 1)})


def _table(root: Root, name: str, config: MaintainConfig) -> Maintained | None:
    """What was done for one table; None if there is no such table."""
    table = tables.open_table(root, name)
    if table is None:
        return None
    folder = f"tables/{name}/_delta_log"
    before = set(root.files(folder))
    _set_retention(root, name, table, config.history_days)
    done = Maintained(files=len(table.file_uris()), files_after=len(table.file_uris()))
    if _worth_compacting(table, config):
        tables.upkeep(root, name, lambda t, commit: _compact(t, commit, config))
    table = tables.open_table(root, name)
    assert table is not None
    done.files_after = len(table.file_uris())
    if table.version() - _last_checkpoint(before) >= COMMITS_A_CHECKPOINT:
        table.create_checkpoint()
        table.cleanup_metadata()
        done.checkpoint = True
    done.log_removed = len(before - set(root.files(folder)))  # a commit removes what is past the retention too
    return done


def _set_retention(root: Root, name: str, table: DeltaTable, days: float | None) -> None:
    """By a commit of its own, where the table has another one."""
    kept = table.metadata().configuration.get(_RETENTION, _DELTAS_OWN)
    wanted = {_RETENTION: kept if days is None else _interval(days)}
    if wanted[_RETENTION] != kept:
        tables.upkeep(root, name, lambda t, commit: t.alter.set_table_properties(wanted, commit_properties=commit))


def _worth_compacting(table: DeltaTable, config: MaintainConfig) -> bool:
    """Whether many small files are there; those that hold chosen buckets are the size that they should have."""
    if buckets.divided(table):
        return False
    sizes = table.get_add_actions(flatten=True).column("size_bytes").to_pylist()
    return sum(size < config.file_mb * 1e6 / 2 for size in sizes) >= config.small_files


def _compact(table: DeltaTable, commit: CommitProperties, config: MaintainConfig) -> None:
    table.optimize.compact(
        target_size=int(config.file_mb * 1e6),
        max_concurrent_tasks=_TASKS,
        max_spill_size=int(config.memory_gib * 2**30),
        commit_properties=commit,
    )


def _interval(days: float) -> str:
    return f"interval {days:g} days" if days == int(days) else f"interval {max(1, round(days * 24))} hours"


def _last_checkpoint(log_files: set[str]) -> int:
    """The version of the newest checkpoint; -1 if there is none."""
    found = (re.match(r"(\d{20})\.checkpoint\.", name) for name in log_files)
    return max((int(match[1]) for match in found if match), default=-1)
