"""Duplicate scenes: a winner with the scene of another winner of its cohort or product is a duplicate."""

import tempfile
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts.recipe import Gates
from adbooster.pictures.scenes import SIGNS

COLUMNS = ["product_id", "cohort_id", "placement", "background_phash", "background_simhash"]
_GROUPS = ("product_id", "cohort_id")  # that scenes must differ in, within a placement
_MOST_PIECES = 12  # of more than five bits each; smaller ones are in common so often that all may be compared as well
_MEMORY = "1GB"  # beyond it DuckDB goes to disk


class Scenes:
    """Which rows (schema.CREATIVES, at least COLUMNS) have like scenes, by `gates`; originals have no scene.

    Two hashes that differ in fewer than n bits agree in one of n pieces at least, so that rows are compared with those
    alone that share a piece, and nothing is missed: for 8 bits a thirtieth of all pairs.
    Without a distance in the gates no scenes are alike.
    """

    def __init__(self, gates: Gates):
        self.near_bits = gates.min_background_distance or 0
        self.pieces = self.near_bits if self.near_bits <= _MOST_PIECES else 0
        differing = np.arange(SIGNS + 1)
        alike = np.cos(np.pi * differing / SIGNS) > gates.max_background_similarity
        self.most_signs = int(differing[alike].max(initial=-1))

    def pairs(self, rows: pa.Table, others: pa.Table) -> np.ndarray:
        """Index in `rows` and in `others` of every two that have like scenes: int64 [N,2], each once."""
        if not self.near_bits or self.most_signs < 0 or not rows.num_rows or not others.num_rows:
            return np.zeros((0, 2), np.int64)
        with (
            tempfile.TemporaryDirectory(prefix="adbooster-scenes-") as folder,
            duckdb.connect(config={"memory_limit": _MEMORY, "temp_directory": folder}) as db,
        ):
            db.register("a", _hashes(rows, self.pieces))
            db.register("b", _hashes(others, self.pieces))
            signs = " + ".join(f"bit_count(xor(a.s{i}, b.s{i}))::INTEGER" for i in range(SIGNS // 64))
            like = f"bit_count(xor(a.phash, b.phash)) < {self.near_bits} AND {signs} <= {self.most_signs}"
            shared = [f"a.piece{i} = b.piece{i}" for i in range(self.pieces)] or ["TRUE"]
            joins = [
                f"SELECT a.row AS x, b.row AS y FROM a JOIN b ON a.{group} = b.{group} AND a.placement = b.placement "
                f"AND {piece} WHERE {like}"
                for group in _GROUPS
                for piece in shared
            ]
            found = db.sql(" UNION ".join(joins)).to_arrow_table()
        return np.stack([found["x"].to_numpy(), found["y"].to_numpy()], axis=1).astype(np.int64)

    def among(self, rows: pa.Table, others: Iterable[pa.Table]) -> np.ndarray:
        """Which rows have a scene that one of the others has; bool, one a row."""
        found = np.zeros(rows.num_rows, bool)
        for some in others:
            found[self.pairs(rows, some)[:, 0]] = True
        return found


class Rivals:
    """Rows that compete for scenes, which one of them may have: the best by score.

    rows  with COLUMNS, clip_score and creative_id
    """

    def __init__(self, rows: pa.Table, scenes: Scenes):
        order = pc.sort_indices(rows, sort_keys=[("clip_score", "descending"), ("creative_id", "ascending")])
        place = np.empty(rows.num_rows, np.int64)
        place[order.to_numpy()] = np.arange(rows.num_rows)
        self.better: dict[int, list[int]] = defaultdict(list)  # rows with a like scene and a better score
        for x, y in scenes.pairs(rows, rows).tolist():
            if place[y] < place[x]:
                self.better[x].append(y)
        self.contested = sorted(self.better, key=lambda i: place[i])

    def keep(self, competing: np.ndarray) -> np.ndarray:
        """Of the rows that compete those whose scene no better one keeps; bool, one a row."""
        kept = competing.copy()
        for i in self.contested:
            kept[i] = kept[i] and not kept[self.better[i]].any()
        return kept


def _hashes(rows: pa.Table, pieces: int) -> pa.Table:
    """The scenes of rows as numbers, with `pieces` parts of the perceptual hash; row  the index."""
    at = np.flatnonzero(rows["background_phash"].is_valid().to_numpy())
    scenes = rows.select(COLUMNS).take(pa.array(at))
    phash = _numbers(scenes["background_phash"], 1)[:, 0]
    signs = _numbers(scenes["background_simhash"], SIGNS // 64)
    ends = np.linspace(0, 64, pieces + 1).astype(int).tolist() if pieces else []
    columns = {name: scenes[name] for name in (*_GROUPS, "placement")} | {"row": at, "phash": phash}
    columns |= {f"s{i}": signs[:, i] for i in range(signs.shape[1])}
    for i, (low, high) in enumerate(pairwise(ends)):
        columns[f"piece{i}"] = phash << np.uint64(64 - high) >> np.uint64(64 - high + low)
    return pa.table(columns)


def _numbers(texts: pa.ChunkedArray, words: int) -> np.ndarray:
    """Hex texts of 16 digits a word: uint64 [N,words]."""
    joined = bytes.fromhex("".join(texts.to_pylist()))
    return np.frombuffer(joined, np.uint64).reshape(-1, words)
