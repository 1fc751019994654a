"""Measurements made up for tests: values that a test sets, and the same unremarkable ones for all else."""

import numpy as np
import pyarrow as pa

from adbooster.contracts import schema


def looks(products=6, cohorts=4, **columns) -> pa.Table:
    """One look a product and cohort; `columns` hold a value for all, or a function of (product, cohort) numbers."""
    rows = [_look(p, c, columns) for p in range(products) for c in range(cohorts)]
    return pa.Table.from_pylist(rows, schema.LOOKS)


def _look(p: int, c: int, columns: dict) -> dict:
    rng = np.random.default_rng(100 * p + c)
    vector = rng.normal(size=16)
    row = dict.fromkeys(schema.LOOKS.names) | {
        "look_id": f"{p}-{c}",
        "product_id": f"p{p}",
        "cohort_id": f"c{c}",
        "placement": "square",
        "family": "events" if c % 2 else "seasons",
        "text": "a spooky night",
        "prompt_style": "qc",
        "rank_scores": [0.5, 0.6],
        "judge_scores": [0.4, 0.45],
        "best": 1,
        "neutral_rank": 0.3,
        "neutral_judge": 0.2,
        "contextual_rank": 0.4,
        "contextual_judge": 0.3,
        "product_max_diff": 0,
        "psnr_db": 99.0,
        "expansion_share": 0.02,
        "sharpness": 3.0 + 0.1 * p,
        "exposure": 0.5,
        "clipped_share": 0.0,
        "background_phash": rng.bytes(8).hex(),
        "background_simhash": rng.bytes(32).hex(),
        "scene_vector": (vector / np.linalg.norm(vector)).tolist(),
        "features": vector.tolist(),
        "fallback": False,
        "gpu_s": 1.0,
    }
    return row | {name: value(p, c) if callable(value) else value for name, value in columns.items()}
