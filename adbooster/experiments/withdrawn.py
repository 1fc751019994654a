"""What was withdrawn (tables/withdrawals): it is neither delivered nor learned of."""

from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from adbooster.storage import tables
from adbooster.storage.objects import Root

Kind = Literal["product", "cohort", "creative"]
KINDS: tuple[Kind, ...] = ("product", "cohort", "creative")


class Withdrawn(NamedTuple):
    """Ids that were withdrawn, by kind."""

    product: frozenset[str]
    cohort: frozenset[str]
    creative: frozenset[str]

    def covers(self, row: dict) -> bool:
        """Whether a row with product_id, cohort_id and creative_id is withdrawn."""
        return any(row[f"{kind}_id"] in getattr(self, kind) for kind in KINDS)

    def among(self, rows: pa.Table) -> pa.ChunkedArray:
        """Whether each of the rows, which have these columns, is withdrawn."""
        product, cohort, creative = (
            pc.is_in(rows[f"{kind}_id"], pa.array(sorted(getattr(self, kind)), pa.string())) for kind in KINDS
        )
        return pc.or_(pc.or_(product, cohort), creative)

    def add(self, kind: Kind, values: list[str]) -> "Withdrawn":
        return self._replace(**{kind: getattr(self, kind) | set(values)})


def read_withdrawn(root: Root) -> Withdrawn:
    rows = tables.read(root, "withdrawals", ["kind", "value"]).to_pylist()
    return Withdrawn(*(frozenset(r["value"] for r in rows if r["kind"] == kind) for kind in KINDS))
