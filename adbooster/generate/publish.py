"""A night's creatives become what is live, in one commit or not at all."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts import schema
from adbooster.contracts.errors import PublishConflict
from adbooster.contracts.naming import PLACE
from adbooster.contracts.settings import code_commit
from adbooster.generate import marks
from adbooster.generate.config import GenerateConfig
from adbooster.generate.plan import NightPlan, PartFigures, places
from adbooster.painting.requests import painted_once, staged_folders
from adbooster.storage import buckets, tables
from adbooster.storage.buckets import ROW_GROUP, Change, Part, Spill
from adbooster.storage.objects import Root


@dataclass(frozen=True)
class PartChange:
    """What one commit would change in a part.

    new         creative_id and round of what is added, with its rank
    gone        ids of live creatives that leave, or that a new one replaces
    thinned     places that keep creatives after one of theirs has gone: those are ranked anew
    relabelled  as in PartFigures, of creatives that stay
    filled      requests that have a creative after it
    """

    new: pa.Table
    gone: pa.Array
    thinned: pa.Array
    relabelled: pa.Table
    filled: int


@dataclass(frozen=True)
class Publication:
    """What one commit would change, of the parts that change.

    coverage  share of the requests with a creative after it (0-1)
    emptied   rows of requests that stay empty, as all that they end on was rejected
    outdone   a row of every request that ended on nothing to show beside its place's champions, which stay alone
    """

    changes: dict[Part, PartChange]
    requests: int
    coverage: float
    emptied: pa.Table
    outdone: pa.Table

    @property
    def published(self) -> int:
        """Rows that are added."""
        return sum(change.new.num_rows for change in self.changes.values())

    @property
    def retired(self) -> int:
        """Live rows that are no longer live."""
        return sum(len(change.gone) for change in self.changes.values())


def plan_publication(night: NightPlan, painted: pa.Table, refused: pa.Table) -> Publication:
    """Add what was painted, replace what it supersedes, retire what no request names and what was rejected or retired.

    painted  new rows (plan.JUDGED); refused  rows of requests that end on refused pictures alone (Marks.refuse)
    """
    changes, filled, requests = {}, 0, 0
    own, other = buckets.numbers(painted["product_id"]), buckets.numbers(refused["product_id"])
    emptied, outdone = [refused.slice(0, 0)], [painted.slice(0, 0)]
    for part in night.parts:
        of, mine, ended = night.of[part], painted.filter(part.has(own)), refused.filter(part.has(other))
        held = places(of.champions)
        beside = pc.is_in(places(ended), held)
        new, nothing = _ranked(mine, held, night.keep)
        outdone += [nothing, ended.filter(beside).select(painted.column_names)]
        left = ended.filter(pc.invert(beside))
        emptied.append(left)
        requests += of.requests - pc.count_distinct(left["request_id"]).as_py()
        if new.num_rows or left.num_rows or len(of.unasked) or of.relabelled.num_rows or len(night.marks.leaving):
            live = night.live.read(part, ["creative_id", *PLACE])
            changes[part] = _part(of, live, new, left, night.marks.leaving)
            filled += changes[part].filled
        else:
            filled += of.filled
    coverage = round(filled / requests, 4) if requests else 1.0
    return Publication(
        changes, requests, coverage, pa.concat_tables(emptied), _one_a_request(pa.concat_tables(outdone))
    )


def _ranked(painted: pa.Table, held: pa.Array, most: int) -> tuple[pa.Table, pa.Table]:
    """(what is published of painted rows, ranked behind the champions of its place, originals that are not).

    Champions and new ones are together at most `most`; the product's original picture never stands beside a champion.
    held  the place of each champion
    """
    counts, at = pc.value_counts(held), places(painted)
    before = counts.field("counts").take(pc.index_in(at, counts.field("values")))
    original = pc.and_(pc.fill_null(painted["fallback"], False), pc.is_valid(before))
    rows, before = (
        painted.filter(pc.invert(original)),
        pc.fill_null(before, 0).filter(pc.invert(original).combine_chunks()),
    )
    codes = places(rows).dictionary_encode().indices.to_numpy()
    order = np.lexsort((rows["rank"].to_numpy(), codes))
    first = np.searchsorted(codes[order], codes[order])  # where each one's place begins in that order
    ranks = np.empty(rows.num_rows, np.int64)
    ranks[order] = np.arange(rows.num_rows) - first
    ranks = pa.array(ranks + before.to_numpy(), pa.int32())
    rows = rows.set_column(rows.schema.get_field_index("rank"), "rank", ranks)
    return rows.filter(pc.less(rows["rank"], most)), painted.filter(original)


def _one_a_request(rows: pa.Table) -> pa.Table:
    at = pc.index_in(rows["request_id"].combine_chunks(), pc.unique(rows["request_id"]))
    _, first = np.unique(at.to_numpy(), return_index=True)
    return rows.take(pa.array(first))


def _part(of: PartFigures, live: pa.Table, new: pa.Table, emptied: pa.Table, leaving: pa.Array) -> PartChange:
    there, ids = places(live), live["creative_id"].combine_chunks()
    replaced = pc.is_in(there, pa.concat_arrays([places(new), places(emptied)]))
    replaced = pc.and_(replaced, pc.invert(pc.is_in(ids, of.champions["creative_id"].combine_chunks())))
    gone = pc.or_(pc.or_(pc.is_in(ids, leaving), replaced), pc.is_in(ids, of.unasked))
    stays = pc.invert(gone)
    return PartChange(
        new=new.select(["creative_id", "round", "rank"]),
        gone=ids.filter(gone),
        thinned=pc.unique(there.filter(pc.and_(stays, pc.is_in(there, there.filter(gone))))),
        relabelled=of.relabelled.filter(pc.is_in(of.relabelled["creative_id"], ids.filter(stays))),
        filled=len(pc.unique(pa.concat_arrays([there.filter(stays), places(new)]))),
    )


def commit(root: Root, config: GenerateConfig, night: NightPlan, publication: Publication) -> int | None:
    """Make the publication live in one commit; returns the version of tables/creatives that is live now.

    raises  PublishConflict, and LockLost; nothing of this run is live then
    """
    if not any(of.new.num_rows or len(of.gone) or of.relabelled.num_rows for of in publication.changes.values()):
        return night.base
    metadata = {"run_id": config.run_id, "recipe_id": night.recipe_id, "weights_revision": night.weights_revision}
    metadata |= {"git_commit": code_commit() or "", "job": "generate"}
    with (
        tempfile.TemporaryDirectory(prefix="adbooster-publish-") as folder,
        Change(root, "creatives", night.base, "creative_id", night.parts) as change,
    ):
        painted = _painted(root, config, night, publication, Path(folder) / "painted")
        for part, of in publication.changes.items():
            new = painted_once(_named(painted.read(part), of.new))
            if new.num_rows != of.new.num_rows:
                raise PublishConflict(
                    f"{of.new.num_rows - new.num_rows} staged creatives have gone since this run counted them: another run "
                    "or a vacuum took them; nothing of this run is live, run again"
                )
            new = schema.fill(new, schema.CREATIVES)
            change.replace(part, pa.concat_tables([new, _moved(night, part, of)]), of.gone)
        return change.commit(metadata)


def _painted(root: Root, config: GenerateConfig, night: NightPlan, publication: Publication, folder: Path) -> Spill:
    """All that is staged, with all columns, by part."""
    spill, held = Spill(folder, schema.STAGED), []
    folders = staged_folders(root, config.run_id, night.recipe_id)
    for staged in folders if any(of.new.num_rows for of in publication.changes.values()) else ():
        for rows in tables.staged_parts(root, staged, schema.STAGED):
            held.append(rows)
            if sum(map(len, held)) >= ROW_GROUP:  # staged parts are of a few rows each
                spill.add(pa.concat_tables(held).combine_chunks())
                held.clear()
    spill.add(pa.concat_tables([schema.STAGED.empty_table(), *held]).combine_chunks())
    spill.close()
    return spill


def _named(rows: pa.Table, new: pa.Table) -> pa.Table:
    """Of staged rows those that are published, with their ranks."""
    at = pc.index_in(_names(rows), _names(new))
    ranks = new["rank"].take(at.drop_null())
    rows = rows.filter(pc.is_valid(at))
    return rows.set_column(rows.schema.get_field_index("rank"), "rank", ranks)


def _names(rows: pa.Table) -> pa.Array:
    """The creative and round of each row: two rounds may end on one picture."""
    return pc.binary_join_element_wise(
        rows["creative_id"].combine_chunks(), rows["round"].combine_chunks().cast(pa.string()), " "
    )


def _moved(night: NightPlan, part: Part, of: PartChange) -> pa.Table:
    """Live rows that stay with another rank or arm."""
    if not len(of.thinned) and not of.relabelled.num_rows:
        return schema.CREATIVES.empty_table()
    rows = night.live.read(part)
    rows = rows.filter(pc.invert(pc.is_in(rows["creative_id"], of.gone)))
    at = pc.index_in(rows["creative_id"].combine_chunks(), of.relabelled["creative_id"].combine_chunks())
    there = places(rows)
    mine = pc.is_in(there, pa.concat_arrays([of.thinned, there.filter(pc.is_valid(at))]))
    rows, at = rows.filter(mine), at.filter(mine)
    closed = marks.close_ranks(rows)
    arms = pc.if_else(pc.is_valid(at), of.relabelled["arm"].combine_chunks().take(at), rows["arm"].combine_chunks())
    closed = closed.set_column(closed.schema.get_field_index("arm"), "arm", arms)
    return closed.filter(pc.or_(pc.is_valid(at), pc.not_equal(closed["rank"], rows["rank"])))
