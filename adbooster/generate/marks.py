"""Approvals and rejections by people, and retirements by outcomes: what is rejected or retired never comes back, what is approved
stays. Kept in tables/marks.
"""

import json
from collections import Counter, defaultdict
from datetime import UTC, datetime
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field, ValidationError

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.contracts.naming import PLACE, digest, row_keys
from adbooster.contracts.redaction import redact
from adbooster.contracts.text import clean, first_error
from adbooster.storage import tables
from adbooster.storage.buckets import Scan
from adbooster.storage.inputs import Input, read_inputs
from adbooster.storage.objects import Root

FORMAT = "adbooster-marks-1"
MAX_BYTES = 64 << 20  # some 150,000 marks
MAX_MARKS = 1_000_000  # of one file
_STRONGEST = ("cleared", "approved", "rejected")  # where files of several people disagree


class Mark(BaseModel):
    """A person's verdict on a creative; the page exports it with all that is known of the creative."""

    creative_id: str = Field(pattern="^[0-9a-f]{16}$")
    mark: Literal["approved", "rejected", "cleared"]
    """cleared: withdraws an earlier mark"""
    request_id: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    product_id: str | None = Field(default=None, max_length=300)
    cohort_id: str | None = Field(default=None, max_length=300)
    placement: str | None = Field(default=None, max_length=100)
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")


class _File(BaseModel):
    format: Literal["adbooster-marks-1"]
    by: str | None = Field(default=None, max_length=100)
    """whose marks these are"""
    exported_at: str | None = Field(default=None, max_length=40)
    marks: list[Mark] = Field(max_length=MAX_MARKS)


class MarkFigures(BaseModel):
    """What the marks of people did; counts are creatives unless stated otherwise."""

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
    retired: int = 0
    """retirements by outcomes that hold"""
    outdone: int = 0
    """requests painted in place of retired creatives tonight that gave nothing to show beside what is live: that stays alone"""


def read(uri: str, signing_key_env: str = "") -> list[Mark]:
    """The marks of a file that the page exported, or of a folder's .json files; of several on a creative the strongest.

    raises  ConfigError that names the file and what is wrong with it
    """
    return _strongest([mark for _, file in _files(uri, signing_key_env) for mark in file.marks])


def _files(uri: str, signing_key_env: str) -> list[tuple[Input, _File]]:
    return [(given, _parsed(given)) for given in read_inputs(uri, "marks file", ".json", MAX_BYTES, signing_key_env)]


def _strongest(marks: list[Mark]) -> list[Mark]:
    strongest: dict[str, Mark] = {}
    for mark in marks:
        known = strongest.get(mark.creative_id)
        if known is None or _STRONGEST.index(mark.mark) > _STRONGEST.index(known.mark):
            strongest[mark.creative_id] = mark
    return [strongest[name] for name in sorted(strongest)]


def _parsed(given: Input) -> _File:
    try:
        return _File.model_validate(json.loads(given.content))
    except ValidationError as e:
        raise ConfigError(f"the marks file {given.uri} cannot be used: {first_error(e)}") from e
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"the marks file {given.uri} is not JSON: {e}") from e


class Effects(NamedTuple):
    """What marks changed about a night's requests, as fields of MarkFigures."""

    renamed: int = 0
    held: int = 0
    left_empty: int = 0

    def plus(self, other: "Effects") -> "Effects":
        return Effects(*(a + b for a, b in zip(self, other, strict=True)))


_PICTURE = (*PLACE, "sha256")
_SAME = (*PLACE, "photo_sha256", "text")  # an approved creative holds while these do
_MADE_OF = (*_SAME, "prompt", "negative_prompt")  # of a champion and of the request beside whose creatives it stays
CHAMPIONS = ("creative_id", *_MADE_OF, "recipe_id", "fallback")  # what `champions` compares


def _place(row: dict) -> tuple:
    return tuple(row[name] for name in PLACE)


class Marks:
    """All marks that hold, and what follows for requests and creatives."""

    def __init__(self, rows: pa.Table):
        self.rows = rows
        by_mark: dict[str, set[str]] = defaultdict(set)
        self.named: dict[str, list[str]] = defaultdict(list)  # request -> its creatives that were rejected or retired
        self.retired_of: dict[tuple, list[tuple[str, str]]] = defaultdict(list)  # place -> (creative, its request)
        for row in rows.select(["mark", "request_id", "creative_id", *PLACE]).to_pylist():
            by_mark[row["mark"]].add(row["request_id"] if row["mark"] in ("empty", "kept") else row["creative_id"])
            if row["mark"] in ("rejected", "retired"):
                self.named[row["request_id"]].append(row["creative_id"])
            if row["mark"] == "retired":
                self.retired_of[_place(row)].append((row["creative_id"], row["request_id"]))
        left = rows.filter(pc.is_in(rows["mark"], pa.array(["rejected", "retired"])))
        retired = rows.filter(pc.equal(rows["mark"], "retired"))
        self.places = row_keys(retired, PLACE).drop_null()  # of which something was retired
        self.pictures = row_keys(left, _PICTURE).drop_null()  # pictures that were rejected or retired for a place
        self.approved, self.rejected, self.retired = by_mark["approved"], by_mark["rejected"], by_mark["retired"]
        self.empty, self.kept = by_mark["empty"], by_mark["kept"]
        self.leaving = pa.array(sorted(self.rejected | self.retired), pa.string())  # creatives that may not be live

    def apply(self, requests: pa.Table, live: pa.Table) -> tuple[pa.Table, Effects]:
        """The night's requests (schema.REQUESTS), or some of them, changed by the marks, and how many are changed.

        A request with rejected or retired creatives, its own or of its place, gets a name of its own, which follows from its name
        and theirs: other seeds, and resumed like any other. One whose live creative is approved keeps the name that one was painted under, so
        that it is not painted again, while the product's photo and the cohort's text are the same.
        live  what is live of the products of these requests, at least what is approved of it
        """
        if not self.rows.num_rows:
            return requests, Effects()
        own = requests["request_id"].combine_chunks()
        bad = self._left(requests)
        left = requests.filter(bad).select(["request_id", *PLACE]).to_pylist()
        names = pc.replace_with_mask(own, bad, pa.array([self._names(row)[-1] for row in left], pa.string()))
        renamed, kept_names = len(own.filter(bad)), 0
        approved = live.filter(pc.is_in(live["creative_id"], pa.array(sorted(self.approved), pa.string())))
        if approved.num_rows:
            at = pc.index_in(row_keys(requests, _SAME), row_keys(approved, _SAME))
            held = approved["request_id"].combine_chunks().take(at)
            kept_names = pc.sum(pc.not_equal(held, names)).as_py() or 0
            names = pc.coalesce(held, names)
        requests = requests.set_column(requests.schema.get_field_index("request_id"), "request_id", names)
        stays = pc.invert(pc.is_in(names, pa.array(sorted(self.empty), pa.string())))
        return requests.filter(stays), Effects(renamed, kept_names, len(stays) - (pc.sum(stays).as_py() or 0))

    def _left(self, requests: pa.Table) -> pa.Array:
        """Whether something was rejected or retired of each request, or retired of its place (bool [n])."""
        named = pc.is_in(requests["request_id"].combine_chunks(), pa.array([n for n in self.named if n], pa.string()))
        return pc.or_(named, pc.is_in(row_keys(requests, PLACE), self.places))

    def _names(self, request: dict) -> list[str]:
        """The names that a request has had, by what was rejected or retired of it; the last one is that which it has.

        What was painted under a name that is none of these since more was retired of it counts as well once it is retired itself.
        request  request_id and PLACE
        """
        names = self._followed(request["request_id"])
        orphans = sorted(name for name, of in self.retired_of.get(_place(request), ()) if of not in names)
        return names + self._followed(digest(names[-1], "retired", *orphans)) if orphans else names

    def _followed(self, name: str) -> list[str]:
        names = [name]
        while left := self.named.get(names[-1]):
            names.append(digest(names[-1], "rejected", *sorted(left)))
        return names

    def champions(self, requests: pa.Table, live: pa.Table, recipe_id: str) -> pa.Table:
        """Live creatives that stay beside what is painted in place of retired ones: creative_id and PLACE.

        They are paintings of a place of which a creative was retired, made of what its request is made of, that nobody
        rejected. Rejections alone leave no champions: what is painted then replaces all of the place.
        requests  as they are named without marks
        live      what is live of their products (CHAMPIONS)
        """
        some = requests.filter(pc.is_in(row_keys(requests, PLACE), self.places))
        stays = pc.is_in(row_keys(live, _MADE_OF), row_keys(some, _MADE_OF).drop_null())
        stays = pc.and_(stays, pc.and_(pc.equal(live["recipe_id"], recipe_id), pc.invert(live["fallback"])))
        stays = pc.and_(pc.fill_null(stays, False), pc.invert(pc.is_in(live["creative_id"], self.leaving)))
        return live.select(["creative_id", *PLACE]).filter(stays)

    def settled(self, requests: pa.Table, champions: pa.Table, most: int) -> pa.Array:
        """Of each request, as it is named now, whether its place has champions and nothing is to be painted beside them.

        That is where they are `most`, or painting it gave nothing to show beside them (`keep_champions`).
        """
        counts = pc.value_counts(row_keys(champions, PLACE))
        there = counts.field("counts").take(pc.index_in(row_keys(requests, PLACE), counts.field("values")))
        tried = pc.is_in(requests["request_id"].combine_chunks(), pa.array(sorted(self.kept), pa.string()))
        return pc.or_(pc.greater_equal(pc.fill_null(there, 0), most), pc.and_(pc.is_valid(there), tried))

    def refuse(self, fresh: pa.Table) -> tuple[pa.Table, pa.Table]:
        """(rows that may be published, rows that were rejected or retired before) of a night's new creatives.

        An original picture that was rejected for a cohort comes back when no other seed beats it either.
        """
        bad = pc.is_in(fresh["creative_id"].combine_chunks(), self.leaving)
        bad = pc.or_(bad, pc.is_in(row_keys(fresh, _PICTURE), self.pictures))
        return fresh.filter(pc.invert(bad)), fresh.filter(bad)


def read_and_store(
    root: Root, uri: str, live: Scan, run_id: str, dry_run: bool = False, signing_key_env: str = ""
) -> tuple[Marks, MarkFigures]:
    """Tonight's marks merged over those of earlier nights; `live` gives the rows of tables/creatives.

    Unless this is a dry run they are stored: who said what in which file in tables/decisions, what holds in tables/marks.
    """
    base = tables.version(root, "marks")
    known = tables.read(root, "marks", version=base)
    files = _files(uri, signing_key_env) if uri else []
    if not dry_run:
        _remember(root, files, run_id)
    tonight = _strongest([mark for _, file in files for mark in file.marks])
    unknown = 0
    if tonight:
        rows, gone, unknown = _rows(tonight, live, known, run_id)
        changed = _changed(rows, known)
        gone = sorted(gone & set(known["creative_id"].to_pylist()))
        if (changed.num_rows or gone) and not dry_run:
            tables.merge(root, "marks", changed, "creative_id", base, {"run_id": run_id}, delete=gone)
        ids = pa.array([*rows["creative_id"].to_pylist(), *gone], pa.string())
        known = pa.concat_tables([known.filter(pc.invert(pc.is_in(known["creative_id"], ids))), rows])
    counts = Counter(known["mark"].to_pylist())
    holding = {word: counts[word] for word in ("approved", "rejected", "retired")}
    return Marks(known), MarkFigures(unknown=unknown, **holding)


def _remember(root: Root, files: list[tuple[Input, _File]], run_id: str) -> None:
    """Add what the files say to tables/decisions; a file that was read before adds nothing."""
    now = datetime.now(UTC)
    rows = {}
    for given, file in files:
        facts = {
            "marked_by": clean(file.by) if file.by else None,
            "marked_at": clean(file.exported_at) if file.exported_at else None,
            "file_uri": redact(given.uri),
            "file_sha256": given.sha256,
            "signed": given.signed,
            "read_at": now,
            "run_id": run_id,
        }
        for mark in file.marks:
            name = digest(mark.creative_id, mark.mark, given.sha256, str(given.signed))
            rows[name] = {"decision_id": name, "creative_id": mark.creative_id, "mark": mark.mark} | facts
    if not rows:
        return
    base = tables.version(root, "decisions")
    known = set(tables.read(root, "decisions", ["decision_id"], version=base)["decision_id"].to_pylist())
    if new := [row for name, row in rows.items() if name not in known]:
        table = pa.Table.from_pylist(new, schema.DECISIONS)
        tables.merge(root, "decisions", table, "decision_id", base, {"run_id": run_id})


def _rows(tonight: list[Mark], live: Scan, known: pa.Table, run_id: str) -> tuple[pa.Table, set[str], int]:
    """Rows of schema.MARKS with what is known of their creatives, creatives whose mark is cleared, number of unknown ones."""
    ids = pa.array([m.creative_id for m in tonight], pa.string())
    columns = [n for n in schema.MARKS.names if n not in ("mark", "run_id")]
    facts: dict[str, dict] = {}
    for table in (known, *live(columns)):  # live rows last: they are newest
        for row in table.filter(pc.is_in(table["creative_id"], ids)).select(columns).to_pylist():
            facts[row["creative_id"]] = row
    rows = [
        m.model_dump() | facts.get(m.creative_id, {}) | {"mark": m.mark, "run_id": run_id}
        for m in tonight
        if m.mark != "cleared"
    ]
    cleared = {m.creative_id for m in tonight if m.mark == "cleared"}
    return pa.Table.from_pylist(rows, schema.MARKS), cleared, sum(m.creative_id not in facts for m in tonight)


def _changed(rows: pa.Table, known: pa.Table) -> pa.Table:
    known_marks = dict(zip(known["creative_id"].to_pylist(), known["mark"].to_pylist(), strict=True))
    new = zip(rows["creative_id"].to_pylist(), rows["mark"].to_pylist(), strict=True)
    return rows.filter(pa.array([known_marks.get(name) != mark for name, mark in new], pa.bool_()))


def leave_empty(root: Root, refused: pa.Table, marks: Marks, run_id: str) -> None:
    """Remember requests that ended on rejected pictures (rows of schema.CREATIVES): they are not painted again.

    A request whose rejected creative was marked without a request id is painted under another name the next night.
    """
    _remember_ends(root, refused, "empty", marks, run_id)


def keep_champions(root: Root, outdone: pa.Table, marks: Marks, run_id: str) -> None:
    """Remember requests that ended on nothing to show beside their place's champions (rows of schema.CREATIVES): they are not
    painted again while one of those is live."""
    _remember_ends(root, outdone, "kept", marks, run_id)


def _remember_ends(root: Root, ends: pa.Table, word: str, marks: Marks, run_id: str) -> None:
    """What is marked already keeps its word."""
    if not ends.num_rows:
        return
    said = {name: mark for mark in ("rejected", "retired") for name in getattr(marks, mark)}
    rows = ends.select([n for n in schema.MARKS.names if n not in ("mark", "run_id")]).to_pylist()
    rows = [row | {"mark": said.get(row["creative_id"], word), "run_id": run_id} for row in rows]
    base = tables.version(root, "marks")
    tables.merge(root, "marks", pa.Table.from_pylist(rows, schema.MARKS), "creative_id", base, {"run_id": run_id})


def close_ranks(kept: pa.Table) -> pa.Table:
    """Creatives that stay in places that lost one, ranked from 0 again."""
    at, ranks, counts = row_keys(kept, PLACE).to_pylist(), kept["rank"].to_pylist(), Counter[str]()
    for place, _, i in sorted(zip(at, ranks, range(kept.num_rows), strict=True)):
        ranks[i] = counts[place]
        counts[place] += 1
    return kept.set_column(kept.schema.get_field_index("rank"), "rank", pa.array(ranks, pa.int32()))
