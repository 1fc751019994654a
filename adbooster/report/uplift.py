"""CLIP scores of winners against the product on white."""

import numpy as np
import pyarrow.compute as pc
from pydantic import BaseModel

from adbooster.storage.buckets import Scan

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


def uplift(live: Scan, families: dict[str, str]) -> dict[str, Uplift]:
    """By family and over `all`: the winners' mean CLIP score against the product's own picture on white.

    live  gives rows of schema.CREATIVES; families  of their cohorts
    """
    moments: dict[str, np.ndarray] = {}
    for rows in live(["cohort_id", "rank", "clip_score", "neutral_score"]):
        best = rows.filter(pc.equal(rows["rank"], 0))
        scores = np.stack([best[c].to_numpy().astype(float) for c in ("clip_score", "neutral_score")])
        own = np.array([families[c] for c in best["cohort_id"].to_pylist()], object)
        for family in dict.fromkeys(own):
            moments[family] = moments.get(family, 0) + _moments(scores[:, own == family])
    if not moments:
        return {}
    groups = {family: moments[family] for family in sorted(moments)} | {"all": np.sum(list(moments.values()), axis=0)}
    return {name: _uplift(found) for name, found in groups.items()}


def _moments(scores: np.ndarray) -> np.ndarray:
    """Of scores [2,N], winners and their products: N, both sums, both sums of squares, sum of products."""
    s, n = scores
    return np.array([len(s), s.sum(), n.sum(), (s * s).sum(), (n * n).sum(), (s * n).sum()])


def _uplift(moments: np.ndarray) -> Uplift:
    """moments  as `_moments`"""
    count, score, neutral, scores_2, neutrals_2, both = moments / np.array([1, *[moments[0]] * 5])
    result = Uplift(
        creatives=int(count),
        clip_score=round(score, 4),
        neutral_score=round(neutral, 4),
        difference=round(score - neutral, 4),
        uplift_share=round(score / neutral - 1, 4) if neutral > 0 else None,
    )
    if neutral > 0 and count > 1:
        ratio = score / neutral
        # Of the scores minus ratio times their products', whose mean is 0.
        variance = max(0.0, scores_2 - 2 * ratio * both + ratio**2 * neutrals_2) * count / (count - 1)
        half = NORMAL_95 * variance**0.5 / neutral / count**0.5
        result.low, result.high = round(ratio - 1 - half, 4), round(ratio - 1 + half, 4)
    return result


def percent(share: float | None) -> str:
    return "not defined" if share is None else f"{share:+.1%}"
