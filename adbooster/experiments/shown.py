"""What was ever delivered (tables/shown), so that outcomes which come later can be joined to it."""

import logging

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts import schema
from adbooster.contracts.errors import PublishConflict
from adbooster.storage import tables
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)
ATTEMPTS = 5  # of a commit that other runs overtake


def remember(root: Root, rows: pa.Table, run_id: str) -> int:
    """Add what is delivered for the first time (schema.SHOWN) in one commit; returns how many rows are new or have another arm.

    raises  PublishConflict if others commit all the time
    """
    for attempt in range(1, ATTEMPTS + 1):
        base = tables.version(root, "shown")
        known = tables.read(root, "shown", version=base)
        new = _changed(rows, known, run_id)
        if not new.num_rows:
            return 0
        try:
            tables.merge(root, "shown", new, "creative_id", base, {"run_id": run_id})
        except PublishConflict as e:
            if attempt == ATTEMPTS:
                raise
            log.info("another run committed first, trying again: %s", e)
        else:
            return new.num_rows
    return 0


def of_deliveries(deliveries: pa.Table, creatives: pa.Table, cohorts: pa.Table) -> pa.Table:
    """What deliveries show (schema.SHOWN, without a run): each creative of a filled slot, and the originals of pairs.

    The original of a held-out pair is a control; that of another pair, which has no creative to show, is not, and has no margin.
    deliveries  schema.DELIVERIES; creatives  what is live; cohorts  cohort_id, family
    """
    ids = deliveries["creative_id"].filter(pc.is_null(deliveries["reason"]))
    own = creatives.filter(pc.is_in(creatives["creative_id"], pc.unique(ids)))
    kept = [
        deliveries.filter(pc.equal(deliveries["reason"], word))
        .group_by(["creative_id", "product_id", "cohort_id"])
        .aggregate([])
        for word in ("original", "holdout")
    ]
    rows = pa.concat_tables([schema.fill(part, schema.SHOWN) for part in (own, *kept)])
    control = pa.array(np.arange(rows.num_rows) >= own.num_rows + kept[0].num_rows)
    at = pc.index_in(rows["cohort_id"], value_set=cohorts["cohort_id"].combine_chunks())
    for name, values in (("control", control), ("family", cohorts["family"].take(at)), ("run_id", None)):
        values = pa.nulls(rows.num_rows, pa.string()) if values is None else values
        rows = rows.set_column(rows.schema.get_field_index(name), name, values)
    return schema.check(rows, schema.SHOWN)


def _changed(rows: pa.Table, known: pa.Table, run_id: str) -> pa.Table:
    """Of the rows those that are not known, as this run's, and known ones with another arm."""
    at = pc.index_in(rows["creative_id"], value_set=known["creative_id"].combine_chunks())
    new = rows.filter(pc.is_null(at))
    there = known.take(at.drop_null())
    arms = rows["arm"].filter(pc.is_valid(at))
    other = pc.not_equal(pc.fill_null(there["arm"], ""), pc.fill_null(arms, ""))
    moved = there.set_column(there.schema.get_field_index("arm"), "arm", arms).filter(other)
    runs = pa.array([run_id] * new.num_rows, pa.string())
    new = new.set_column(new.schema.get_field_index("run_id"), "run_id", runs)
    return pa.concat_tables([new, moved])
