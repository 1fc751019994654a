"""Users on the unit sphere into clusters, and clusters of tonight onto those of last night. Rows are unit vectors."""

import numpy as np
from pydantic import Field, model_validator
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.metrics import silhouette_score

from adbooster.settings import Config

WORTH_MOVING = 0.01  # silhouette; a smaller gain is not worth other cohorts than last night's


class Clustering(Config):
    """How users become cohorts."""

    k: int = Field(0, ge=0)
    """Clusters; 0: chosen within `k_range` by silhouette on a sample."""
    k_range: tuple[int, int] = (5, 100)
    """Smallest and largest number of clusters to choose from."""
    fit_users: int = Field(100_000, ge=10)
    """Users that centroids are fitted on (a uniform sample by hash); all are then assigned, and make the centroids."""
    min_users: int = Field(50, ge=1)
    """A cohort with fewer users is merged into its nearest."""
    min_text_users: int = Field(5, ge=1)
    """A text that fewer users share never becomes a cohort's text: it may say who they are."""
    interests: int = Field(5, ge=1, le=50)
    """Top interests kept a cohort."""
    same_cohort: float = Field(0.9, ge=-1, le=1)
    """Cosine from which tonight's centroid is last night's cohort, which keeps its id."""
    keep_text: float = Field(0.1, ge=0, le=2)
    """A cohort keeps its text while that is at most this much farther (cosine) from the centroid than the best one."""
    seed: int = 0
    """Another seed, maybe other clusters."""

    @model_validator(mode="after")
    def _ordered(self):
        if not 2 <= self.k_range[0] <= self.k_range[1]:
            raise ValueError(f"k_range {self.k_range} should be two numbers in rising order, the first at least 2")
        return self


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; a row of zeros stays as it is."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norms > 1e-12, norms, 1)).astype(np.float32)


def fit(users: np.ndarray, settings: Clustering, last: np.ndarray) -> np.ndarray:
    """Centroids float32 [K,D] of users [N,D].

    last    centroids [L,D] of the live cohorts, maybe none. They are moved to where tonight's users are and kept
            unless a fit from nothing has a clearly better silhouette, so that cohorts stay what they were
    """
    low, high = (settings.k, settings.k) if settings.k else settings.k_range
    high = min(high, len(np.unique(users, axis=0)))
    grid = sorted(
        {min(k, high) for k in (np.geomspace(min(low, high), high, 8).round().astype(int) if high > 1 else [1])}
    )
    sample = np.random.default_rng(settings.seed).permutation(len(users))[:5000]
    found = [_cold(users, int(k), settings.seed) for k in grid]
    scores = [_score(users[sample], c) for c in found]
    best = int(np.argmax(scores))
    if len(grid) > 2:  # once more between the neighbours of the best
        between = {(grid[max(best - 1, 0)] + grid[best]) // 2, (grid[best] + grid[min(best + 1, len(grid) - 1)]) // 2}
        more = [_cold(users, int(k), settings.seed) for k in sorted(between - set(grid))]
        found, scores = found + more, scores + [_score(users[sample], c) for c in more]
        best = int(np.argmax(scores))
    if min(low, high) <= len(last) <= high:
        moved = KMeans(len(last), init=last, n_init=1, tol=0).fit(users)
        warm = unit(moved.cluster_centers_)
        if _score(users[sample], warm) >= scores[best] - WORTH_MOVING:
            return warm
    return found[best]


def _cold(users: np.ndarray, k: int, seed: int) -> np.ndarray:
    rough = MiniBatchKMeans(k, random_state=seed, n_init=5, batch_size=4096, max_iter=50).fit(users)
    return unit(KMeans(k, init=rough.cluster_centers_, n_init=1, max_iter=20, tol=1e-4).fit(users).cluster_centers_)


def _score(users: np.ndarray, centroids: np.ndarray) -> float:
    labels = assign(users, centroids)
    if not 1 < len(np.unique(labels)) < len(users):
        return -1.0
    return float(silhouette_score(users, labels, metric="cosine"))


def assign(users: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The nearest centroid of each user, int32 [N]."""
    return np.argmax(users @ centroids.T, axis=1).astype(np.int32)


def merge_small(sums: np.ndarray, sizes: np.ndarray, usable: np.ndarray, min_users: int) -> np.ndarray:
    """Where each cluster's users go, int32 [K]: a small or unusable one goes to the nearest other one, the smallest first.

    sums    sums of the users' vectors [K,D]; sizes  users [K]; usable  bool [K], whether it has a text to be told by
    returns indices into the clusters; -1 everywhere if none is left that is large enough and usable
    """
    sums, sizes, usable = sums.astype(np.float64).copy(), sizes.copy(), usable.copy()
    goes = np.arange(len(sizes), dtype=np.int32)
    alive = sizes > 0
    goes[~alive] = -1
    while True:
        weak = np.flatnonzero(alive & ((sizes < min_users) | ~usable))
        if not len(weak):
            return goes
        if alive.sum() == 1:
            return np.full_like(goes, -1)
        small = weak[np.argmin(sizes[weak])]
        nearness = unit(sums) @ unit(sums[small : small + 1])[0]
        nearness[~alive] = -np.inf
        nearness[small] = -np.inf
        into = int(np.argmax(nearness))
        sums[into] += sums[small]
        sizes[into] += sizes[small]
        usable[into] |= usable[small]
        alive[small] = False
        goes[goes == small] = into


def match(new: np.ndarray, old: np.ndarray, threshold: float) -> dict[int, int]:
    """Which new centroid is which old one: the one-to-one pairing with the largest sum of cosines, above a threshold."""
    if not len(new) or not len(old):
        return {}
    cosines = new @ old.T
    pairs = zip(*linear_sum_assignment(-np.where(cosines >= threshold, cosines, -1.0)), strict=True)
    return {int(n): int(o) for n, o in pairs if cosines[n, o] >= threshold}
