"""Names and seeds that follow from content alone, and the addresses of catalogs."""

import hashlib
import re
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

CATALOGS = "catalogs"  # the folder of a root that holds its catalogs
PLACE = ("product_id", "cohort_id", "placement")  # what a creative is live for
BUCKETS = 1 << 16
_POSITIONS = float(1 << 32)
_BETWEEN = "\x1f"


def digest(*parts: str) -> str:
    """SHA-256 hex of the parts, each kept apart from the next."""
    return hashlib.sha256(_BETWEEN.join(parts).encode()).hexdigest()


def digests(*parts: pa.Array | pa.ChunkedArray | str) -> pa.Array:
    """`digest` of many rows: columns of texts without nulls, and texts that all rows share."""
    joined = pc.binary_join_element_wise(*parts, _BETWEEN)
    return pa.array([hashlib.sha256(text.encode()).hexdigest() for text in joined.to_pylist()], pa.string())


def position(name: str) -> float:
    """Where a digest lies, 0 <= position < 1: evenly, by its first 32 bits."""
    return int(name[:8], 16) / _POSITIONS


def row_keys(rows: pa.Table, columns: Iterable[str]) -> pa.Array:
    """The columns of each row as one text, null where one of them is; cleaned texts hold nothing of what is between."""
    return pc.binary_join_element_wise(*(rows[name].combine_chunks() for name in columns), _BETWEEN)


def seed_of(name: str, number: int) -> int:
    """A seed, 0 <= seed < 2^63, from content alone: of a request's candidate, or of a product's place."""
    return int(digest(name, str(number))[:16], 16) >> 1


def bucket(product_id: str) -> int:
    """0 <= bucket < BUCKETS, the first 16 bits of the id's SHA-256: rows of one product are stored together."""
    return int.from_bytes(hashlib.sha256(product_id.encode()).digest()[:2])


def catalog_uri(root_uri: str, name: str) -> str:
    """The address of a root's catalog, `<root_uri>/catalogs/<name>`; an address that is this catalog's already stays."""
    address = root_uri.rstrip("/")
    return address if address.endswith(f"/{CATALOGS}/{name}") else f"{address}/{CATALOGS}/{name}"


def split_catalog(uri: str) -> tuple[str, str] | None:
    """(the root's address, the catalog's name) of an address that `catalog_uri` makes; None for any other."""
    match = re.fullmatch(rf"(.*[^/])/{CATALOGS}/([A-Za-z0-9][A-Za-z0-9._-]{{0,99}})", uri)
    return (match[1], match[2]) if match else None
