"""The paper's experiment: creatives against the product on white and against the catalog's own scene."""

import numpy as np
import pyarrow as pa

from adbooster.contracts.evaluation import Experiment
from adbooster.measure.intervals import difference, ratio
from adbooster.measure.statistics import column

SCORERS = ("judge", "rank")


def experiments(name: str, measurements: pa.Table, published: bool = False) -> list[Experiment]:
    """Rows of the paper's table: by scorer, by pick and by family, `all` first.

    measurements  schema.LOOKS of one set
    published     they are live creatives, each its only candidate; otherwise best-of-1 is the first candidate by seed
                  and best-of-K the one that `rank` prefers, whoever scores it
    """
    picks = {"published": column(measurements, "best").astype(int)}
    if not published:
        most = max(map(len, measurements["rank_scores"].to_pylist()))
        picks = {"best-of-1": np.zeros(measurements.num_rows, int)}
        picks |= {f"best-of-{most}": column(measurements, "best").astype(int)} if most > 1 else {}
    family = np.asarray(measurements["family"].to_pylist(), object)
    groups = {"all": np.ones(measurements.num_rows, bool)}
    groups |= {f: family == f for f in sorted({f for f in family if f})}
    sides = {}
    for scorer in SCORERS:
        scores = measurements[f"{scorer}_scores"].to_pylist()
        for pick, at in picks.items():
            sides[scorer, pick] = np.asarray([s[i] for s, i in zip(scores, at, strict=True)], np.float64)
    return [
        _row(measurements.filter(pa.array(rows)), creative[rows], experiment=name, scorer=scorer, pick=pick, family=f)
        for (scorer, pick), creative in sides.items()
        for f, rows in groups.items()
    ]


def _row(measurements: pa.Table, creative: np.ndarray, **names: str) -> Experiment:
    products = measurements["product_id"].to_pylist()
    neutral, contextual = (column(measurements, f"{kind}_{names['scorer']}") for kind in ("neutral", "contextual"))
    return Experiment(
        **names,
        n=len(creative),
        creative=float(creative.mean()),
        neutral=float(neutral.mean()),
        contextual=float(np.nanmean(contextual)) if np.isfinite(contextual).any() else None,
        uplift_neutral=ratio(creative, neutral, products),
        uplift_contextual=ratio(creative, contextual, products),
        difference_neutral=difference(creative, neutral, products),
        difference_contextual=difference(creative, contextual, products),
    )
