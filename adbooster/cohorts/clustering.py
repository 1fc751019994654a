"""Users on the unit sphere into clusters, and clusters of tonight onto those of last night. Rows are unit vectors."""

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.metrics import silhouette_score

from adbooster.cohorts.config import Clustering

WORTH_MOVING = 0.01  # silhouette; a smaller gain is not worth other cohorts than last night's


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; a row of zeros stays as it is."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norms > 1e-12, norms, 1)).astype(np.float32)


def fit(users: np.ndarray, settings: Clustering, last: np.ndarray) -> np.ndarray:
    """Centroids float32 [K,D] of users [N,D].

    last    centroids [L,D] of the live cohorts, maybe none. They are moved to where tonight's users are and kept
            unless a fresh fit has a clearly better silhouette, so that cohorts change as little as possible
    """
    low, high = (settings.k, settings.k) if settings.k else settings.k_range
    high = min(high, len(np.unique(users, axis=0)))
    grid = sorted(
        {min(k, high) for k in (np.geomspace(min(low, high), high, 8).round().astype(int) if high > 1 else [1])}
    )
    sample = np.random.default_rng(settings.seed).permutation(len(users))[:5000]
    fits = [_fresh_fit(users, int(k), settings.seed) for k in grid]
    scores = [_score(users[sample], c) for c in fits]
    best = int(np.argmax(scores))
    if len(grid) > 2:  # once more between the neighbours of the best
        between = {(grid[max(best - 1, 0)] + grid[best]) // 2, (grid[best] + grid[min(best + 1, len(grid) - 1)]) // 2}
        more = [_fresh_fit(users, int(k), settings.seed) for k in sorted(between - set(grid))]
        fits, scores = fits + more, scores + [_score(users[sample], c) for c in more]
        best = int(np.argmax(scores))
    if min(low, high) <= len(last) <= high:
        moved = KMeans(len(last), init=last, n_init=1, tol=0)  # pyright: ignore[reportArgumentType]  # untyped library
        warm = unit(moved.fit(users).cluster_centers_)
        if _score(users[sample], warm) >= scores[best] - WORTH_MOVING:
            return warm
    return fits[best]


def _fresh_fit(users: np.ndarray, k: int, seed: int) -> np.ndarray:
    rough = MiniBatchKMeans(
        k,
        random_state=seed,
        n_init=5,  # pyright: ignore[reportArgumentType]
        batch_size=4096,
        max_iter=50,
    )
    start = rough.fit(users).cluster_centers_
    fine = KMeans(k, init=start, n_init=1, max_iter=20, tol=1e-4)  # pyright: ignore[reportArgumentType]
    return unit(fine.fit(users).cluster_centers_)


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

    sums    sums of the users' vectors [K,D]; sizes  users [K]
    usable  bool [K], whether enough of its users share a text
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
