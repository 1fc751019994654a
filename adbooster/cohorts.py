"""Cohorts: groups of users, each with what they look for (query) and their situation (context)."""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field

from adbooster import groups, tables
from adbooster.clustering import Clustering
from adbooster.cohort_file import read_cohorts
from adbooster.errors import ConfigError
from adbooster.interests import InterestLog, Interests
from adbooster.objects import Root, content_hash, local_copy
from adbooster.pools import Pool
from adbooster.prompts import interest
from adbooster.settings import JobConfig, Uri

log = logging.getLogger(__name__)


class CohortsConfig(JobConfig):
    """Settings of `jobs.cohorts`: a cohort file or an interest log."""

    cohorts_uri: Uri = ""
    """A file of cohorts: YAML (a list) or Parquet, with id, query, context and optionally family, size and negative."""
    interests_uri: Uri = ""
    """Instead: what users look for, Parquet, CSV or JSONL: a file, a folder or a pattern with *. Needs text_model."""
    interests: Interests = Interests()
    """How the log is read."""
    text_model: Uri = ""
    """The CLIP whose text tower places the texts of the log (a folder that open_clip saved); generate's rank_model."""
    device: str = Field("cuda", pattern="^(cuda|cpu)$")
    """Where the text tower runs; never chosen by what is there."""
    embed: Pool = Pool(batch=512)
    """Actors that embed the log's distinct texts."""
    clustering: Clustering = Clustering()
    """How users become cohorts."""
    family: str = Field("interests", max_length=60)
    """Heading of the log's cohorts in reports."""


class LogFigures(BaseModel):
    """What became of an interest log."""

    rows: int
    rows_dropped: dict[str, int]
    """By reason."""
    users: int
    texts: int
    """Distinct ones."""
    clusters: int
    """Before small ones were merged."""
    merged: int
    """Clusters that were too small, or had no text that enough users share."""
    kept: int
    """Cohorts that are last night's."""
    members_version: int | None = None


class CohortsReport(BaseModel):
    """What `jobs.cohorts` did."""

    job: str = "cohorts"
    run_id: str
    cohorts_before: int
    cohorts: int
    new_or_changed: int
    removed: int
    families: dict[str, int]
    smallest: int
    """Users of the smallest cohort."""
    largest: int
    """Users of the largest cohort."""
    log: LogFigures | None
    cohorts_version: int | None
    seconds: float


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
        wanted, figures = read_cohorts(config.cohorts_uri), None
        now, changed, gone = _commit(root, config, wanted, live, base)
        if not config.dry_run and tables.read(root, "members", ["cohort_id"]).num_rows:
            _replace_members(root, iter(()), {"run_id": config.run_id, "cohorts_version": str(now)})
    else:
        with _grouped(config, live) as (found, grouped):
            wanted, figures = grouped.cohorts, _figures(found, grouped)
            now, changed, gone = _commit(root, config, wanted, live, base)
            if not config.dry_run:
                figures.members_version = _write_members(root, config, found, grouped, now)
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


def check(config: CohortsConfig) -> None:
    """raises ConfigError if the cohort file or the log, its salt, the text model or the root cannot be used"""
    one_source(config)
    if config.cohorts_uri:
        read_cohorts(config.cohorts_uri)
    else:
        if not config.text_model:
            raise ConfigError("an interest log needs text_model, a CLIP folder that open_clip saved")
        if not (local_copy(config.text_model) / "open_clip_config.json").is_file():
            raise ConfigError(f"the CLIP model {config.text_model} has no open_clip_config.json")
        with InterestLog(config.interests_uri, config.interests) as found:
            found.check(config.clustering.k)
    Root(config.root_uri).check_writable()


def needs_ray(config: CohortsConfig) -> bool:
    """A cohort file is read here."""
    return bool(config.interests_uri)


def one_source(config: CohortsConfig) -> None:
    """raises ConfigError unless there is a cohort file or a log, and not both"""
    if bool(config.cohorts_uri) == bool(config.interests_uri):
        both = "both are" if config.cohorts_uri else "neither is"
        raise ConfigError(f"--cohorts-uri (a cohort file) or --interests-uri (a log) is required; {both} given")


@contextmanager
def _grouped(config: CohortsConfig, live: pa.Table) -> Iterator[tuple[InterestLog, groups.Grouped]]:
    """The log of tonight and its cohorts; the log's copy on this disk is gone afterwards."""
    with InterestLog(config.interests_uri, config.interests) as found:
        found.load()
        log.info("%d rows, %d users, %d distinct texts", found.rows, found.users, len(found.texts))
        if config.clustering.k > len(found.texts):
            found._enough(len(found.texts), config.clustering.k)
        texts = [interest(*pair) for pair in found.texts]
        old = [interest(r["query"], r["context"]) for r in live.select(["query", "context"]).to_pylist()]
        distinct = list(dict.fromkeys(texts + old))
        vectors = groups.embed(distinct, config.text_model, config.device, config.embed)
        row = {text: i for i, text in enumerate(distinct)}
        model = content_hash(local_copy(config.text_model))
        vectors = vectors[[row[t] for t in texts + old]]
        yield found, groups.group(found, config.clustering, vectors, live, model, config.family)


def _commit(root: Root, config: CohortsConfig, wanted: pa.Table, live: pa.Table, base: int | None):
    """(version, rows new or changed, rows gone) of tables/cohorts."""
    changed = wanted.filter(pc.invert(pc.is_in(wanted["version"], live["version"])))
    gone = live.filter(pc.invert(pc.is_in(live["cohort_id"], wanted["cohort_id"])))["cohort_id"].to_pylist()
    now = base
    if not config.dry_run and (changed.num_rows or gone):
        now = tables.merge(root, "cohorts", changed, "cohort_id", base, {"run_id": config.run_id}, delete=gone)
    return now, changed.num_rows, len(gone)


def _figures(found: InterestLog, grouped: groups.Grouped) -> LogFigures:
    return LogFigures(
        rows=found.rows,
        rows_dropped=found.dropped,
        users=found.users,
        texts=len(found.texts),
        clusters=grouped.clusters,
        merged=grouped.merged,
        kept=len(grouped.kept_ids),
    )


def _write_members(
    root: Root, config: CohortsConfig, found: InterestLog, grouped: groups.Grouped, cohorts_version: int | None
) -> int | None:
    """The version of tables/members, new if anyone has moved or the cohorts are other ones."""
    content = groups.fingerprint(found, grouped)
    said = {"content": content, "cohorts_version": str(cohorts_version)}
    last = tables.metadata(root, "members")
    if all(last.get(name) == value for name, value in said.items()):
        return tables.version(root, "members")
    return _replace_members(root, groups.members(found, grouped), said | {"run_id": config.run_id})


def _replace_members(root: Root, rows: Iterator[pa.RecordBatch], said: dict[str, str]) -> int:
    return tables.replace(root, "members", rows, tables.version(root, "members"), said)
