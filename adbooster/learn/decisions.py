"""What outcomes decide, written where other stages read it: tables/allocations and tables/marks."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts import schema
from adbooster.contracts.naming import PLACE, digest, row_keys
from adbooster.experiments import outcomes
from adbooster.experiments.allocation import RETIREMENTS, VARIANTS, Posterior
from adbooster.experiments.groups import codes
from adbooster.experiments.holdout import held_out
from adbooster.experiments.withdrawn import read_withdrawn
from adbooster.learn.config import AllocationSummary, ArmShare, ExperimentShares, LearnConfig
from adbooster.storage import tables
from adbooster.storage.objects import Root

_RETIRED = "runs/{}/retired.json"
DECIDED = 0.8  # share above which a place has decided
_MARKED = (*PLACE, "request_id", "sha256")


def live_variants(root: Root, config: LearnConfig, marks: pa.Table) -> pa.Table:
    """Live creatives of places that have several, of pairs that are not held out: VARIANTS, request_id and sha256.

    marks  schema.MARKS: what is rejected or retired already is on its way out, as is what was withdrawn
    """
    live = tables.read(root, "creatives", ["creative_id", "margin", *_MARKED])
    leaving = marks.filter(pc.is_in(marks["mark"], pa.array(["rejected", "retired"])))["creative_id"].combine_chunks()
    gone = pc.or_(pc.is_in(live["creative_id"], leaving), read_withdrawn(root).among(live))
    stays = pc.invert(gone)
    live = live.filter(pc.and_(stays, pc.invert(held_out(live["product_id"], live["cohort_id"], config.holdout))))
    keys = row_keys(live, PLACE)
    counts = pc.value_counts(keys)
    several = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    live = live.filter(pc.is_in(keys, several))
    live = live.append_column("family", outcomes.families_of(root, live["cohort_id"]))
    return live.select([*VARIANTS.names, "request_id", "sha256"]).combine_chunks()


def inputs_of(root: Root, config: LearnConfig, variants: pa.Table, families: list[str]) -> str:
    """A name of all that shares follow from, but the shares that hold."""
    published = tables.published(root, "outcomes")
    settings = config.model_dump(mode="json", include={"allocation", "experiments"})
    ids = sorted(variants["creative_id"].to_pylist())
    return digest(json.dumps(settings), str(published and published.version), *families, "", *ids)


def publish_shares(root: Root, rows: pa.Table, inputs: str, run_id: str) -> bool:
    """Put the shares in place of those that hold, in one commit, unless they follow from the same inputs; whether it did."""
    base = tables.version(root, "allocations")
    nothing = base is None and not rows.num_rows
    if nothing or tables.metadata(root, "allocations").get("inputs") == inputs:
        return False
    runs = pa.array([run_id] * rows.num_rows, pa.string())
    rows = rows.set_column(rows.schema.get_field_index("run_id"), "run_id", runs)
    tables.replace(root, "allocations", rows.to_batches(), base, {"run_id": run_id, "inputs": inputs})
    return True


def retired_before(root: Root, marks: pa.Table, run_id: str) -> pa.Table:
    """What this run has marked as retired before it was killed (RETIREMENTS)."""
    own = pc.and_(pc.equal(marks["mark"], "retired"), pc.equal(marks["run_id"], run_id))
    own = marks.filter(pc.fill_null(own, False))["creative_id"].combine_chunks()
    if not len(own):
        return RETIREMENTS.empty_table()
    listed = pa.Table.from_pylist(json.loads(root.read(_RETIRED.format(run_id))), RETIREMENTS)
    return listed.filter(pc.is_in(listed["creative_id"], own))


def publish_retired(
    root: Root, retired: pa.Table, before: pa.Table, variants: pa.Table, base: int | None, run_id: str
) -> None:
    """List creatives (RETIREMENTS) after those of `before`, and mark them as retired on top of the marks that they were chosen by."""
    if not retired.num_rows:
        return
    root.write_json(_RETIRED.format(run_id), pa.concat_tables([before, retired]).to_pylist())
    rows = variants.filter(pc.is_in(variants["creative_id"], retired["creative_id"].combine_chunks()))
    marks = rows.select(["creative_id", *_MARKED])
    for name, value in (("mark", "retired"), ("run_id", run_id)):
        marks = marks.append_column(name, pa.array([value] * rows.num_rows, pa.string()))
    tables.merge(root, "marks", marks.select(schema.MARKS.names), "creative_id", base, {"run_id": run_id})


def summary(rows: pa.Table, rates: Posterior) -> AllocationSummary:
    """The shares of variants (schema.ALLOCATIONS) in a few figures."""
    some = rows.filter(pc.equal(rows["level"], "variant"))
    if not some.num_rows:
        return AllocationSummary()
    place, weight = codes(*(some[n] for n in PLACE)), some["weight"].to_numpy().astype(np.float64)
    members, largest = np.bincount(place), np.zeros(int(place.max()) + 1)
    np.maximum.at(largest, place, weight)
    several = members > 1
    entropy = np.bincount(place, -weight * np.log(np.maximum(weight, 1e-12)))[several] / np.log(members[several])
    return AllocationSummary(
        places=int(several.sum()),
        variants=int(members[several].sum()),
        mean_largest=float(largest[several].mean()) if several.any() else None,
        decided=int((largest[several] > DECIDED).sum()),
        entropy=float(entropy.mean()) if several.any() else None,
        margin_slope=rates.margin.slope,
        strength=rates.strength,
    )


def experiment_shares(rows: pa.Table, config: LearnConfig) -> list[ExperimentShares]:
    """The shares of arms (schema.ALLOCATIONS) by experiment, families and arms in order."""
    arms = rows.filter(pc.equal(rows["level"], "arm"))
    arms = arms.sort_by([("family", "ascending"), ("arm", "ascending")])
    return [
        ExperimentShares(
            name=e.name,
            ended=e.ended,
            arms=[
                ArmShare(**{n: row[n] for n in ArmShare.model_fields})
                for row in arms.filter(pc.equal(arms["experiment"], e.name)).to_pylist()
            ],
        )
        for e in config.experiments
    ]
