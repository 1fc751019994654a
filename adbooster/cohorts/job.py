"""Cohorts: groups of users, each with what they look for (query) and their situation (context)."""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.compute as pc

from adbooster.cohorts import grouping
from adbooster.cohorts.checks import one_source
from adbooster.cohorts.cohort_file import read_cohorts
from adbooster.cohorts.config import CohortsConfig, CohortsReport, LogFigures
from adbooster.cohorts.interest_log import InterestLog
from adbooster.contracts.text import interest
from adbooster.storage import tables
from adbooster.storage.model_store import content_hash, local_copy
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)


def cohorts(config: CohortsConfig) -> CohortsReport:
    """Bring tables/cohorts, and tables/members for a log, up to date; what has not changed is not committed.

    Cohorts are committed first, members last and with the version of the cohorts that they belong to: after a crash in
    between, members still name the cohorts that last night's creatives were painted for, and the next run repairs it.
    """
    started = time.monotonic()
    one_source(config)
    root = Root(config.root_uri)
    base, live = tables.version(root, "cohorts"), tables.read(root, "cohorts")
    if config.cohorts_uri:
        wanted, figures = read_cohorts(config.cohorts_uri, config.signing_key_env), None
        now, changed, gone = _commit(root, config, wanted, live, base)
        if not config.dry_run and tables.read(root, "members", ["cohort_id"]).num_rows:
            _replace_members(root, iter(()), {"run_id": config.run_id, "cohorts_version": str(now)})
    else:
        with _grouped(config, live) as (interest_log, grouped):
            wanted, figures = grouped.cohorts, _figures(interest_log, grouped)
            now, changed, gone = _commit(root, config, wanted, live, base)
            if not config.dry_run:
                figures.members_version = _write_members(root, config, interest_log, grouped, now)
    sizes = wanted["size"].to_pylist()
    return CohortsReport(
        run_id=config.run_id,
        cohorts_before=live.num_rows,
        cohorts=wanted.num_rows,
        new_or_changed=changed,
        removed=gone,
        families=dict(Counter(wanted["family"].to_pylist())),
        smallest=min(sizes),
        largest=max(sizes),
        log=figures,
        cohorts_version=now,
        seconds=round(time.monotonic() - started, 1),
    )


@contextmanager
def _grouped(config: CohortsConfig, live: pa.Table) -> Iterator[tuple[InterestLog, grouping.Grouped]]:
    """The log of tonight and its cohorts; the log's copy on this disk is gone afterwards."""
    with InterestLog(config.interests_uri, config.interests) as interest_log:
        interest_log.load()
        log.info("%d rows, %d users, %d distinct texts", interest_log.rows, interest_log.users, len(interest_log.texts))
        if config.clustering.k > len(interest_log.texts):
            interest_log._enough(len(interest_log.texts), config.clustering.k)
        texts = [interest(*pair) for pair in interest_log.texts]
        old = [interest(r["query"], r["context"]) for r in live.select(["query", "context"]).to_pylist()]
        distinct = list(dict.fromkeys(texts + old))
        vectors = grouping.embed(distinct, config.text_model, config.device, config.embed)
        row = {text: i for i, text in enumerate(distinct)}
        model = content_hash(local_copy(config.text_model))
        vectors = vectors[[row[t] for t in texts + old]]
        yield interest_log, grouping.group(interest_log, config.clustering, vectors, live, model, config.family)


def _commit(
    root: Root, config: CohortsConfig, wanted: pa.Table, live: pa.Table, base: int | None
) -> tuple[int | None, int, int]:
    """(version, rows new or changed, rows gone) of tables/cohorts."""
    changed = wanted.filter(pc.invert(pc.is_in(wanted["version"], live["version"])))
    gone = live.filter(pc.invert(pc.is_in(live["cohort_id"], wanted["cohort_id"])))["cohort_id"].to_pylist()
    now = base
    if not config.dry_run and (changed.num_rows or gone):
        now = tables.merge(root, "cohorts", changed, "cohort_id", base, {"run_id": config.run_id}, delete=gone)
    return now, changed.num_rows, len(gone)


def _figures(interest_log: InterestLog, grouped: grouping.Grouped) -> LogFigures:
    return LogFigures(
        rows=interest_log.rows,
        rows_dropped=interest_log.dropped,
        users=interest_log.users,
        texts=len(interest_log.texts),
        clusters=grouped.clusters,
        merged=grouped.merged,
        kept=len(grouped.kept_ids),
    )


def _write_members(
    root: Root, config: CohortsConfig, interest_log: InterestLog, grouped: grouping.Grouped, cohorts_version: int | None
) -> int | None:
    """The version of tables/members, new if a user has changed cohort or the cohorts have changed."""
    content = grouping.fingerprint(interest_log, grouped)
    metadata = {"content": content, "cohorts_version": str(cohorts_version)}
    last = tables.metadata(root, "members")
    if all(last.get(name) == value for name, value in metadata.items()):
        return tables.version(root, "members")
    return _replace_members(root, grouping.members(interest_log, grouped), metadata | {"run_id": config.run_id})


def _replace_members(root: Root, rows: Iterator[pa.RecordBatch], metadata: dict[str, str]) -> int:
    return tables.replace(root, "members", rows, tables.version(root, "members"), metadata)
