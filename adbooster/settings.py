"""The base of every configuration: frozen, strict, and documented by the line under each field."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class JobConfig(Config):
    """What every job is told."""

    root_uri: str
    """Where tables and objects live: a local folder or s3://bucket/prefix."""
    run_id: str = ""
    """Name of this run; empty: made from date and time."""
    dry_run: bool = False
    """Print the plan and stop; nothing is written."""
