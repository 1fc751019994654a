"""Held-out pairs: which they are follows from their names alone, so it is the same in every stage and night."""

import numpy as np
import pyarrow as pa

from adbooster.contracts.naming import digest, digests
from adbooster.experiments.config import Holdout

_SCALE = float(1 << 32)


def held_out(product_ids: pa.Array, cohort_ids: pa.Array, holdout: Holdout) -> pa.Array:
    """Of each pair whether it keeps the original picture (bool [n]); a larger share holds out the same pairs and more."""
    if not holdout.share:
        return pa.array(np.zeros(len(product_ids), bool))
    return pa.array(positions(product_ids, cohort_ids, "holdout", holdout.salt) < holdout.share)


def positions(product_ids: pa.Array, cohort_ids: pa.Array, *purpose: str) -> np.ndarray:
    """Where each pair lies between 0 and 1 for a purpose, evenly and by its names alone (float64 [n])."""
    names = digests(product_ids, cohort_ids, *purpose)
    return np.array([int(name[:8], 16) for name in names.to_pylist()], np.float64) / _SCALE


def control_id(product_id: str, cohort_id: str) -> str:
    """What the original picture of a held-out pair is called in deliveries and outcomes: 16 hex digits, as a creative's id."""
    return digest("control", product_id, cohort_id)[:16]
