"""Which of many good pictures: unlike each other within a request, and unlike other winners' scenes in a night."""

from collections.abc import Callable
from functools import cache

import imagehash
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image
from scipy import ndimage

from adbooster import images
from adbooster.recipe import Gates

SCENE_PX = 160
SIGNS = 256


def next_best(left: list[int], chosen: list[int], scores: np.ndarray, vectors: np.ndarray, diversity: float) -> int:
    """The candidate to take next by maximal marginal relevance (Carbonell & Goldstein, 1998); ties go to the first.

    scores [K]; vectors [K,D] unit vectors of the scenes; 0 <= diversity <= 1
    """
    if not chosen:
        return left[int(np.argmax(scores[left]))]
    alike = (vectors[left] @ vectors[chosen].T).max(axis=1)
    return left[int(np.argmax((1 - diversity) * scores[left] - diversity * alike))]


def scene_only(picture_u8: np.ndarray, alpha_u8: np.ndarray) -> np.ndarray:
    """The picture without its product, uint8, longer side SCENE_PX: what lies round the product flows into its place."""
    high, wide = alpha_u8.shape
    factor = SCENE_PX / max(high, wide)
    small = max(1, round(wide * factor)), max(1, round(high * factor))
    picture = images.resize(picture_u8, *small).astype(np.float32)
    product = ndimage.maximum_filter(images.resize(alpha_u8, *small), 7)  # as far as resampling carries its colours
    weight = (product == 0).astype(np.float32)[..., None]
    flow = [ndimage.gaussian_filter(a, (SCENE_PX / 12, SCENE_PX / 12, 0)) for a in (picture * weight, weight)]
    filled = picture * weight + flow[0] / np.maximum(flow[1], 1e-6) * (1 - weight)
    return filled.clip(0, 255).round().astype(np.uint8)


def marks(scene_u8: np.ndarray, vector: np.ndarray) -> tuple[str, str]:
    """A scene's perceptual hash (DCT, 64 bits) and the signs of 256 fixed projections of its CLIP vector, in hex."""
    signs = np.packbits(_projection(len(vector)) @ vector > 0).tobytes().hex()
    return str(imagehash.phash(Image.fromarray(scene_u8))), signs


@cache
def _projection(width: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((SIGNS, width))


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
    """The scenes that are taken, by cohort and by product."""

    def __init__(self, gates: Gates):
        self.near_bits, self.alike = gates.min_background_distance, gates.max_background_similarity
        self.groups: dict[tuple, _Group] = {}

    def take(self, rows: pa.Table) -> list[bool]:
        """For each row (schema.CREATIVES) whether its scene is new here; new ones are taken, best scores first.

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


def settle(staged: pa.Table, taken: Callable[[], Scenes]) -> tuple[pa.Table, dict[str, int]]:
    """The rows that stand when duplicates have stepped back, and the requests to paint again with their next round.

    staged  rows (schema.STAGED) of all rounds painted so far
    taken   the scenes of creatives that stay live, made anew at each call
    """
    request_ids, rounds = (staged[c].to_pylist() for c in ("request_id", "round"))
    painted: dict[str, list[int]] = {}
    for request_id, number in zip(request_ids, rounds, strict=True):
        if number not in painted.setdefault(request_id, []):
            painted[request_id].append(number)
    at = {request_id: min(numbers) for request_id, numbers in painted.items()}
    while True:
        current = staged.filter(pa.array([at[q] == r for q, r in zip(request_ids, rounds, strict=True)], pa.bool_()))
        kept = current.filter(pa.array(taken().take(current), pa.bool_()))
        held = set(kept["request_id"].to_pylist())
        lost = [q for q in at if q not in held]
        later = {q: min(numbers) for q in lost if (numbers := [n for n in painted[q] if n > at[q]])}
        if not later:
            return kept, {q: at[q] + 1 for q in lost}
        at.update(later)
