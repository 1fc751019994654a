"""What people said of creatives: rejected ones never come back, approved ones stay. Read from files, kept in tables/marks."""

import json
from collections import Counter, defaultdict
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from fsspec.core import url_to_fs
from pydantic import BaseModel, Field, ValidationError

from adbooster import schema, tables
from adbooster.errors import ConfigError
from adbooster.objects import Root
from adbooster.recipe import digest

FORMAT = "adbooster-marks-1"
MAX_BYTES = 256 << 20
_STRONGEST = ("cleared", "approved", "rejected")  # where files of several people disagree


class Mark(BaseModel):
    """One creative and what is said of it; the page exports it with all that is known of the creative."""

    creative_id: str = Field(pattern="^[0-9a-f]{16}$")
    mark: Literal["approved", "rejected", "cleared"]
    """cleared: takes an earlier mark back"""
    request_id: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    product_id: str | None = None
    cohort_id: str | None = None
    placement: str | None = None
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")


class _File(BaseModel):
    format: Literal["adbooster-marks-1"]
    marks: list[Mark]


class MarkFigures(BaseModel):
    """What the marks of people did; counts are creatives unless they say otherwise."""

    approved: int = 0
    """approvals that hold, of tonight's and of earlier files"""
    rejected: int = 0
    """rejections that hold, of tonight's and of earlier files"""
    unknown: int = 0
    """in tonight's files, neither live nor known from earlier files"""
    renamed: int = 0
    """requests painted under another name because of a rejection"""
    held: int = 0
    """requests not painted anew, as their creative is approved"""
    left_empty: int = 0
    """requests whose original picture was rejected and which no painting beats: their place stays empty"""


def read(uri: str) -> list[Mark]:
    """The marks of a file that the page exported, or of all .json files of a folder; of two on a creative the stronger.

    raises  ConfigError that names the file and what is wrong with it
    """
    fs, path = url_to_fs(uri)
    if not fs.exists(path):
        raise ConfigError(f"there is no marks file at {uri}")
    files = sorted(f for f in fs.ls(path, detail=False) if f.endswith(".json")) if fs.isdir(path) else [path]
    strongest: dict[str, Mark] = {}
    for file in files:
        for mark in _parsed(file, fs.size(file), fs.cat_file):
            known = strongest.get(mark.creative_id)
            if known is None or _STRONGEST.index(mark.mark) > _STRONGEST.index(known.mark):
                strongest[mark.creative_id] = mark
    return [strongest[name] for name in sorted(strongest)]


def _parsed(file: str, size_bytes: int, cat) -> list[Mark]:
    if size_bytes > MAX_BYTES:
        raise ConfigError(f"the marks file {file} has {size_bytes} bytes, allowed are {MAX_BYTES}")
    try:
        return _File.model_validate(json.loads(cat(file))).marks
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise ConfigError(
            f"the marks file {file} cannot be used: {where} {str(first['input'])[:100]!r}: {first['msg']}"
        ) from e
    except ValueError as e:
        raise ConfigError(f"the marks file {file} is not JSON: {e}") from e


class Marks:
    """All marks that hold, and what follows for requests and creatives."""

    def __init__(self, rows: pa.Table):
        self.rows = rows
        found: dict[str, set[str]] = defaultdict(set)
        self.pictures: set[tuple] = set()  # (product, cohort, placement, sha256) that were rejected
        self.named: dict[str, list[str]] = defaultdict(list)  # request -> its rejected creatives
        for row in rows.to_pylist():
            found[row["mark"]].add(row["request_id"] if row["mark"] == "empty" else row["creative_id"])
            if row["mark"] == "rejected":
                self.named[row["request_id"]].append(row["creative_id"])
                self.pictures.add(tuple(row[n] for n in ("product_id", "cohort_id", "placement", "sha256")))
        self.approved, self.rejected, self.empty = found["approved"], found["rejected"], found["empty"]

    def apply(self, wanted: pa.Table, live: pa.Table, figures: MarkFigures) -> pa.Table:
        """The night's requests (schema.REQUESTS) as the marks want them.

        A request with rejected creatives gets a name of its own, which follows from its name and theirs: other seeds,
        and resumed like any other. One whose live creative is approved keeps the name that one was painted under, so
        that it is not painted again, while the product's photo and the cohort's text are the same.
        """
        if not self.rows.num_rows:
            return wanted
        own = wanted["request_id"].to_pylist()
        names = [self._name(request_id) for request_id in own]
        figures.renamed = sum(a != b for a, b in zip(own, names, strict=True))
        held = self._held(live)
        if held:
            keys = (wanted[c].to_pylist() for c in ("product_id", "cohort_id", "placement", "photo_sha256", "text"))
            kept = [held.get(key, name) for key, name in zip(zip(*keys, strict=True), names, strict=True)]
            figures.held = sum(a != b for a, b in zip(names, kept, strict=True))
            names = kept
        at = wanted.schema.get_field_index("request_id")
        wanted = wanted.set_column(at, "request_id", pa.array(names, pa.string()))
        stays = pa.array([name not in self.empty for name in names], pa.bool_())
        figures.left_empty = wanted.num_rows - (pc.sum(stays).as_py() or 0)
        return wanted.filter(stays)

    def _name(self, request_id: str) -> str:
        while against := self.named.get(request_id):
            request_id = digest(request_id, "rejected", *sorted(against))
        return request_id

    def _held(self, live: pa.Table) -> dict[tuple, str]:
        """The request of every place with an approved live creative, by place, photo and cohort's text."""
        rows = live.filter(pc.is_in(live["creative_id"], pa.array(sorted(self.approved), pa.string())))
        wanted = ("product_id", "cohort_id", "placement", "photo_sha256", "text", "request_id")
        return {tuple(row[c] for c in wanted[:-1]): row["request_id"] for row in rows.select(wanted).to_pylist()}

    def refuse(self, fresh: pa.Table) -> tuple[pa.Table, pa.Table]:
        """(rows that may be published, rows that a person has rejected before) of a night's new creatives.

        An original picture that was rejected for a cohort comes back when no other seed beats it either.
        """
        if not self.rejected:
            return fresh, fresh.slice(0, 0)
        columns = ("creative_id", "product_id", "cohort_id", "placement", "sha256")
        keys = zip(*(fresh[c].to_pylist() for c in columns), strict=True)
        bad = pa.array([k[0] in self.rejected or k[1:] in self.pictures for k in keys], pa.bool_())
        return fresh.filter(pc.invert(bad)), fresh.filter(bad)


def take_in(root: Root, uri: str, live: pa.Table, run_id: str, dry_run: bool = False) -> tuple[Marks, MarkFigures]:
    """Tonight's marks laid over those of earlier nights, and kept in tables/marks unless this is a dry run."""
    base = tables.version(root, "marks")
    known = tables.read(root, "marks", version=base)
    said = read(uri) if uri else []
    figures = MarkFigures()
    if said:
        rows, gone = _rows(said, live, known, run_id, figures)
        changed = _changed(rows, known)
        gone = sorted(gone & set(known["creative_id"].to_pylist()))
        if (changed.num_rows or gone) and not dry_run:
            tables.merge(root, "marks", changed, "creative_id", base, {"run_id": run_id}, delete=gone)
        ids = pa.array([*rows["creative_id"].to_pylist(), *gone], pa.string())
        known = pa.concat_tables([known.filter(pc.invert(pc.is_in(known["creative_id"], ids))), rows])
    counts = Counter(known["mark"].to_pylist())
    figures.approved, figures.rejected = counts["approved"], counts["rejected"]
    return Marks(known), figures


def _rows(
    said: list[Mark], live: pa.Table, known: pa.Table, run_id: str, figures: MarkFigures
) -> tuple[pa.Table, set[str]]:
    """The marks as rows of schema.MARKS, with what is known of their creatives, and the creatives whose mark is taken back."""
    ids = pa.array([m.creative_id for m in said], pa.string())
    columns = [n for n in schema.MARKS.names if n not in ("mark", "run_id")]
    facts = {}
    for table in (known, live):  # what is live knows best
        for row in table.filter(pc.is_in(table["creative_id"], ids)).select(columns).to_pylist():
            facts[row["creative_id"]] = row
    figures.unknown = sum(m.creative_id not in facts for m in said)
    rows = [
        m.model_dump() | facts.get(m.creative_id, {}) | {"mark": m.mark, "run_id": run_id}
        for m in said
        if m.mark != "cleared"
    ]
    return pa.Table.from_pylist(rows, schema.MARKS), {m.creative_id for m in said if m.mark == "cleared"}


def _changed(rows: pa.Table, known: pa.Table) -> pa.Table:
    there = dict(zip(known["creative_id"].to_pylist(), known["mark"].to_pylist(), strict=True))
    said = zip(rows["creative_id"].to_pylist(), rows["mark"].to_pylist(), strict=True)
    return rows.filter(pa.array([there.get(name) != mark for name, mark in said], pa.bool_()))


def leave_empty(root: Root, refused: pa.Table, marks: Marks, run_id: str) -> None:
    """Remember requests that ended on rejected pictures (rows of schema.CREATIVES): they are not painted again.

    One that was rejected by a mark that did not know its request is painted under another name the next night.
    """
    if refused.num_rows:
        rows = refused.select([n for n in schema.MARKS.names if n not in ("mark", "run_id")]).to_pylist()
        for row in rows:
            row |= {"mark": "rejected" if row["creative_id"] in marks.rejected else "empty", "run_id": run_id}
        base = tables.version(root, "marks")
        tables.merge(root, "marks", pa.Table.from_pylist(rows, schema.MARKS), "creative_id", base, {"run_id": run_id})


def close_ranks(kept: pa.Table, lost: pa.Table) -> pa.Table:
    """Creatives that stay, ranked from 0 again where a rejected one of their request (`lost`) is gone."""
    if not lost.num_rows:
        return kept
    at = sorted(
        zip(kept["request_id"].to_pylist(), kept["rank"].to_pylist(), range(kept.num_rows), strict=True),
    )
    thinned = set(lost["request_id"].to_pylist())
    ranks, counts = kept["rank"].to_pylist(), Counter()
    for request_id, _, i in at:
        if request_id in thinned:
            ranks[i] = counts[request_id]
            counts[request_id] += 1
    return kept.set_column(kept.schema.get_field_index("rank"), "rank", pa.array(ranks, pa.int32()))
