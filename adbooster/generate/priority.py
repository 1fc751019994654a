"""Which requests are worth most, for nights that cannot paint them all."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pap

from adbooster.generate.publish import places
from adbooster.storage.objects import Root

CLASSES = ("new_product", "low_margin", "new_place", "high_margin")
"""Most valuable first.

new_product  nothing of the product is live
low_margin   the live creative that it would replace has at most the median margin of those to be replaced; from the lowest up
new_place    the product is live, but nothing of it for this cohort and placement
high_margin  the others; from the lowest margin up
"""
VALUED = pa.schema(
    [(name, pa.string()) for name in ("request_id", "product_id", "cohort_id", "placement", "value")]
    + [("margin", pa.float32())]
)
"""A request, its class, and the margin of the creative that is live in its place, null where none is."""


def valued(requests: pa.Table, live: pa.Table) -> pa.Table:
    """Each request's class and margin (VALUED), in the order of `requests`.

    live  rows of schema.CREATIVES; of several in one place the best counts
    """
    best = live.filter(pc.equal(live["rank"], 0))
    margins = dict(zip(places(best), best["margin"].to_pylist(), strict=True))
    known = set(best["product_id"].to_pylist())
    margin = np.array([margins.get(place, np.nan) for place in places(requests)], np.float32)
    replaces = np.isfinite(margin)
    low = replaces & (margin <= np.median(margin[replaces])) if replaces.any() else replaces
    product_known = np.array([p in known for p in requests["product_id"].to_pylist()], bool)
    at = np.select([~product_known, low, ~replaces], [0, 1, 2], 3)
    columns = {name: requests[name] for name in ("request_id", "product_id", "cohort_id", "placement")}
    columns["value"] = pa.array([CLASSES[i] for i in at], pa.string())
    columns["margin"] = pa.array(margin, pa.float32(), mask=~replaces)
    return pa.table(columns).cast(VALUED)


def by_value(requests: pa.Table, live: pa.Table) -> pa.Table:
    """The requests, the most valuable first; equals stay in their order, product by product."""
    values = valued(requests, live)
    at = pc.index_in(values["value"], value_set=pa.array(CLASSES)).to_numpy()
    ranked = np.isin(at, [CLASSES.index("low_margin"), CLASSES.index("high_margin")])
    margin = np.where(ranked, np.nan_to_num(values["margin"].to_numpy()), 0)
    return requests.take(pa.array(np.lexsort((margin, at))))


def write_left(root: Root, run_id: str, left: pa.Table, live: pa.Table) -> tuple[str, dict[str, int]]:
    """Write what a night left to runs/<run_id>/left.parquet (VALUED, most valuable first); its address, and counts by class."""
    rows = valued(by_value(left, live), live)
    buffer = pa.BufferOutputStream()
    pap.write_table(rows, buffer)
    relative = f"runs/{run_id}/left.parquet"
    root.write(relative, buffer.getvalue().to_pybytes())
    counts = Counter(rows["value"].to_pylist())
    return f"{root.uri}/{relative}", {name: counts[name] for name in CLASSES if counts[name]}
