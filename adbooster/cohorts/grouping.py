"""From an interest log to cohorts and their members: embed, cluster, keep last night's ids, choose each one's texts."""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from adbooster.cohorts.clustering import assign, fit, match, merge_small, unit
from adbooster.cohorts.config import Clustering
from adbooster.cohorts.interest_log import InterestLog
from adbooster.cohorts.stages import _EMBEDDED, _TEXT, TextEmbedder
from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.contracts.naming import digest
from adbooster.contracts.settings import Pool
from adbooster.contracts.text import interest
from adbooster.engine.pools import dataset, preflight, through

log = logging.getLogger(__name__)
CHUNK = 50_000  # users whose vectors are held at once


def embed(texts: list[str], model: str, device: str, pool: Pool) -> np.ndarray:
    """Unit vectors float32 [N,D] of distinct texts, in a Ray Data pool."""
    preflight({"embed": pool})
    rows = pa.table({"text": texts, "at": np.arange(len(texts), dtype=np.int32)}).append_column(
        "reject", pa.nulls(len(texts), pa.string())
    )
    done = through(dataset(rows.cast(_TEXT), 4 * pool.batch), TextEmbedder, pool, _EMBEDDED, model=model, device=device)
    vectors = np.empty((0, 0), np.float32)
    for batch in done.iter_batches(batch_format="pyarrow", batch_size=8192):
        flat = batch["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        some = flat.reshape(batch.num_rows, -1)
        if not vectors.size:
            vectors = np.empty((len(texts), some.shape[1]), np.float32)
        vectors[batch["at"].to_numpy()] = some
    return vectors


@dataclass
class Grouped:
    """Tonight's cohorts (schema.COHORTS), and which of them each user of the log is in."""

    cohorts: pa.Table
    row_of_user: np.ndarray
    clusters: int
    merged: int
    kept_ids: list[str] = field(default_factory=list)


def group(
    interests: InterestLog, settings: Clustering, vectors: np.ndarray, live: pa.Table, model: str, family: str
) -> Grouped:
    """Cluster the users of a loaded log.

    vectors  of `interests.texts`, then of the live cohorts' texts; live  tables/cohorts
    model    revision of the text model: centroids of another one are not compared
    raises   ConfigError if no cohort has min_users users and a text that min_text_users of them share
    """
    n = len(interests.texts)
    if settings.k > n:
        raise ConfigError(f"k is {settings.k} and the interest log {interests.uri} has only {n} distinct texts")
    texts, live_texts = vectors[:n], vectors[n:]
    old = [i for i, m in enumerate(live["text_model"].to_pylist()) if m == model]
    live_rows, live_texts = live.take(pa.array(old, pa.int64())).to_pylist(), live_texts[old]
    last_centroids = np.array([row["centroid"] for row in live_rows], np.float32).reshape(len(old), texts.shape[1])
    sample = np.concatenate([v for v, _ in _users(interests, texts, settings.fit_users)])
    centroids = fit(sample, settings, last_centroids)
    k = len(centroids)
    labels = np.concatenate([assign(v, centroids) for v, _ in _users(interests, texts, interests.users)])
    sums, sizes = np.zeros((k, texts.shape[1])), np.bincount(labels, minlength=k)
    for v, first in _users(interests, texts, interests.users):
        np.add.at(sums, labels[first : first + len(v)], v)
    shared = interests.by_cohort(labels, settings.min_text_users)
    goes = merge_small(sums, sizes, np.isin(np.arange(k), shared["cohort"]), settings.min_users)
    if (goes < 0).all():
        raise ConfigError(
            f"the {interests.users} users of {interests.uri} form no cohort of at least min_users {settings.min_users} "
            f"with a text that at least min_text_users {settings.min_text_users} of them share"
        )
    kept = sorted(set(goes[goes >= 0].tolist()))
    row_of = np.array([kept.index(g) if g >= 0 else -1 for g in goes], np.int32)
    row_of_user = row_of[labels]
    merged_sums = np.stack([sums[goes == c].sum(axis=0) for c in kept])
    centres = np.round(unit(merged_sums), 5)
    shared = interests.by_cohort(row_of_user, settings.min_text_users)
    pairs = match(centres, last_centroids, settings.same_cohort)
    used_ids = {live_rows[o]["cohort_id"] for o in pairs.values()}
    rows = []
    for c, centre in enumerate(centres):
        mine = shared["cohort"] == c
        last = live_rows[pairs[c]] if c in pairs else None
        last_cosine = float(live_texts[pairs[c]] @ centre) if c in pairs else 0.0
        cluster = _Cluster(shared["t"][mine].astype(int), shared["share"][mine], centre, last, last_cosine)
        rows.append(
            _row(cluster, interests.texts, texts, settings, used_ids)
            | {"family": family, "size": int((row_of_user == c).sum()), "negative": "", "text_model": model}
        )
    for row in rows:
        row["version"] = digest(*(str(row[name]) for name in schema.COHORTS.names if name != "version"))[:16]
    merged = int((sizes > 0).sum()) - len(kept)
    return Grouped(pa.Table.from_pylist(rows, schema.COHORTS), row_of_user, k, merged, sorted(used_ids))


class _Cluster(NamedTuple):
    """A group of users: the texts that enough of them share, and the cohort of last night that it continues."""

    texts: np.ndarray
    """numbers of the texts, those with the largest share of interest first"""
    shares: np.ndarray
    centre: np.ndarray
    last: dict | None
    last_cosine: float
    """of the centre with last night's text"""


def _row(
    cluster: _Cluster, texts: list[tuple[str, str]], vectors: np.ndarray, settings: Clustering, used_ids: set[str]
) -> dict:
    """A cohort with its texts: last night's while they still fit, else the medoid's.

    texts, vectors  (query, context) of the log's texts, and their unit vectors
    used_ids        cohort ids in use; the row's id is added
    """
    cosines = vectors[cluster.texts] @ cluster.centre
    order = cluster.texts[np.argsort(-cosines, kind="stable")]
    query, context = texts[order[0]]
    if not query:
        query = next((texts[t][0] for t in order if texts[t][0]), "")
    if not context:
        context = next((texts[t][1] for t in order if texts[t][1]), "")
    last = cluster.last
    if last and cluster.last_cosine >= float(cosines.max()) - settings.keep_text:
        query, context = last["query"], last["context"]
    cohort_id = last["cohort_id"] if last else _new_id(query, context, used_ids)
    used_ids.add(cohort_id)
    top = slice(0, settings.interests)
    return {
        "cohort_id": cohort_id,
        "query": query,
        "context": context,
        "interests": [interest(*texts[t]) for t in cluster.texts[top]],
        "shares": [round(float(s), 4) for s in cluster.shares[top]],
        "centroid": [float(x) for x in cluster.centre],
    }


def _new_id(query: str, context: str, used_ids: set[str]) -> str:
    """A name from the texts that no other cohort has."""
    tries = 0
    while (name := f"c-{digest(query, context, str(tries))[:12]}") in used_ids:
        tries += 1
    return name


def _users(interests: InterestLog, texts: np.ndarray, users: int) -> Iterator[tuple[np.ndarray, int]]:
    """(unit vectors of some users, number of the first), in order: the means of their texts by their shares."""
    from scipy.sparse import csr_array

    users = min(users, interests.users)
    for first in range(0, users, CHUNK):
        n = min(CHUNK, users - first)
        i, t, share = interests.shares(first, first + n)
        yield unit(csr_array((share, (i, t)), shape=(n, len(texts))) @ texts), first


def members(interests: InterestLog, grouped: Grouped) -> Iterator[pa.RecordBatch]:
    """Rows of schema.MEMBERS in the order of the hashes, some at a time."""
    ids = np.array(grouped.cohorts["cohort_id"].to_pylist(), object)
    at = 0
    for hashes in interests.hashes():
        mine = ids[grouped.row_of_user[at : at + len(hashes)]]
        at += len(hashes)
        yield pa.RecordBatch.from_pydict({"user_hash": hashes, "cohort_id": mine.tolist()}, schema.MEMBERS)


def fingerprint(interests: InterestLog, grouped: Grouped) -> str:
    """A hash of all members."""
    hasher = hashlib.sha256()
    for batch in members(interests, grouped):
        for column in batch.columns:
            hasher.update("\n".join(column.to_pylist()).encode())
    return hasher.hexdigest()
