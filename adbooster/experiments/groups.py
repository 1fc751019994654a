"""Rows to groups, in columns: dense numbers of what rows have in common."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def codes(*columns: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """A number 0, 1, ... for each row, equal where all columns are equal (int64 [n]); null is a value of its own."""
    joined = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        flat = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        encoded = pc.dictionary_encode(flat, null_encoding="encode")
        joined = joined * max(1, len(encoded.dictionary)) + encoded.indices.to_numpy().astype(np.int64)
        joined = np.unique(joined, return_inverse=True)[1]
    return joined


def parents(codes_of: np.ndarray, parent_codes: np.ndarray) -> np.ndarray:
    """The parent of each group, where all rows of a group have one parent (int64 [groups])."""
    out = np.zeros(int(codes_of.max(initial=-1)) + 1, np.int64)
    out[codes_of] = parent_codes
    return out
