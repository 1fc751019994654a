"""What a night has to do about pictures: the feed against what is live and what unfinished runs have staged."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from adbooster.contracts import schema
from adbooster.contracts.naming import digest
from adbooster.storage import tables
from adbooster.storage.objects import Root

SLICE_ROWS = 65_536
QUIET_ROWS = 512  # rows a block where little work is expected
_CODE = {"mask": "2", "caption": "2", "rules": "2"}  # raise a number to make that part of every sample again
_LATER = {"holes": "sure", "max_unsure_share": 1.0}  # settings that came later: at these values samples keep their name
_SWAPPED = {("solve_px", 100_000): 600_000, ("solve_px", 600_000): 100_000}  # a default of today, and the former one
WORTH = ("weight", "available")
_LIVE = ("live_fingerprint", "live_reject")


class MadeBy(NamedTuple):
    """Digests of the models and settings that make a sample: when one changes, that part is made again."""

    mask: str
    caption: str
    rules: str


def made_by(mask_model: str, caption_model: str, masking: BaseModel, captions: BaseModel, rules: BaseModel) -> MadeBy:
    """From the models' content hashes and their settings.

    Masks that a former version made at its defaults have the name of those made at today's: they stay as they are.
    """

    def mark(what: str, model: str, settings: BaseModel) -> str:
        values = settings.model_dump(mode="json")
        values = {n: _SWAPPED.get((n, v), v) for n, v in values.items() if (n, v) not in _LATER.items()}
        return digest(what, _CODE[what], model, json.dumps(values, sort_keys=True))[:16]

    return MadeBy(mark("mask", mask_model, masking), mark("caption", caption_model, captions), mark("rules", "", rules))


def fingerprint(row: dict, outcome: str | None, made: MadeBy) -> str:
    """Of the photo's bytes (`outcome`: their SHA-256, or the word for why there are none), the fields used, and the makers."""
    fields = (row[name] or "" for name in ("product_id", "title", "category", "brand", "image_uri"))
    return digest(outcome or "", *fields, *made)


def staged_folder(run_id: str, base: int | None) -> str:
    """Where a run stages samples; the version it was planned on is in the name and distinguishes old parts from new."""
    return f"runs/{run_id}/staged/samples-{'new' if base is None else base}"


class Staged(NamedTuple):
    """Samples (schema.SAMPLES) that unfinished runs have staged; `fresh`: planned on the version that is live."""

    rows: pa.Table
    fresh: bool


def staged_samples(root: Root, run_id: str, base: int | None) -> Iterator[Staged]:
    """What unfinished runs have staged and not published, this run's own before that of others, a file at a time."""
    for run in dict.fromkeys([run_id, *tables.unfinished_runs(root)]):
        for name in root.folders(f"runs/{run}/staged"):
            folder = f"runs/{run}/staged/{name}"
            if name.startswith("samples-"):
                for rows in tables.staged_parts(root, folder, schema.PREPARED):
                    yield Staged(schema.fill(rows, schema.SAMPLES), folder == staged_folder(run, base))


def known_samples(live: pa.Table, fresh: pa.Table, stale: pa.Table) -> pa.Table:
    """Live samples, and over them what unfinished runs have staged (all schema.SAMPLES).

    Rows planned on the live version (`fresh`) replace live ones; `stale` ones only add what is not live at all.
    Beside schema.SAMPLES: `staged`, and the live row's fingerprint (null: not live, or retired) and reject.
    """
    parts = [(t, staged) for t, staged in ((fresh, True), (live, False), (stale, True)) if t.num_rows or not staged]
    marked = [t.append_column("staged", pa.array(np.full(t.num_rows, staged))) for t, staged in parts]
    known = marked[0] if len(marked) == 1 else _first_of_each(pa.concat_tables(marked))
    current = live.filter(pc.is_null(live["retired_at"]))
    at = pc.index_in(known["sample_id"], current["sample_id"])
    for name in _LIVE:
        known = known.append_column(name, current[name.removeprefix("live_")].take(at))
    return known


def _first_of_each(rows: pa.Table) -> pa.Table:
    numbered = pa.table({"key": rows["sample_id"], "at": np.arange(rows.num_rows)})
    return rows.take(numbered.group_by("key").aggregate([("at", "min")])["at_min"].sort())


@dataclass
class Changes:
    """The feed's pictures beside what is known of each.

    wanted     schema.PICTURES
    known      as `known_samples` gives
    at         for each wanted picture its row in `known`, or null
    state      for each: 0 new, 1 changed, 2 unchanged, as far as the feed, the models and the rules show
    quiet      for each: no work is expected, only its photo has to be checked for changes
    """

    wanted: pa.Table
    known: pa.Table
    at: pa.ChunkedArray
    state: np.ndarray
    quiet: np.ndarray
    made: MadeBy

    def counts(self) -> tuple[int, int, int]:
        """new, changed, unchanged"""
        new, changed, unchanged = (int((self.state == n).sum()) for n in range(3))
        return new, changed, unchanged

    def to_fetch(self) -> int:
        return self.wanted["reject"].null_count

    def work_expected(self) -> bool:
        """Whether any picture has something to make, as far as is known without requesting its photo."""
        return bool((pc.is_null(self.wanted["reject"]).to_numpy() & ~self.quiet).any())

    def blocks(self, rows_per_block: int) -> Iterator[pa.Table]:
        """The pictures to fetch as small tables of schema.PLANNED, those with work to expect first."""
        fetched = pc.is_null(self.wanted["reject"]).to_numpy()
        busy, calm = np.flatnonzero(fetched & ~self.quiet), np.flatnonzero(fetched & self.quiet)
        for rows, size in ((busy, rows_per_block), (calm, max(rows_per_block, QUIET_ROWS))):
            for start in range(0, len(rows), size):
                yield self._planned(rows[start : start + size])

    def _planned(self, rows: np.ndarray) -> pa.Table:
        at = self.at.take(pa.array(rows)).combine_chunks()
        known_rows = self.known.select(schema.KNOWN.names).take(at).combine_chunks()
        columns = [
            known_rows[n].combine_chunks() if known_rows.num_rows else pa.array([], t) for n, t in _types(schema.KNOWN)
        ]
        known = pa.StructArray.from_arrays(columns, fields=list(schema.KNOWN), mask=pc.is_null(at))
        return schema.check(self.wanted.take(pa.array(rows)).append_column("known", known), schema.PLANNED)

    def rejected_by_feed(self) -> pa.Table:
        """Rows that the feed alone makes unusable, as finished rows (schema.PREPARED); unchanged ones left out."""
        rows = self.wanted.filter(pa.array(pc.is_valid(self.wanted["reject"]).to_numpy() & ~self.quiet))
        marks = [fingerprint(row, row["reject"], self.made) for row in rows.to_pylist()]
        return schema.fill(rows.append_column("fingerprint", pa.array(marks, pa.string())), schema.PREPARED)

    def named(self, done: pa.Table) -> pa.Table:
        """Finished rows (schema.PREPARED), with a fingerprint also where fetching did not live to give one."""
        unnamed = pc.is_null(done["fingerprint"])
        marks = [fingerprint(row, row["reject"], self.made) for row in done.filter(unnamed).to_pylist()]
        values = pc.replace_with_mask(
            done["fingerprint"].combine_chunks(), unnamed.combine_chunks(), pa.array(marks, pa.string())
        )
        return done.set_column(done.schema.get_field_index("fingerprint"), "fingerprint", values)

    def taken_over(self, done: pa.Table) -> pa.Table:
        """What unfinished runs staged of these pictures and this run did not make again (schema.SAMPLES)."""
        staged = self.known.filter(self.known["staged"])
        staged = staged.filter(pc.is_in(staged["sample_id"], self.wanted["sample_id"].combine_chunks()))
        staged = staged.filter(pc.invert(pc.is_in(staged["sample_id"], done["sample_id"].combine_chunks())))
        same = pc.equal(staged["fingerprint"], pc.fill_null(staged["live_fingerprint"], ""))
        return schema.fill(self._with_worth(staged.filter(pc.invert(same))), schema.SAMPLES)

    def revalued(self, live: pa.Table, written: pa.Table) -> pa.Table:
        """Live rows (schema.SAMPLES) of which only the weight or the availability has changed, with tonight's.

        written  rows that go into the table anyway
        """
        rows = live.filter(pc.is_null(live["retired_at"]))
        at = pc.index_in(rows["sample_id"], self.wanted["sample_id"].combine_chunks())
        changed = pc.and_(
            pc.is_valid(at), pc.invert(pc.is_in(rows["sample_id"], written["sample_id"].combine_chunks()))
        )
        differ = [_differ(rows[name], self.wanted[name].take(at)) for name in WORTH]
        return self._with_worth(rows.filter(pc.and_(changed, pc.or_(*differ))))

    def _with_worth(self, rows: pa.Table) -> pa.Table:
        """Rows of wanted pictures, with what their products are worth tonight."""
        at = pc.index_in(rows["sample_id"], self.wanted["sample_id"].combine_chunks())
        for name in WORTH:
            rows = rows.set_column(rows.schema.get_field_index(name), name, self.wanted[name].take(at))
        return rows


def _differ(a: pa.ChunkedArray, b: pa.ChunkedArray) -> pa.ChunkedArray:
    """Where two columns differ, null being a value like any other."""
    return pc.or_(pc.fill_null(pc.not_equal(a, b), False), pc.xor(pc.is_null(a), pc.is_null(b)))


def _types(wanted: pa.Schema) -> list[tuple[str, pa.DataType]]:
    return [(f.name, f.type) for f in wanted]


def compare(wanted: pa.Table, known: pa.Table, made: MadeBy) -> Changes:
    """What the night has to do, found without reading a photo; Python values of a slice of rows at a time."""
    at = pc.index_in(wanted["sample_id"], known["sample_id"])
    state, quiet = np.zeros(wanted.num_rows, np.int8), np.zeros(wanted.num_rows, bool)
    columns = ["photo_sha256", "reject", "fingerprint", "retired_at", *_LIVE[:1]]
    asked = wanted.select(["product_id", "title", "category", "brand", "image_uri", "reject"])
    for start in range(0, wanted.num_rows, SLICE_ROWS):
        rows = asked.slice(start, SLICE_ROWS).to_pylist()
        theirs = known.select(columns).take(at.slice(start, SLICE_ROWS)).to_pylist()
        for i, (row, old) in enumerate(zip(rows, theirs, strict=True), start):
            if old["fingerprint"] is None:
                continue
            mark = fingerprint(row, row["reject"] or old["photo_sha256"] or old["reject"], made)
            quiet[i] = mark == old["fingerprint"] and old["retired_at"] is None
            state[i] = 2 if mark == old["live_fingerprint"] else 1 if old["live_fingerprint"] or not quiet[i] else 0
    return Changes(wanted, known, at, state, quiet, made)


class Gone(NamedTuple):
    """What becomes of live samples of a part that the feed does not have in it."""

    retired: pa.Table
    """schema.SAMPLES: those that left the feed, marked so; they are kept"""
    moved: pa.Array
    """sample_id of those that the feed has under another product_id, in whatever part: to be dropped from this one"""


def gone(live: pa.Table, wanted: pa.Table, unnamed: pa.Array) -> Gone:
    """unnamed: sample_id of all rows of the feed whose product_id is only their number in it"""
    left = live.filter(pc.invert(pc.is_in(live["sample_id"], wanted["sample_id"].combine_chunks())))
    moved = pc.is_in(left["sample_id"], unnamed)
    return Gone(_retired(left.filter(pc.invert(moved))), left["sample_id"].filter(moved).combine_chunks())


def _retired(left: pa.Table) -> pa.Table:
    gone = left.filter(pc.is_null(left["retired_at"]))
    now: Any = pa.array([datetime.now(UTC)] * gone.num_rows, schema.SAMPLES.field("retired_at").type)
    return gone.set_column(gone.schema.get_field_index("retired_at"), "retired_at", now)
