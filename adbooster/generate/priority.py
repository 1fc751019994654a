"""Which requests come first in nights that cannot paint them all, and what is written of those that are left."""

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pap

from adbooster.generate.value import CLASSES, Facts, order, valued
from adbooster.storage.objects import Root


def by_value(requests: pa.Table, live: pa.Table, facts: Facts) -> pa.Table:
    """The requests, the most valuable first; equals stay in their order, product by product."""
    return requests.take(order(valued(requests, live, facts), facts.settings))


def most_valuable(requests: pa.Table, live: pa.Table, facts: Facts, most: int = 10) -> list[dict[str, Any]]:
    """The most valuable requests with their factors (a dict a row of value.VALUED), best first."""
    values = valued(requests, live, facts)
    return values.take(order(values, facts.settings).slice(0, most)).to_pylist()


def write_left(root: Root, run_id: str, left: pa.Table, live: pa.Table, facts: Facts) -> tuple[str, dict[str, int]]:
    """Write what a night left to runs/<run_id>/left.parquet (value.VALUED, most valuable first); its address, and counts by class."""
    values = valued(left, live, facts)
    buffer = pa.BufferOutputStream()
    pap.write_table(values.take(order(values, facts.settings)), buffer)
    relative = f"runs/{run_id}/left.parquet"
    root.write(relative, buffer.getvalue().to_pybytes())
    counts = Counter(values["value_class"].to_pylist())
    return f"{root.uri}/{relative}", {name: counts[name] for name in CLASSES if counts[name]}
