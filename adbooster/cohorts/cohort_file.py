"""Cohorts that a person wrote: a YAML or Parquet file."""

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pap
import yaml
from fsspec.core import url_to_fs
from pydantic import Field, ValidationError

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.contracts.naming import digest
from adbooster.contracts.settings import Config
from adbooster.contracts.text import clean


class Cohort(Config):
    """One entry of a cohort file."""

    id: str = Field(pattern=r"^[A-Za-z0-9._-]{1,100}$")
    """Its name, the same from night to night."""
    query: str = Field(min_length=1, max_length=300)
    """What these users look for."""
    context: str = Field(default="", max_length=300)
    """Season, event, sport..."""
    family: str = Field(default="", max_length=60)
    """A heading for reports."""
    size: int = Field(default=0, ge=0)
    """How many users; 0 is not known."""
    negative: str = Field(default="", max_length=300)
    """What must not be painted for these users, besides what holds for all."""


def read_cohorts(uri: str) -> pa.Table:
    """A cohort file as rows of schema.COHORTS; `version` is a hash of the cohort's texts.

    raises ConfigError for a file that is missing, empty or not a list of cohorts, and for a repeated id
    """
    fs, path = url_to_fs(uri)
    if not fs.exists(path):
        raise ConfigError(f"there is no cohort file at {uri}")
    with fs.open(path) as f:
        entries = pap.read_table(f).to_pylist() if path.endswith(".parquet") else _yaml(f.read(), uri)
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{uri} should be a list of cohorts and holds none")
    try:
        cohorts = [Cohort.model_validate(entry) for entry in entries]
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "an entry"
        raise ConfigError(f"{uri}: {where} {str(first.get('input'))[:80]!r}: {first['msg']}") from e
    repeated = [name for name, n in Counter(c.id for c in cohorts).items() if n > 1]
    if repeated:
        raise ConfigError(f"{uri}: the cohort id {repeated[0]!r} appears more than once")
    return pa.Table.from_pylist([_row(c) for c in cohorts], schema.COHORTS)


def _yaml(content: bytes, uri: str) -> Any:
    try:
        return yaml.safe_load(content)
    except yaml.YAMLError as e:
        raise ConfigError(f"{uri} is not YAML: {e}") from e


def _row(cohort: Cohort) -> dict:
    query, context, negative = clean(cohort.query), clean(cohort.context), clean(cohort.negative)
    return {
        "cohort_id": cohort.id,
        "family": clean(cohort.family),
        "query": query,
        "context": context,
        "interests": [t for t in (query, context) if t],
        "shares": [],
        "size": cohort.size,
        "negative": negative,
        "centroid": [],
        "text_model": "",
        "version": digest(cohort.id, query, context, cohort.family, str(cohort.size), negative)[:16],
    }
