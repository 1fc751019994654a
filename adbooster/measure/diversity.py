"""How much the scenes of a set differ from each other, and how far they are from the catalog's own."""

import warnings

import numpy as np
import pyarrow as pa
import torch
from sklearn.cluster import AgglomerativeClustering

from adbooster.contracts.recipe import Gates
from adbooster.painting.duplicates import Rivals, Scenes

EXACT = Gates(min_background_distance=1, max_background_similarity=0.99)
NEAR = Gates(min_background_distance=8, max_background_similarity=0.95)
SAME_SCENE = 0.15  # cosine distance below which two scenes count as one cluster
MOST_CLUSTERED = 2000  # pairwise distances of these are 16 MB


def repeats(rows: pa.Table, of: str, gates: Gates) -> np.ndarray:
    """For each row whether a better one of the same `of` (product_id or cohort_id) has its scene: float, NaN: no scene.

    rows  product_id, cohort_id, placement, clip_score, creative_id, background_phash, background_simhash
    """
    other = "cohort_id" if of == "product_id" else "product_id"
    alone = rows.set_column(rows.schema.get_field_index(other), other, rows["creative_id"])
    new = Rivals(alone, Scenes(gates)).keep(np.ones(alone.num_rows, bool))
    marked = rows["background_phash"].is_valid().to_pylist()
    return np.array([float(not n) if m else np.nan for n, m in zip(new, marked, strict=True)], np.float64)


def apart(vectors: np.ndarray, groups: list[str]) -> np.ndarray:
    """Each scene's mean cosine distance to the others of its group: float [N], NaN for one alone or without a vector.

    Their mean over a group is the group's mean pairwise distance.
    vectors  float [N,D], unit rows, or rows of NaN
    """
    out = np.full(len(vectors), np.nan)
    present = np.isfinite(vectors).all(axis=1) if len(vectors) else np.zeros(0, bool)
    names = np.asarray(groups, dtype=object)
    for name in dict.fromkeys(groups):
        at = np.flatnonzero(present & (names == name))
        if len(at) > 1:
            own = vectors[at]
            out[at] = 1 - ((own @ own.sum(0)) - (own * own).sum(1)) / (len(at) - 1)
    return out


def clusters(vectors: np.ndarray) -> int | None:
    """Number of scenes that differ: average-linkage clusters at SAME_SCENE, over at most MOST_CLUSTERED even picks."""
    if len(vectors) < 2:
        return len(vectors) or None
    even = np.unique(np.linspace(0, len(vectors) - 1, MOST_CLUSTERED).astype(int))
    clustering = AgglomerativeClustering(
        None,  # pyright: ignore[reportArgumentType]  # sklearn declares no types
        metric="cosine",
        linkage="average",
        distance_threshold=SAME_SCENE,
    )
    return int(clustering.fit(vectors[even]).n_clusters_)


class _Given(torch.nn.Module):
    """In place of the network that torchmetrics wants: the features are computed already."""

    def __init__(self, width: int):
        super().__init__()
        self.num_features = width

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def distances(painted: np.ndarray, catalog: np.ndarray) -> dict[str, tuple[float, float | None]]:
    """FID (Heusel et al., 2017) and KID (Binkowski et al., 2018) by torchmetrics: name to (value, standard deviation).

    painted [N,D], catalog [M,D] features; empty for fewer than 3 on a side. KID is unbiased at any number of pictures,
    FID falls with it: compare FIDs only at the same numbers.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    least = min(len(painted), len(catalog))
    if least < 3:
        return {}
    sides = [(torch.from_numpy(f.astype(np.float64)), real) for f, real in ((catalog, True), (painted, False))]
    width = painted.shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # KID keeps all features in memory: a few thousand
        kid = KernelInceptionDistance(feature=_Given(width), subsets=50, subset_size=min(least, 500))
    fid = FrechetInceptionDistance(feature=_Given(width)).set_dtype(torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for metric in (fid, kid):
            for features, real in sides:
                metric.update(features, real=real)
        spread = kid.compute()
    return {"fid": (float(fid.compute()), None), "kid": (float(spread[0]), float(spread[1]))}
