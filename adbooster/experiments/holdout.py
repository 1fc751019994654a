"""Held-out pairs: which they are follows from their names alone, so it is the same in every stage and night.

What shows the shop's own picture has a name too: of a held-out pair it is the control, of another one the pair's original, which
counts on the side of the creatives, as the pair was meant to have one (intention to treat).
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts.naming import digest, digests, position
from adbooster.experiments.config import Holdout

_ORIGINAL = "original"


def held_out(product_ids: pa.Array, cohort_ids: pa.Array, holdout: Holdout) -> pa.Array:
    """Of each pair whether it keeps the original picture (bool [n]); a larger share holds out the same pairs and more."""
    if not holdout.share:
        return pa.array(np.zeros(len(product_ids), bool))
    return pa.array(positions(product_ids, cohort_ids, "holdout", holdout.salt) < holdout.share)


def positions(product_ids: pa.Array, cohort_ids: pa.Array, *purpose: str) -> np.ndarray:
    """Where each pair lies between 0 and 1 for a purpose, evenly and by its names alone (float64 [n])."""
    names = digests(product_ids, cohort_ids, *purpose)
    return np.array([position(name) for name in names.to_pylist()], np.float64)


def control_id(product_id: str, cohort_id: str) -> str:
    """What the original picture of a held-out pair is called in deliveries and outcomes: 16 hex digits, as a creative's id."""
    return digest("control", product_id, cohort_id)[:16]


def original_id(product_id: str, cohort_id: str) -> str:
    """What the original picture is called of a pair that is not held out and has no creative to show: 16 hex digits."""
    return digest(_ORIGINAL, product_id, cohort_id)[:16]


def original_ids(product_ids: pa.Array | pa.ChunkedArray, cohort_ids: pa.Array | pa.ChunkedArray) -> pa.Array:
    """`original_id` of many pairs."""
    return pc.utf8_slice_codeunits(digests(_ORIGINAL, product_ids, cohort_ids), 0, 16)
