"""Which requests come first in nights that cannot paint them all, and what is written of those that are left."""

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pap

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError, StorageError
from adbooster.generate.plan import WAVE_ROWS, NightPlan, without
from adbooster.generate.value import ASKED, CLASSES, LIVE, VALUED, Facts, order, valued
from adbooster.storage import outage
from adbooster.storage.buckets import Part
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)
EXAMPLES = 10
_MEMORY = "1GB"  # beyond it DuckDB sorts on disk


def waves(night: NightPlan) -> Iterator[pa.Table]:
    """Requests to paint (schema.REQUESTS), the most valuable first, WAVE_ROWS at a time; equals stay in their order."""
    names = pa.schema([VALUED.field(name) for name in ("value_class", "value")])
    values = [_valued(night, part, night.staged).select(names.names) for part in night.parts]
    ordered = order(pa.concat_tables(values), _facts(night).settings).to_numpy()
    ends = np.cumsum([0, *(rows.num_rows for rows in values)])
    for start in range(0, len(ordered), WAVE_ROWS):
        wanted = ordered[start : start + WAVE_ROWS]
        rows, at = [], []
        for part, first, after in zip(night.parts, ends, ends[1:], strict=False):
            mine = np.flatnonzero((wanted >= first) & (wanted < after))
            if len(mine):
                rows.append(without(night.missing(part), night.staged).take(pa.array(wanted[mine] - first)))
                at.append(mine)
        yield pa.concat_tables(rows).take(pa.array(np.argsort(np.concatenate(at))))


def write_left(root: Root, run_id: str, night: NightPlan, painted: pa.Table, stopped: str | None) -> dict[str, Any]:
    """Write what a night leaves to runs/<run_id>/left.parquet (value.VALUED, most valuable first).

    painted  what was painted, with request_id
    returns  its address, counts by class and the most valuable, of these and of what was painted: fields of the report
    """
    relative, counts, best = f"runs/{run_id}/left.parquet", Counter[str](), []
    with tempfile.TemporaryDirectory(prefix="adbooster-left-") as folder, outage.room(folder):
        for i, part in enumerate(night.parts):
            left = _valued(night, part, painted)
            pap.write_table(left, Path(folder) / f"{i:05d}.parquet", compression="lz4")
            counts += schema.counted(left["value_class"])
            done = _valued(night, part, night.staged)
            best.append(_most_valuable(without(done, left), _facts(night)))
        sorted_file = Path(folder) / "left"
        _sort(f"{folder}/*.parquet", sorted_file, _facts(night))
        first = pap.ParquetFile(sorted_file).iter_batches(EXAMPLES)
        examples = next(first, pa.RecordBatch.from_pylist([], VALUED)).to_pylist()
        root.put_file(sorted_file, relative)
    by_value = {name: counts[name] for name in CLASSES if counts[name]}
    words = ", ".join(f"{n} {name}" for name, n in by_value.items())
    log.warning("%s is used up: %d requests are left for the next night (%s)", stopped, counts.total(), words)
    return {
        "left_uri": f"{root.uri}/{relative}",
        "left_by_value": by_value,
        "left_most_valuable": examples,
        "painted_most_valuable": _most_valuable(pa.concat_tables(best), _facts(night)).to_pylist(),
    }


def _valued(night: NightPlan, part: Part, painted: pa.Table) -> pa.Table:
    """What the requests of a part that are not painted are worth (VALUED)."""
    return valued(without(night.missing(part, ASKED), painted), night.live.read(part, LIVE), _facts(night))


def _facts(night: NightPlan) -> Facts:
    if night.facts is None:
        raise ConfigError("a night without deadline and gpu_hours orders nothing by value")
    return night.facts


def _most_valuable(values: pa.Table, facts: Facts) -> pa.Table:
    return values.take(order(values, facts.settings).slice(0, EXAMPLES))


def _sort(source: str, target: Path, facts: Facts) -> None:
    """Files of VALUED as one file, the most valuable first. raises StorageError where the disk does not hold it"""
    classes = "[" + ", ".join(f"'{name}'" for name in CLASSES) + "]"
    first = f"list_position({classes}, value_class), " if facts.settings.classes_first else ""
    by = f"{first}value DESC, product_id, cohort_id, placement"
    try:
        with duckdb.connect(config={"memory_limit": _MEMORY, "temp_directory": str(target.parent / "sort")}) as db:
            db.sql(f"COPY (SELECT * FROM read_parquet('{source}') ORDER BY {by}) TO '{target}' (FORMAT parquet)")
    except (duckdb.IOException, duckdb.OutOfMemoryException) as e:
        raise StorageError(f"what the night leaves could not be sorted on the disk of {target.parent}: {e}") from e
