"""A night's creatives become what is live, in one commit or not at all."""

import tempfile
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts import schema
from adbooster.contracts.errors import PublishConflict
from adbooster.contracts.settings import code_commit
from adbooster.generate import marks
from adbooster.generate.config import GenerateConfig
from adbooster.generate.plan import NightPlan, PartFigures, places
from adbooster.generate.value import PLACE
from adbooster.painting.requests import painted_once, staged_folders
from adbooster.storage import buckets, tables
from adbooster.storage.buckets import ROW_GROUP, Change, Part, Spill
from adbooster.storage.objects import Root


@dataclass(frozen=True)
class PartChange:
    """What one commit would change in a part.

    new      creative_id and round of what is added
    gone     ids of live creatives that leave, or that a new one replaces
    thinned  requests that keep creatives after one of theirs was rejected: those are ranked anew
    filled   requests that have a creative after it
    """

    new: pa.Table
    gone: pa.Array
    thinned: pa.Array
    filled: int


@dataclass(frozen=True)
class Publication:
    """What one commit would change, of the parts that change; coverage  share of the requests with a creative after it (0-1)"""

    changes: dict[Part, PartChange]
    requests: int
    coverage: float

    @property
    def retired(self) -> int:
        """Live rows that are no longer live."""
        return sum(len(change.gone) for change in self.changes.values())


def plan_publication(night: NightPlan, painted: pa.Table, emptied: pa.Table) -> Publication:
    """Add what was painted, replace what it supersedes, retire what no request names or a person rejected.

    painted  new rows (plan.JUDGED); emptied  rows of requests that stay empty, as people rejected all that they end on
    """
    changes, filled, requests = {}, 0, 0
    own, empty = buckets.numbers(painted["product_id"]), buckets.numbers(emptied["product_id"])
    for part in night.parts:
        of, mine, left = night.of[part], painted.filter(part.has(own)), emptied.filter(part.has(empty))
        requests += of.requests - pc.count_distinct(left["request_id"]).as_py()
        if mine.num_rows or left.num_rows or len(of.unasked) or night.marks.rejected:
            changes[part] = _part(
                of, night.live.read(part, ["creative_id", "request_id", *PLACE]), mine, left, night.marks.rejected
            )
            filled += changes[part].filled
        else:
            filled += of.filled
    return Publication(changes, requests, round(filled / requests, 4) if requests else 1.0)


def _part(of: PartFigures, live: pa.Table, painted: pa.Table, emptied: pa.Table, rejected: Set[str]) -> PartChange:
    there, ids = places(live), live["creative_id"].combine_chunks()
    refused = pc.is_in(ids, pa.array(sorted(rejected), pa.string()))
    replaced = pc.is_in(there, pa.concat_arrays([places(painted), places(emptied)]))
    gone = pc.or_(pc.or_(refused, replaced), pc.is_in(ids, of.unasked))
    stays = pc.invert(gone)
    requests = live["request_id"].combine_chunks()
    thinned = pc.unique(requests.filter(refused))
    return PartChange(
        new=painted.select(["creative_id", "round"]),
        gone=ids.filter(gone),
        thinned=thinned.filter(pc.is_in(thinned, requests.filter(stays))),
        filled=len(pc.unique(pa.concat_arrays([there.filter(stays), places(painted)]))),
    )


def commit(root: Root, config: GenerateConfig, night: NightPlan, publication: Publication) -> int | None:
    """Make the publication live in one commit; returns the version of tables/creatives that is live now.

    raises  PublishConflict, and LockLost; nothing of this run is live then
    """
    if not any(of.new.num_rows or len(of.gone) for of in publication.changes.values()):
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
    """Of staged rows those that are published."""
    return rows.filter(pc.is_in(_names(rows), _names(new)))


def _names(rows: pa.Table) -> pa.Array:
    """The creative and round of each row: two rounds may end on one picture."""
    return pc.binary_join_element_wise(
        rows["creative_id"].combine_chunks(), rows["round"].combine_chunks().cast(pa.string()), " "
    )


def _moved(night: NightPlan, part: Part, of: PartChange) -> pa.Table:
    """Live rows that stay with another rank."""
    if not len(of.thinned):
        return schema.CREATIVES.empty_table()
    rows = night.live.read(part)
    rows = rows.filter(pc.is_in(rows["request_id"], of.thinned))
    rows = rows.filter(pc.invert(pc.is_in(rows["creative_id"], of.gone)))
    closed = marks.close_ranks(rows)
    return closed.filter(pc.not_equal(closed["rank"], rows["rank"]))
