"""A night's creatives become what is live, in one commit or not at all."""

from collections.abc import Callable, Set

import pyarrow as pa
import pyarrow.compute as pc

from adbooster import marks, report, schema, tables
from adbooster.choose import Scenes
from adbooster.errors import CoverageTooLow
from adbooster.objects import Root
from adbooster.recipe import Gates
from adbooster.settings import code_commit


def publish(
    config, wanted: pa.Table, live: pa.Table, fresh: pa.Table, done, rejected: Set[str] = frozenset()
) -> pa.Table:
    """One commit that adds what was painted, replaces what it supersedes and retires what nobody wants any more.

    wanted  the night's requests; live  the table at `done.creatives_version`; fresh  painted rows (schema.STAGED)
    rejected  creatives that people rejected; they are retired
    done    gets the figures of the publication
    returns the rows that are live now
    raises  CoverageTooLow, PublishConflict; nothing of this run is live then
    """
    asked, new = set(places(wanted)), set(places(fresh))
    told = zip(places(live), live["creative_id"].to_pylist(), strict=True)
    stays = pa.array([at in asked and at not in new and name not in rejected for at, name in told], pa.bool_())
    gone = live.filter(pc.invert(stays))
    fresh = schema.fill(fresh, schema.CREATIVES)
    taken_off = gone.filter(pc.is_in(gone["creative_id"], pa.array(sorted(rejected), pa.string())))
    kept = marks.close_ranks(live.filter(stays), taken_off)
    moved = kept.filter(pc.not_equal(kept["rank"], live.filter(stays)["rank"]))
    after = pa.concat_tables([kept, fresh])
    done.coverage = round(len(set(places(after))) / wanted.num_rows, 4) if wanted.num_rows else 1.0
    if done.coverage < config.min_coverage:
        why = f", {done.left} are left by the {done.stopped}" if done.left else ""
        raise CoverageTooLow(
            f"{done.coverage:.1%} of {wanted.num_rows} requests are filled{why}, min_coverage is "
            f"{config.min_coverage:.1%}; nothing was published and the last night stays live; what is painted is kept"
        )
    done.retired = gone.num_rows
    if fresh.num_rows or gone.num_rows:
        metadata = {"run_id": config.run_id, "recipe_id": done.recipe_id, "weights_revision": done.weights_revision}
        metadata |= {"git_commit": code_commit() or "", "job": "generate"}
        drop = gone.filter(pc.invert(pc.is_in(gone["creative_id"], fresh["creative_id"])))["creative_id"].to_pylist()
        done.creatives_version = tables.merge(
            Root(config.root_uri),
            "creatives",
            pa.concat_tables([fresh, moved]),
            "creative_id",
            done.creatives_version,
            metadata,
            delete=drop,
        )
    families = dict(zip(wanted["cohort_id"].to_pylist(), wanted["family"].to_pylist(), strict=True))
    done.uplift = report.uplift(after, families)
    return after


def staying(gates: Gates, wanted: pa.Table, live: pa.Table, staged: pa.Table) -> Callable[[], Scenes]:
    """Makes the scenes of live creatives that stay: still wanted, and in a place that nothing was painted for."""
    asked, replaced = set(places(wanted)), set(places(staged))
    stays = live.filter(pa.array([p in asked and p not in replaced for p in places(live)], pa.bool_()))

    def taken() -> Scenes:
        scenes = Scenes(gates)
        scenes.take(stays)
        return scenes

    return taken


def places(rows: pa.Table) -> list[tuple[str, str, str]]:
    """What a creative is live for: product, cohort, placement."""
    return list(zip(*(rows[c].to_pylist() for c in ("product_id", "cohort_id", "placement")), strict=True))
