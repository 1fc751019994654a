"""Looks into figures: one value a look of each thing measured, their means with intervals, and paired differences."""

from collections import Counter
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from adbooster import intervals, variety
from adbooster.evaluation import Figure
from adbooster.intervals import Interval

COPY = 0.9  # cosine (judge) with the product from which another salient thing is counted as a second copy


class Kind(NamedTuple):
    """What a figure is; `better` 1: more is better, -1: less is better, 0: neither."""

    unit: str
    better: int
    meaning: str


KINDS = {
    "judge_score": Kind("cosine", 1, "similarity to the user's text by the CLIP that never ranked"),
    "rank_score": Kind("cosine", 1, "the same by the CLIP that chose the creative"),
    "product_max_diff": Kind("levels", -1, "largest difference of the stored product from its photo, 0-255"),
    "product_psnr": Kind("dB", 1, "of the stored product inside its eroded mask; 99: equal"),
    "expansion_share": Kind("share", -1, "area by which the product seems to have grown (union form, re-segmented)"),
    "second_copies": Kind("share", -1, f"pictures with another salient thing like the product (cosine over {COPY})"),
    "people": Kind("probability", -1, "people in the scene, zero-shot by the judge"),
    "text_in_scene": Kind("probability", -1, "writing or logos in the scene, zero-shot by the judge"),
    "duplicates_of_cohort": Kind("share", -1, "scenes equal to a better one of the same cohort"),
    "duplicates_of_product": Kind("share", -1, "scenes equal to a better one of the same product"),
    "near_duplicates_of_cohort": Kind("share", -1, "scenes nearly equal to a better one of the same cohort"),
    "near_duplicates_of_product": Kind("share", -1, "scenes nearly equal to a better one of the same product"),
    "diversity_of_cohort": Kind("cosine distance", 1, "mean between two scenes of a cohort, by the judge"),
    "diversity_of_product": Kind("cosine distance", 1, "mean between two scenes of a product, by the judge"),
    "sharpness": Kind("levels", 1, "standard deviation of the background's Laplacian at 320 px"),
    "exposure": Kind("0-1", 0, "mean luminance of the background"),
    "clipped_share": Kind("share", -1, "background pixels that are black or white"),
    "fallbacks": Kind("share", -1, "requests answered by the original picture"),
    "gpu_s": Kind("s", -1, "seconds of a painting actor a request, scoring included"),
}
_COLUMNS = {"product_psnr": "psnr_db"}
_PAINTED = ("sharpness", "exposure", "clipped_share", "expansion_share", "people", "text_in_scene", "product_psnr")


def values(looks: pa.Table) -> dict[str, np.ndarray]:
    """By name of KINDS one float a look (schema.LOOKS), NaN where nothing was measured."""
    best = looks["best"].to_pylist()
    found = {
        f"{m}_score": np.array([s[b] for s, b in zip(looks[f"{m}_scores"].to_pylist(), best, strict=True)], np.float64)
        for m in ("judge", "rank")
    }
    for name in ("product_max_diff", *_PAINTED, "gpu_s"):
        found[name] = column(looks, _COLUMNS.get(name, name))
    found["fallbacks"] = looks["fallback"].to_numpy().astype(np.float64)
    looked_for = np.isfinite(found["expansion_share"])
    copies = np.nan_to_num(column(looks, "copy_similarity"), nan=-1) > COPY
    found["second_copies"] = np.where(looked_for, copies, np.nan)
    marked = ("product_id", "cohort_id", "placement", "background_phash", "background_simhash")
    named = pa.table(
        {n: looks[n] for n in marked} | {"creative_id": looks["look_id"], "clip_score": found["rank_score"]}
    )
    vectors = scene_vectors(looks)
    for kind in ("cohort", "product"):
        groups = looks[f"{kind}_id"].to_pylist()
        found[f"duplicates_of_{kind}"] = variety.repeats(named, f"{kind}_id", variety.EXACT)
        found[f"near_duplicates_of_{kind}"] = variety.repeats(named, f"{kind}_id", variety.NEAR)
        found[f"diversity_of_{kind}"] = variety.apart(vectors, groups)
    return {name: found[name] for name in KINDS}


def column(looks: pa.Table, name: str) -> np.ndarray:
    """A column as float, NaN for null."""
    return np.array([np.nan if v is None else v for v in looks[name].to_pylist()], np.float64)


def scene_vectors(looks: pa.Table) -> np.ndarray:
    """float [N,D], a row of NaN where a picture has no scene of its own."""
    rows = looks["scene_vector"].to_pylist()
    width = max((len(r) for r in rows if r), default=1)
    return np.array([r or [np.nan] * width for r in rows], np.float64).reshape(len(rows), width)


def figures(looks: pa.Table, prefix: str = "") -> list[Figure]:
    """The means of everything measured, with intervals over products as clusters; what was not measured is left out."""
    products, found = looks["product_id"].to_pylist(), []
    for name, each in values(looks).items():
        spread = intervals.mean(each, products)
        if spread:
            found.append(_figure(prefix + name, KINDS[name], int(np.isfinite(each).sum()), spread))
    found += _by_word(looks, prefix)
    vectors = scene_vectors(looks)
    vectors = vectors[np.isfinite(vectors).all(axis=1)]
    if len(vectors):
        meaning = f"groups of scenes closer than {variety.SAME_SCENE} (cosine distance, judge, average linkage)"
        count = variety.clusters(vectors)
        found.append(
            Figure(name=f"{prefix}scene_clusters", unit="clusters", n=len(vectors), value=count, meaning=meaning)
        )
    return found


def _by_word(looks: pa.Table, prefix: str) -> list[Figure]:
    """Shares of fall-backs by reason, and what an accepted creative costs."""
    n, reasons = looks.num_rows, looks["fallback_reason"].to_pylist()
    found = [
        _figure(
            f"{prefix}fallback: {w}",
            Kind("share", -1, f"requests that fell back, last for {w}"),
            n,
            intervals.share(reasons.count(w), n),
        )
        for w in sorted({r for r in reasons if r})
    ]
    spent, accepted = column(looks, "gpu_s"), 1 - looks["fallback"].to_numpy().astype(np.float64)
    cost = intervals.ratio(spent, np.where(np.isfinite(spent), accepted, np.nan), looks["product_id"].to_pylist())
    if cost:
        cost = Interval(**{k: None if v is None else v + 1 for k, v in cost.model_dump().items()})
        kind = Kind("s", -1, "seconds of painting actors for each creative that is not the original")
        found.append(_figure(f"{prefix}gpu_s_per_accepted", kind, n, cost))
    return found


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
    for looks in (first, second):
        keys = zip(*(looks[c].to_pylist() for c in ("product_id", "cohort_id", "placement")), strict=True)
        sides.append(({key: i for i, key in enumerate(keys)}, values(looks)))
    (at_first, a), (at_second, b) = sides
    both = [key for key in at_first if key in at_second]
    i, j = [at_first[k] for k in both], [at_second[k] for k in both]
    found = []
    for name in KINDS:
        x, y = a[name][i], b[name][j]
        there = np.isfinite(x) & np.isfinite(y)
        spread = intervals.mean(x - y, [k[0] for k in both])
        if spread:
            n = int(there.sum())
            found.append(Difference(name, n, float(x[there].mean()), float(y[there].mean()), spread))
    return found


def distances(looks: pa.Table, scenes: pa.Table, inception: bool, prefix: str = "") -> list[Figure]:
    """FID and KID of painted pictures to the catalog's own in a scene; named by the features they are computed on."""
    painted, own = (
        np.array([f for f in t["features"].to_pylist() if f], np.float64)
        for t in (looks.filter(looks["scene_vector"].is_valid()), scenes)
    )
    by = "Inception" if inception else "the judge's features, not comparable with Inception's"
    found = variety.distances(painted, own) if len(painted) and len(own) else {}
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
        for name, (value, deviation) in found.items()
    ]
