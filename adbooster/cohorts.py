"""Cohorts: groups of users, each with what they look for (query) and their situation (context)."""

import logging
import time
from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pap
import yaml
from fsspec.core import url_to_fs
from pydantic import BaseModel, Field, ValidationError

from adbooster import schema, tables
from adbooster.errors import ConfigError
from adbooster.objects import Root
from adbooster.prompts import clean
from adbooster.recipe import digest
from adbooster.settings import Config, JobConfig, Uri

log = logging.getLogger(__name__)


class CohortsConfig(JobConfig):
    """Settings of `jobs.cohorts`."""

    cohorts_uri: Uri
    """A file of cohorts: YAML (a list) or Parquet, with id, query, context and optionally family and size."""


class Cohort(Config):
    """One entry of a cohort file."""

    id: str = Field(pattern=r"^[A-Za-z0-9._-]{1,100}$")
    """Its name, the same from night to night."""
    query: str = Field(min_length=1, max_length=300)
    """What these users look for."""
    context: str = Field("", max_length=300)
    """Season, event, sport..."""
    family: str = Field("", max_length=60)
    """A heading for reports."""
    size: int = Field(0, ge=0)
    """How many users; 0 is not known."""


class CohortsReport(BaseModel):
    """What `jobs.cohorts` did."""

    job: str = "cohorts"
    run_id: str
    cohorts: int
    new_or_changed: int
    removed: int
    families: dict[str, int]
    cohorts_version: int | None
    seconds: float


def cohorts(config: CohortsConfig) -> CohortsReport:
    """Bring tables/cohorts up to date with a file of cohorts; a file without a change commits nothing."""
    started = time.monotonic()
    root = Root(config.root_uri)
    wanted = read_cohorts(config.cohorts_uri)
    base = tables.version(root, "cohorts")
    live = tables.read(root, "cohorts")
    changed = wanted.filter(pc.invert(pc.is_in(wanted["version"], live["version"])))
    gone = live.filter(pc.invert(pc.is_in(live["cohort_id"], wanted["cohort_id"])))["cohort_id"].to_pylist()
    now = base
    if not config.dry_run and (changed.num_rows or gone):
        now = tables.merge(root, "cohorts", changed, "cohort_id", base, {"run_id": config.run_id}, delete=gone)
    return CohortsReport(
        run_id=config.run_id,
        cohorts=wanted.num_rows,
        new_or_changed=changed.num_rows,
        removed=len(gone),
        families=dict(Counter(wanted["family"].to_pylist())),
        cohorts_version=now,
        seconds=round(time.monotonic() - started, 1),
    )


def check(config: CohortsConfig) -> None:
    """raises ConfigError if the cohort file or the root cannot be used"""
    read_cohorts(config.cohorts_uri)
    Root(config.root_uri).check_writable()


def read_cohorts(uri: str) -> pa.Table:
    """A cohort file as rows of schema.COHORTS; `version` is a hash of the cohort's texts.

    raises ConfigError for a file that is missing, empty or not a list of cohorts, and for an id that stands twice
    """
    fs, path = url_to_fs(uri)
    if not fs.exists(path):
        raise ConfigError(f"there is no cohort file at {uri}")
    with fs.open(path) as f:
        entries = pap.read_table(f).to_pylist() if path.endswith(".parquet") else _yaml(f.read(), uri)
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{uri} should be a list of cohorts and holds none")
    try:
        found = [Cohort.model_validate(entry) for entry in entries]
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "an entry"
        raise ConfigError(f"{uri}: {where} {str(first.get('input'))[:80]!r}: {first['msg']}") from e
    twice = [name for name, n in Counter(c.id for c in found).items() if n > 1]
    if twice:
        raise ConfigError(f"{uri}: the cohort id {twice[0]!r} stands there more than once")
    return pa.Table.from_pylist([_row(c) for c in found], schema.COHORTS)


def _yaml(content: bytes, uri: str):
    try:
        return yaml.safe_load(content)
    except yaml.YAMLError as e:
        raise ConfigError(f"{uri} is not YAML: {e}") from e


def _row(cohort: Cohort) -> dict:
    query, context = clean(cohort.query), clean(cohort.context)
    return {
        "cohort_id": cohort.id,
        "family": clean(cohort.family),
        "query": query,
        "context": context,
        "interests": [t for t in (query, context) if t],
        "size": cohort.size,
        "version": digest(cohort.id, query, context, cohort.family, str(cohort.size))[:16],
    }
