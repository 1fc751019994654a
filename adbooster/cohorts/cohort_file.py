"""Cohorts that a person wrote: a YAML or Parquet file."""

from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pap
from pydantic import Field, ValidationError

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.contracts.naming import digest
from adbooster.contracts.settings import Config
from adbooster.contracts.text import clean, first_error
from adbooster.contracts.yaml_text import parse_yaml
from adbooster.storage.inputs import read_input

MAX_BYTES = 64 << 20  # some 300,000 cohorts


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


def read_cohorts(uri: str, signing_key_env: str = "") -> pa.Table:
    """A cohort file as rows of schema.COHORTS; `version` is a hash of the cohort's texts.

    signing_key_env  environment variable with the key of its signature; empty: none is asked for
    raises           ConfigError for a file that is missing, too large, not signed, empty or not a list of cohorts, and for
                     a repeated id
    """
    content = read_input(uri, "cohort file", MAX_BYTES, signing_key_env).content
    entries = _parquet(content, uri) if uri.endswith(".parquet") else parse_yaml(content, uri)
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{uri} should be a list of cohorts and holds none")
    try:
        cohorts = [Cohort.model_validate(entry) for entry in entries]
    except ValidationError as e:
        raise ConfigError(f"{uri}: {first_error(e, 'an entry')}") from e
    repeated = [name for name, n in Counter(c.id for c in cohorts).items() if n > 1]
    if repeated:
        raise ConfigError(f"{uri}: the cohort id {repeated[0]!r} appears more than once")
    return pa.Table.from_pylist([_row(c) for c in cohorts], schema.COHORTS)


def _parquet(content: bytes, uri: str) -> list[dict]:
    try:
        return pap.read_table(pa.BufferReader(content)).to_pylist()
    except (pa.ArrowException, ValueError) as e:
        raise ConfigError(f"{uri} is not Parquet that can be read: {str(e).splitlines()[0][:300]}") from e


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
