"""The base of every configuration: frozen, strict, and documented by the line under each field."""

import subprocess
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _absolute(uri: str) -> str:
    return uri if "://" in uri or not uri else str(Path(uri).absolute())


Uri = Annotated[str, AfterValidator(_absolute)]
"""A local path or `scheme://...`; paths are made absolute where they are read, for workers run in other folders."""


class Config(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class JobConfig(Config):
    """What every job is told."""

    root_uri: Uri
    """Where tables and objects live: a local folder or s3://bucket/prefix."""
    run_id: str = Field("", pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,99})?$")
    """Name of this run (letters, digits, dots, dashes, underscores); empty: made from date and time."""
    dry_run: bool = False
    """Print the plan and stop; nothing is written."""


@cache
def code_commit() -> str | None:
    """The git commit of this code, where it runs from a checkout."""
    command = ["git", "rev-parse", "HEAD"]
    found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None
