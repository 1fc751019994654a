"""Where a creative comes from and what became of it, as the tables hold it: `adbooster audit`."""

import json
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake.exceptions import DeltaError
from pydantic import BaseModel

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.storage import tables
from adbooster.storage.objects import Root

MOST_VERSIONS = 400  # of tables/creatives that are looked through for one that is not live


class Decision(BaseModel):
    """What a person, or a rule, said of the creative."""

    mark: str
    marked_by: str | None
    """as the file says; null where it does not"""
    marked_at: str | None
    """as the file says"""
    file_uri: str | None
    file_sha256: str | None
    signed: bool
    read_at: datetime
    run_id: str
    """the run that read it"""


class Commit(BaseModel):
    """A commit of tables/creatives that brought the creative, or took it away."""

    version: int
    time: datetime
    operation: str
    run_id: str | None
    git_commit: str | None


class Audit(BaseModel):
    """One creative; parts that the tables do not hold any more are null."""

    creative_id: str
    live: bool
    product: dict[str, Any]
    sample: dict[str, Any] | None
    """the product's main picture as it is now; `same_photo`: the creative shows this photo"""
    cohort: dict[str, Any] | None
    request: dict[str, Any]
    file: dict[str, Any]
    weights: dict[str, Any]
    run: dict[str, Any]
    published: Commit | None
    """null: the history that is left begins later"""
    retired: Commit | None
    """null: live, or the history does not reach back so far"""
    decisions: list[Decision]
    """oldest first"""


def audit(root: Root, creative_id: str) -> Audit:
    """The chain from product to run of a creative, live or not, and who approved, rejected or retired it.

    raises ConfigError for an id that neither the versions of tables/creatives that are left nor the marks know
    """
    decisions = _decisions(root, creative_id)
    row, live, published, retired = _found(root, creative_id)
    if row is None:
        row = _marked(root, creative_id)
    if row is None and not decisions:
        raise ConfigError(f"no creative {creative_id!r} is known below {root.uri}, live or in the history that is left")
    row = dict.fromkeys(schema.CREATIVES.names) | (row or {})
    return Audit(
        creative_id=creative_id,
        live=live,
        product={"product_id": row["product_id"], "photo_sha256": row["photo_sha256"]},
        sample=_sample(root, row),
        cohort=_first(root, "cohorts", "cohort_id", row["cohort_id"], ["cohort_id", "family", "query", "context"]),
        request={n: row[n] for n in ("request_id", "cohort_id", "placement", "rank", "prompt", "seed", "recipe_id")},
        file={n: row[n] for n in ("uri", "sha256", "size_bytes", "clip_score", "fallback", "fallback_reason")},
        weights=_weights(root, row["weights_revision"]),
        run=_run(root, row["run_id"]),
        published=published,
        retired=retired,
        decisions=decisions,
    )


def _decisions(root: Root, creative_id: str) -> list[Decision]:
    rows = _rows(tables.read(root, "decisions"), "creative_id", creative_id)
    return [Decision.model_validate(row) for row in sorted(rows, key=lambda r: (r["read_at"], r["decision_id"]))]


def _found(root: Root, creative_id: str) -> tuple[dict | None, bool, Commit | None, Commit | None]:
    """(its row, whether it is live, the commit that brought it, the commit that took it away), newest version first."""
    row, oldest, published, retired = None, None, None, None
    history = tables.history(root, "creatives")[:MOST_VERSIONS]
    later: tables.Version | None = None
    for version in history:
        try:
            rows = _rows(tables.read(root, "creatives", version=version.version), "creative_id", creative_id)
        except (DeltaError, OSError, pa.ArrowException):  # past the retention of a vacuum
            break
        if rows and row is None:
            row, retired = rows[0], _commit(later)
        if rows:
            oldest = version
        if row is not None and (not rows or version.version == 0):
            published = _commit(oldest)
            break
        later = version
    return row, row is not None and retired is None, published, retired


def _commit(version: tables.Version | None) -> Commit | None:
    return Commit.model_validate(version.model_dump()) if version else None


def _marked(root: Root, creative_id: str) -> dict | None:
    """What tables/marks keeps of a creative that no version has any more; `run_id` there is of the mark."""
    row = _first(root, "marks", "creative_id", creative_id, schema.MARKS.names)
    return row and {name: value for name, value in row.items() if name not in ("mark", "run_id")}


def _sample(root: Root, row: dict) -> dict | None:
    columns = ["sample_id", "product_id", "role", "title", "category", "image_uri", "photo_uri", "photo_sha256"]
    samples = tables.read(root, "samples", columns)
    rows = _rows(samples.filter(pc.equal(samples["role"], "main")), "product_id", row["product_id"])
    return rows[0] | {"same_photo": rows[0]["photo_sha256"] == row["photo_sha256"]} if rows else None


def _first(root: Root, table: str, column: str, value: str | None, columns: list[str]) -> dict | None:
    rows = _rows(tables.read(root, table, columns), column, value)
    return rows[0] if rows else None


def _rows(table: pa.Table, column: str, value: str | None) -> list[dict]:
    return [] if value is None else table.filter(pc.equal(table[column], value)).to_pylist()


def _weights(root: Root, revision: str | None) -> dict:
    """The revision, and the card of weights that were trained below this root."""
    card = _document(root, f"weights/{revision}/card.json") if revision else None
    return {"weights_revision": revision, "card": card}


def _run(root: Root, run_id: str | None) -> dict:
    """The run that painted it: when it began, by which code, and where its settings and report lie."""
    if run_id is None:
        return {"run_id": None}
    config = _document(root, f"runs/{run_id}/generate.config.json") or {}
    there = [
        name for name in ("generate.config.json", "report.html", "report.json") if name in root.files(f"runs/{run_id}")
    ]
    facts = {"run_id": run_id, "started_at": config.get("started_at"), "git_commit": config.get("git_commit")}
    return facts | {"files": [f"runs/{run_id}/{name}" for name in there]}


def _document(root: Root, relative: str) -> dict | None:
    try:
        found = json.loads(root.read(relative))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
