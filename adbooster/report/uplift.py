"""CLIP scores of winners against the product on white."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

NORMAL_95 = 1.959964


class Uplift(BaseModel):
    """CLIP scores of the winners against the product on white, means over requests."""

    creatives: int
    clip_score: float
    neutral_score: float
    difference: float
    uplift_share: float | None
    """clip_score / neutral_score - 1; null where the neutral score is not positive"""
    low: float | None = None
    """of the 95 % interval of `uplift_share`: ratio of means, paired, linearised (Cochran, 1977, section 6.3)"""
    high: float | None = None


def uplift(creatives: pa.Table, families: dict[str, str]) -> dict[str, Uplift]:
    """By family and over `all`: the winners' mean CLIP score against the product's own picture on white."""
    best = creatives.select(["cohort_id", "clip_score", "neutral_score"]).filter(pc.equal(creatives["rank"], 0))
    family = pa.array([families[c] for c in best["cohort_id"].to_pylist()], pa.string())
    groups = {f: best.filter(pc.equal(family, f)) for f in sorted(set(families.values()))}
    return {name: _uplift(rows) for name, rows in {**groups, "all": best}.items() if rows.num_rows}


def _uplift(rows: pa.Table) -> Uplift:
    scores, neutrals = (rows[c].to_numpy().astype(float) for c in ("clip_score", "neutral_score"))
    score, neutral = float(np.mean(scores)), float(np.mean(neutrals))
    result = Uplift(
        creatives=rows.num_rows,
        clip_score=round(score, 4),
        neutral_score=round(neutral, 4),
        difference=round(score - neutral, 4),
        uplift_share=round(score / neutral - 1, 4) if neutral > 0 else None,
    )
    if neutral > 0 and rows.num_rows > 1:
        ratio = score / neutral
        half = NORMAL_95 * float(np.std(scores - ratio * neutrals, ddof=1)) / neutral / rows.num_rows**0.5
        result.low, result.high = round(ratio - 1 - half, 4), round(ratio - 1 + half, 4)
    return result


def percent(share: float | None) -> str:
    return "not defined" if share is None else f"{share:+.1%}"
