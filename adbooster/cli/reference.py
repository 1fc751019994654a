"""docs/settings.md and docs/tables.md, written from the settings' models and the Arrow schemas: `make docs`."""

import io
import sys
import tokenize
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pyarrow as pa
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from adbooster.canary.config import CanaryConfig
from adbooster.cohorts.config import CohortsConfig
from adbooster.contracts import schema
from adbooster.deliver.config import DeliverConfig
from adbooster.evaluate.config import EvaluateConfig
from adbooster.finetune.config import FinetuneConfig
from adbooster.generate.config import GenerateConfig
from adbooster.learn.config import LearnConfig
from adbooster.night.config import NightlyConfig
from adbooster.prepare.config import PrepareConfig
from adbooster.storage.maintenance import MaintainConfig
from adbooster.storage.tables import TABLES

JOBS: tuple[type[BaseModel], ...] = (
    *(NightlyConfig, PrepareConfig, CohortsConfig, FinetuneConfig),
    *(CanaryConfig, LearnConfig, GenerateConfig, DeliverConfig, EvaluateConfig, MaintainConfig),
)
GENERATED = "<!-- Written by `make docs` from {}; edit there. -->\n\n"


def settings_page() -> str:
    """Every setting of every job: its type, default and meaning; each group of settings is listed once and linked."""
    groups: dict[str, type[BaseModel]] = {}
    for job in JOBS:
        _collect(job, groups)
    parts = [
        GENERATED.format("the models in `adbooster/*/config.py`"),
        "# Settings\n\nOne section a job in the settings file; as flags `--group.name value`, as environment variables "
        "`ADBOOSTER_GROUP__NAME`. A setting without a default is required.\n",
    ]
    parts += [_section(job, job.__name__.removesuffix("Config").lower()) for job in JOBS]
    parts.append("\n# Groups of settings\n")
    parts += [_section(groups[name], name) for name in sorted(groups)]
    return "\n".join(parts)


def _collect(model: type[BaseModel], groups: dict[str, type[BaseModel]]) -> None:
    for field in model.model_fields.values():
        for group in _models_in(field.annotation):
            assert groups.get(group.__name__, group) is group, f"two groups of settings are called {group.__name__}"
            if group not in JOBS and group.__name__ not in groups:
                groups[group.__name__] = group
                _collect(group, groups)


def _models_in(kind: Any) -> list[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [model for part in get_args(kind) for model in _models_in(part)]


def _section(model: type[BaseModel], title: str) -> str:
    lines = [f"\n## {title}\n", (model.__doc__ or "").strip().split("\n\n")[0], ""]
    lines += ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        cells = (f"`{name}`", _type(field.annotation), _default(field), field.description or "")
        lines.append("| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |")
    return "\n".join(lines)


def _type(kind: Any) -> str:
    if models := _models_in(kind):
        links = [f"[{m.__name__.removesuffix('Config')}](#{_anchor(m)})" for m in models]
        return ("list of " if get_origin(kind) is tuple else "") + " or ".join(links)
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    if get_origin(kind) in (Union, UnionType):
        return " or ".join("null" if part is type(None) else _type(part) for part in get_args(kind))
    if get_origin(kind) in (tuple, list, dict):
        inside = [_type(part) for part in get_args(kind) if part is not Ellipsis]
        return f"{get_origin(kind).__name__} of {', '.join(inside)}"
    if hasattr(kind, "__origin__") and hasattr(kind, "__metadata__"):
        return _type(kind.__origin__)
    return {"str": "text", "int": "integer", "float": "number", "bool": "true or false", "date": "date"}.get(
        kind.__name__, str(kind)
    )


def _anchor(model: type[BaseModel]) -> str:
    name = model.__name__
    return (name.removesuffix("Config") if model in JOBS else name).lower()


def _default(field: FieldInfo) -> str:
    if field.default_factory is None and field.default is PydanticUndefined:
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, BaseModel):
        given = value.model_dump(exclude_defaults=True)
        return f"`{given}`" if given else ""
    return "`null`" if value is None else f"`{value!r}`"


def tables_page() -> str:
    """Every table's columns with their types, and the comment beside each in the schema."""
    comments = _comments()
    parts = [
        GENERATED.format("`adbooster/contracts/schema.py`"),
        "# Tables\n\nDelta tables below `root_uri/tables/`; read them with Spark, Trino, DuckDB, Polars or Athena. "
        "Addresses in columns called `uri`, `..._uri` and `..._uris` are relative to the root.\n",
    ]
    for name, columns in TABLES.items():
        parts.append(f"\n## {name}\n\n| column | type | notes |\n|---|---|---|")
        parts += [_column(field, comments) for field in columns]
    parts.append("\n## Reject words\n\n" + ", ".join(f"`{word}`" for word in schema.REJECTS))
    return "\n".join(parts) + "\n"


def _column(field: pa.Field, comments: dict[str, str]) -> str:
    kind = str(field.type).replace("|", "\\|").replace("list<element: ", "list<").replace("list<item: ", "list<")
    return f"| `{field.name}` | {kind} | {comments.get(field.name, '')} |"


def _comments() -> dict[str, str]:
    """By column, the comment at the end of its line in contracts/schema.py."""
    comments = {}
    lines = Path(schema.__file__).read_text().splitlines()
    text = io.StringIO("\n".join(lines) + "\n")
    for token in tokenize.generate_tokens(text.readline):
        before = token.line[: token.start[1]].strip()
        if token.type == tokenize.COMMENT and "=" in before:
            comments.setdefault(before.split("=")[0].strip(), token.string.lstrip("# "))
    return comments


def write(folder: Path) -> None:
    """Write both pages into a folder."""
    folder.mkdir(exist_ok=True)
    (folder / "settings.md").write_text(settings_page())
    (folder / "tables.md").write_text(tables_page())


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
