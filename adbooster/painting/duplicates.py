"""Duplicate scenes: a winner with the scene of another winner of its cohort or product is a duplicate."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts.recipe import Gates
from adbooster.pictures.scenes import SIGNS


class _Group:
    """Scenes that must not look alike: those of one cohort, or of one product, in one placement."""

    def __init__(self, near_bits: int, alike: float):
        self.near_bits, self.alike = near_bits, alike
        self.phash, self.signs = np.zeros(16, np.uint64), np.zeros((16, SIGNS // 64), np.uint64)
        self.size = 0

    def has(self, phash: np.uint64, signs: np.ndarray) -> bool:
        near = np.bitwise_count(self.phash[: self.size] ^ phash) < self.near_bits
        if not near.any():
            return False
        differing = np.bitwise_count(self.signs[: self.size][near] ^ signs).sum(axis=1)
        return bool((np.cos(np.pi * differing / SIGNS) > self.alike).any())

    def add(self, phash: np.uint64, signs: np.ndarray) -> None:
        if self.size == len(self.phash):
            self.phash = np.concatenate([self.phash, np.zeros_like(self.phash)])
            self.signs = np.concatenate([self.signs, np.zeros_like(self.signs)])
        self.phash[self.size], self.signs[self.size] = phash, signs
        self.size += 1


class Scenes:
    """The scenes in use, by cohort and by product."""

    def __init__(self, gates: Gates):
        self.near_bits, self.alike = gates.min_background_distance, gates.max_background_similarity
        self.groups: dict[tuple, _Group] = {}

    def take(self, rows: pa.Table) -> list[bool]:
        """For each row (schema.CREATIVES) whether its scene is new; new scenes are added, best scores first.

        Originals (no background marks) are always new. Without a distance in the gates everything is.
        """
        new = [True] * rows.num_rows
        if self.near_bits is None:
            return new
        columns = ["product_id", "cohort_id", "placement", "background_phash", "background_simhash"]
        texts = rows.select(columns).to_pylist()
        order = pc.sort_indices(rows, sort_keys=[("clip_score", "descending"), ("creative_id", "ascending")])
        for i in order.to_pylist():
            row = texts[i]
            if row["background_phash"] is None:
                continue
            phash = np.uint64(int(row["background_phash"], 16))
            signs = np.frombuffer(bytes.fromhex(row["background_simhash"]), np.uint64)
            places = [
                self._group(("c", row["cohort_id"], row["placement"])),
                self._group(("p", row["product_id"], row["placement"])),
            ]
            new[i] = not any(g.has(phash, signs) for g in places)
            if new[i]:
                for group in places:
                    group.add(phash, signs)
        return new

    def _group(self, key: tuple) -> _Group:
        if key not in self.groups:
            self.groups[key] = _Group(self.near_bits or 0, self.alike)
        return self.groups[key]
