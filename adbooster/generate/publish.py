"""A night's creatives become what is live, in one commit or not at all."""

from collections.abc import Set
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts import schema
from adbooster.contracts.settings import code_commit
from adbooster.generate import marks
from adbooster.generate.config import GenerateConfig
from adbooster.generate.plan import NightPlan
from adbooster.storage import tables
from adbooster.storage.objects import Root


@dataclass(frozen=True)
class Publication:
    """What one commit would change.

    live      rows that are live after it (schema.CREATIVES)
    changed   of these, rows that are new or have another rank
    retired   rows that are no longer live
    coverage  share of the requests that have a creative after it (0-1)
    """

    live: pa.Table
    changed: pa.Table
    retired: pa.Table
    coverage: float


def plan_publication(
    requests: pa.Table, live: pa.Table, painted: pa.Table, rejected: Set[str] = frozenset()
) -> Publication:
    """Add what was painted, replace what it supersedes, retire what no request names or a person rejected.

    requests  the night's (schema.REQUESTS); live  rows at the version that the night was planned on
    painted   new rows (schema.STAGED); rejected  ids of creatives that people rejected
    """
    asked, new = set(places(requests)), set(places(painted))
    ids = zip(places(live), live["creative_id"].to_pylist(), strict=True)
    stays = pa.array([at in asked and at not in new and name not in rejected for at, name in ids], pa.bool_())
    retired = live.filter(pc.invert(stays))
    painted = schema.fill(painted, schema.CREATIVES)
    rejected_rows = retired.filter(pc.is_in(retired["creative_id"], pa.array(sorted(rejected), pa.string())))
    kept = marks.close_ranks(live.filter(stays), rejected_rows)
    moved = kept.filter(pc.not_equal(kept["rank"], live.filter(stays)["rank"]))
    after = pa.concat_tables([kept, painted])
    coverage = round(len(set(places(after))) / requests.num_rows, 4) if requests.num_rows else 1.0
    return Publication(after, pa.concat_tables([painted, moved]), retired, coverage)


def commit(root: Root, config: GenerateConfig, night: NightPlan, publication: Publication) -> int | None:
    """Make the publication live in one commit; returns the version of tables/creatives that is live now.

    raises  PublishConflict, and LockLost; nothing of this run is live then
    """
    if not publication.changed.num_rows and not publication.retired.num_rows:
        return night.base
    metadata = {"run_id": config.run_id, "recipe_id": night.recipe_id, "weights_revision": night.weights_revision}
    metadata |= {"git_commit": code_commit() or "", "job": "generate"}
    retired = publication.retired
    replaced = pc.is_in(retired["creative_id"], publication.changed["creative_id"].combine_chunks())
    drop = retired.filter(pc.invert(replaced))["creative_id"].to_pylist()
    return tables.merge(root, "creatives", publication.changed, "creative_id", night.base, metadata, delete=drop)


def places(rows: pa.Table) -> list[tuple[str, str, str]]:
    """What a creative is live for: product, cohort, placement."""
    return list(zip(*(rows[c].to_pylist() for c in ("product_id", "cohort_id", "placement")), strict=True))
