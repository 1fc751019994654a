"""The base of every configuration: frozen, strict, and documented by the line under each field."""

import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _absolute(uri: str) -> str:
    return uri if "://" in uri or not uri else str(Path(uri).absolute())


Uri = Annotated[str, AfterValidator(_absolute)]
"""A local path or `scheme://...`; paths are made absolute where they are read, for workers run in other folders."""


class Config(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    inherits: ClassVar[dict[str, dict[str, str]]] = {}
    """By another job's section of the same file: settings that are taken from there where they are not given here."""


class JobConfig(Config):
    """What every job is told."""

    root_uri: Uri
    """Where tables and objects live: a local folder or s3://bucket/prefix."""
    run_id: str = Field("", pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,99})?$")
    """Name of this run (letters, digits, dots, dashes, underscores); empty: made from date and time."""
    dry_run: bool = False
    """Print the plan and stop; nothing is written."""


def inherited(config_class: type[Config], sections: dict[str, Any]) -> dict[str, Any]:
    """Settings that a job takes from other jobs' sections of the same file."""
    found = {}
    for section, names in config_class.inherits.items():
        there = sections.get(section)
        if isinstance(there, dict):
            found |= {ours: there[theirs] for ours, theirs in names.items() if theirs in there}
    return found


@cache
def code_commit() -> str | None:
    """The git commit of this code: what ADBOOSTER_COMMIT says, or the checkout's that it runs from."""
    if told := os.environ.get("ADBOOSTER_COMMIT"):
        return told
    command = ["git", "rev-parse", "HEAD"]
    found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None
