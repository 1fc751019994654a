"""The base of every configuration: frozen, strict, and documented by the line under each field."""

import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from adbooster.contracts.errors import ConfigError
from adbooster.contracts.naming import catalog_uri, split_catalog


def _absolute(uri: str) -> str:
    return uri if "://" in uri or not uri else str(Path(uri).absolute())


Uri = Annotated[str, AfterValidator(_absolute)]
"""A local path or `scheme://...`; paths are made absolute where they are read, for workers run in other folders."""


SecretName = Annotated[str, Field(pattern=r"^([A-Za-z_][A-Za-z0-9_]*(KEY|SECRET|TOKEN))?$")]
"""Name of an environment variable with a secret; it ends in KEY, SECRET or TOKEN, so that logs and reports hide its value."""


def secret_of(name: str, setting: str) -> str:
    """The value of the environment variable that a setting names.

    raises ConfigError if it is not set
    """
    if not os.environ.get(name):
        raise ConfigError(f"the environment variable {name}, which {setting} names, is not set")
    return os.environ[name]


class Config(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    inherits: ClassVar[dict[str, dict[str, str]]] = {}
    """By another job's section of the same file: settings that are taken from there where they are not given here."""


class JobConfig(Config):
    """Settings that every job has."""

    root_uri: Uri
    """Where tables and objects live: a local folder or s3://bucket/prefix; with `catalog` it becomes the catalog's address."""
    catalog: str = Field(default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,99})?$")
    """Catalog of the root (letters, digits, dots, dashes, underscores): tables, runs and a lock of its own in
    catalogs/<name>/ below it; objects, weights and models are the root's. Empty: the root itself."""
    run_id: str = Field(default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,99})?$")
    """Name of this run (letters, digits, dots, dashes, underscores); empty: made from date and time."""
    dry_run: bool = False
    """Print the plan and stop; nothing is written."""
    signing_key_env: SecretName = ""
    """Environment variable with a key: files from people (marks, targeting, brand rules, cohorts, outcomes) are then refused
    without a signature of it beside them, which `adbooster sign` makes. Empty: signatures are not asked for."""

    @model_validator(mode="before")
    @classmethod
    def _in_catalog(cls, values: Any) -> Any:
        """root_uri as the address of the catalog; settings that are read again stay as they are."""
        if not isinstance(values, dict):
            return values
        root_uri, name = values.get("root_uri"), values.get("catalog")
        if not (isinstance(root_uri, str) and root_uri and isinstance(name, str) and name):
            return values
        return values | {"root_uri": catalog_uri(root_uri, name)}

    @field_validator("catalog")
    @classmethod
    def _of_a_root(cls, name: str, info: ValidationInfo) -> str:
        found = split_catalog(info.data.get("root_uri", ""))
        if name and found and split_catalog(found[0]):
            raise ValueError(f"root_uri {found[0]} is itself a catalog's address; give that of the root above it")
        return name

    @property
    def needs_ray(self) -> bool:
        """Whether the job uses a Ray cluster under these settings."""
        return True


def inherited(config_class: type[Config], sections: dict[str, Any]) -> dict[str, Any]:
    """Settings that a job takes from other jobs' sections of the same file."""
    values = {}
    for section, names in config_class.inherits.items():
        given = sections.get(section)
        if isinstance(given, dict):
            values |= {ours: given[theirs] for ours, theirs in names.items() if theirs in given}
    return values


def completed(config_class: type[Config], own: dict[str, Any], sections: dict[str, Any]) -> dict[str, Any]:
    """A job's own section with what it and the groups that are given in it, at any depth, take from other jobs' sections."""
    values = inherited(config_class, sections) | own
    for name, field in config_class.model_fields.items():
        groups = [k for k in (field.annotation, *get_args(field.annotation)) if isinstance(k, type)]
        for group in groups:
            if issubclass(group, Config) and isinstance(values.get(name), dict):
                values[name] = completed(group, values[name], sections)
    return values


@cache
def code_commit() -> str | None:
    """The git commit of this code: ADBOOSTER_COMMIT, or the commit of the checkout that it runs from."""
    if commit := os.environ.get("ADBOOSTER_COMMIT"):
        return commit
    command = ["git", "rev-parse", "HEAD"]
    git = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return git.stdout.strip() or None


class Pool(Config):
    """How many actors a stage gets, and what each of them holds."""

    actors: int = Field(default=1, ge=1)
    """Processes that run the stage."""
    max_actors: int | None = Field(default=None, ge=1)
    """How many there may be while work waits for them; null: no more than `actors`."""
    cpus: float = Field(default=1, ge=0)
    """Logical CPUs each of them reserves."""
    gpus: float = Field(default=0, ge=0)
    """GPUs each of them reserves; a share below 1 is bookkeeping, not isolation."""
    batch: int = Field(default=16, ge=1)
    """Rows a call."""
    row_timeout_s: float = Field(default=600, gt=0)
    """Seconds that a row may take but for loading models and waiting for hosts; then its process is replaced, it is `timed_out`."""
    max_row_gib: float = Field(default=8, gt=0)
    """Memory in GiB that a row may need on top of the models; above it the row is rejected (`too_large`)."""
    niceness: int = Field(default=0, ge=0, le=19)
    """By how much the processes give way to others of their node."""
