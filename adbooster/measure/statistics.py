"""Measurements to figures: one value a picture, their means with intervals, and paired differences."""

from collections import Counter
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from adbooster.contracts.evaluation import COPY, KINDS, Figure, Interval, Kind
from adbooster.measure import diversity, intervals

_COLUMNS = {"product_psnr": "psnr_db"}
_PAINTED = ("sharpness", "exposure", "clipped_share", "expansion_share", "people", "text_in_scene", "product_psnr")


def values(measurements: pa.Table) -> dict[str, np.ndarray]:
    """By name of KINDS one float a measurement (schema.LOOKS), NaN where nothing was measured."""
    best = measurements["best"].to_pylist()
    by_name = {
        f"{m}_score": np.array(
            [s[b] for s, b in zip(measurements[f"{m}_scores"].to_pylist(), best, strict=True)], np.float64
        )
        for m in ("judge", "rank")
    }
    for name in ("product_max_diff", *_PAINTED, "gpu_s"):
        by_name[name] = column(measurements, _COLUMNS.get(name, name))
    by_name["fallbacks"] = measurements["fallback"].to_numpy().astype(np.float64)
    inspected = np.isfinite(by_name["expansion_share"])
    copies = np.nan_to_num(column(measurements, "copy_similarity"), nan=-1) > COPY
    by_name["second_copies"] = np.where(inspected, copies, np.nan)
    marked = ("product_id", "cohort_id", "placement", "background_phash", "background_simhash")
    named = pa.table(
        {n: measurements[n] for n in marked}
        | {"creative_id": measurements["look_id"], "clip_score": by_name["rank_score"]}
    )
    vectors = scene_vectors(measurements)
    for kind in ("cohort", "product"):
        groups = measurements[f"{kind}_id"].to_pylist()
        by_name[f"duplicates_of_{kind}"] = diversity.repeats(named, f"{kind}_id", diversity.EXACT)
        by_name[f"near_duplicates_of_{kind}"] = diversity.repeats(named, f"{kind}_id", diversity.NEAR)
        by_name[f"diversity_of_{kind}"] = diversity.apart(vectors, groups)
    return {name: by_name[name] for name in KINDS}


def column(measurements: pa.Table, name: str) -> np.ndarray:
    """A column as float, NaN for null."""
    return np.array([np.nan if v is None else v for v in measurements[name].to_pylist()], np.float64)


def scene_vectors(measurements: pa.Table) -> np.ndarray:
    """float [N,D], a row of NaN where a picture has no scene of its own."""
    rows = measurements["scene_vector"].to_pylist()
    width = max((len(r) for r in rows if r), default=1)
    return np.array([r or [np.nan] * width for r in rows], np.float64).reshape(len(rows), width)


def figures(measurements: pa.Table, prefix: str = "") -> list[Figure]:
    """The means of everything measured, with intervals over products as clusters; what was not measured is left out."""
    products, out = measurements["product_id"].to_pylist(), []
    for name, each in values(measurements).items():
        spread = intervals.mean(each, products)
        if spread:
            out.append(_figure(prefix + name, KINDS[name], int(np.isfinite(each).sum()), spread))
    out += _by_word(measurements, prefix)
    vectors = scene_vectors(measurements)
    vectors = vectors[np.isfinite(vectors).all(axis=1)]
    if len(vectors):
        meaning = f"groups of scenes closer than {diversity.SAME_SCENE} (cosine distance, judge, average linkage)"
        count = diversity.clusters(vectors)
        out.append(
            Figure(name=f"{prefix}scene_clusters", unit="clusters", n=len(vectors), value=count, meaning=meaning)
        )
    return out


def _by_word(measurements: pa.Table, prefix: str) -> list[Figure]:
    """Shares of fall-backs by reason, and what an accepted creative costs."""
    n, reasons = measurements.num_rows, measurements["fallback_reason"].to_pylist()
    out = [
        _figure(
            f"{prefix}fallback: {w}",
            Kind("share", -1, f"requests that fell back, last for {w}"),
            n,
            intervals.share(reasons.count(w), n),
        )
        for w in sorted({r for r in reasons if r})
    ]
    spent, accepted = column(measurements, "gpu_s"), 1 - measurements["fallback"].to_numpy().astype(np.float64)
    cost = intervals.ratio(
        spent, np.where(np.isfinite(spent), accepted, np.nan), measurements["product_id"].to_pylist()
    )
    if cost:
        cost = Interval.model_validate({k: None if v is None else v + 1 for k, v in cost.model_dump().items()})
        kind = Kind("s", -1, "seconds of painting actors for each creative that is not the original")
        out.append(_figure(f"{prefix}gpu_s_per_accepted", kind, n, cost))
    return out


def rejects(words: list[str | None], what: str) -> list[Figure]:
    """The share of every reject word among `words` (null: not rejected), largest first, with Wilson's interval."""
    counts = Counter(w for w in words if w)
    return [
        _figure(
            f"reject: {w} ({what})",
            Kind("share", -1, f"{what} turned down for {w}"),
            len(words),
            intervals.share(n, len(words)),
        )
        for w, n in counts.most_common()
    ]


def _figure(name: str, kind: Kind, n: int, spread: Interval) -> Figure:
    return Figure(
        name=name, unit=kind.unit, n=n, value=spread.mean, low=spread.low, high=spread.high, meaning=kind.meaning
    )


class Difference(NamedTuple):
    """One figure of two sets on the same pairs: mean of each, and the paired difference of the first from the second."""

    name: str
    n: int
    first: float
    second: float
    difference: Interval


def differences(first: pa.Table, second: pa.Table) -> list[Difference]:
    """First minus second by figure, paired by product, cohort and placement; products are the clusters."""
    sides = []
    for measurements in (first, second):
        keys = zip(*(measurements[c].to_pylist() for c in ("product_id", "cohort_id", "placement")), strict=True)
        sides.append(({key: i for i, key in enumerate(keys)}, values(measurements)))
    (at_first, a), (at_second, b) = sides
    both = [key for key in at_first if key in at_second]
    i, j = [at_first[k] for k in both], [at_second[k] for k in both]
    out = []
    for name in KINDS:
        x, y = a[name][i], b[name][j]
        present = np.isfinite(x) & np.isfinite(y)
        spread = intervals.mean(x - y, [k[0] for k in both])
        if spread:
            n = int(present.sum())
            out.append(Difference(name, n, float(x[present].mean()), float(y[present].mean()), spread))
    return out


def distances(measurements: pa.Table, scenes: pa.Table, inception: bool, prefix: str = "") -> list[Figure]:
    """FID and KID of painted pictures to the catalog's own in a scene; named by the features they are computed on."""
    painted, own = (
        np.array([f for f in t["features"].to_pylist() if f], np.float64)
        for t in (measurements.filter(measurements["scene_vector"].is_valid()), scenes)
    )
    by = "Inception" if inception else "the judge's features, not comparable with Inception's"
    computed = diversity.distances(painted, own) if len(painted) and len(own) else {}
    return [
        Figure(
            name=f"{prefix}{name}_{'inception' if inception else 'judge_features'}",
            unit=name.upper(),
            n=len(painted),
            value=value,
            low=None if deviation is None else value - 1.96 * deviation,
            high=None if deviation is None else value + 1.96 * deviation,
            meaning=f"distance to the catalog's {len(own)} own scenes on {by}; 0 is alike",
        )
        for name, (value, deviation) in computed.items()
    ]
