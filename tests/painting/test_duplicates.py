import numpy as np
import pyarrow as pa
import pytest

from adbooster.contracts import schema
from adbooster.contracts.recipe import Gates
from adbooster.generate.rounds import settle
from adbooster.painting import selection
from adbooster.painting.duplicates import Rivals, Scenes
from adbooster.pictures import scenes
from adbooster.tiny import world
from tests.conftest import row

GATES = Gates(min_background_distance=8, max_background_similarity=0.9)


def test_relevance_against_likeness():
    """0 and 1 show the same scene; diversity prefers the third, score alone does not."""
    scores, vectors = np.array([0.9, 0.88, 0.7]), np.eye(3)[[0, 0, 1]]
    assert selection.next_best([0, 1, 2], [], scores, vectors, 0.5) == 0
    assert selection.next_best([1, 2], [0], scores, vectors, 0.5) == 2
    assert selection.next_best([1, 2], [0], scores, vectors, 0.0) == 1
    assert selection.next_best([0, 1], [], np.array([0.5, 0.5]), vectors, 0.3) == 0, "ties go to the first"


def test_the_scene_is_what_is_left_without_the_product():
    """Two products in one scene leave the same scene; another scene is another."""
    composed = [
        world.compose(s, p, 256, 9) for s, p in (("winter", "teapot"), ("winter", "teapot"), ("desert", "teapot"))
    ]
    product = composed[0][0].copy()
    product[composed[0][1] > 0] = (255, 0, 0)  # the same scene with the product painted over
    a, b, c = (
        scenes.scene_only(i, m) for i, m in ((composed[0][0], composed[0][1]), (product, composed[0][1]), composed[2])
    )
    assert np.array_equal(a, b)
    assert np.abs(a.astype(int) - c).mean() > 10
    assert max(a.shape) == scenes.SCENE_PX


def creative(name: str, request: str, score: float, phash: int, signs: int, number: int = 0, **changes) -> dict:
    values = {
        "creative_id": name,
        "request_id": request,
        "product_id": request,
        "cohort_id": "c",
        "placement": "square",
        "clip_score": score,
        "background_phash": f"{phash:016x}",
        "background_simhash": f"{signs:064x}",
        "round": number,
        "fallback": False,
    }
    return row(schema.STAGED, **values | changes)


def table(*rows: dict) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema.STAGED)


def kept(*rows: dict, gates=GATES) -> list[bool]:
    """Of rivals those that keep their scene."""
    return Rivals(table(*rows), Scenes(gates)).keep(np.ones(len(rows), bool)).tolist()


def settled(*staged: dict, live=()) -> tuple[pa.Table, dict[str, int]]:
    rows, scenes_in_use = table(*staged), Scenes(GATES)
    return settle(rows, scenes_in_use, scenes_in_use.among(rows, [table(*live)]))


FAR = 2**63 + 2**50 + 2**40 + 2**30 + 2**20 + 2**12 + 2**8 + 2**4 + 2**2 + 1


@pytest.mark.parametrize(
    ("other", "new"),
    [
        ({}, False),  # the same scene for another product of the cohort
        ({"phash": 0b111}, False),  # three bits apart
        ({"phash": FAR}, True),  # another hash
        ({"signs": 2**256 - 1}, True),  # a like hash, but CLIP sees another scene
        ({"cohort_id": "d"}, True),  # neither cohort nor product in common
        ({"cohort_id": "d", "product_id": "p1"}, False),  # the same product for another cohort
        ({"placement": "story"}, True),
        ({"background_phash": None}, True),  # an original picture
    ],
)
def test_duplicates_are_like_by_hash_and_by_clip_in_one_cohort_or_product(other, new):
    settings = {"phash": 0, "signs": 0} | other
    second = creative("b", "p2", 0.8, settings.pop("phash"), settings.pop("signs"), **settings)
    assert kept(second, creative("a", "p1", 0.9, 0, 0)) == [new, True]
    assert kept(second, creative("a", "p1", 0.9, 0, 0), gates=Gates()) == [True, True]
    assert Scenes(GATES).among(table(second), [table(), table(creative("a", "p1", 0.1, 0, 0))]).tolist() == [not new]


def test_the_better_score_keeps_the_scene_whatever_the_order():
    rows = [creative("a", "p1", 0.7, 0, 0), creative("b", "p2", 0.9, 0, 0), creative("c", "p3", 0.8, FAR, 0)]
    assert kept(*rows) == [False, True, True]
    assert kept(*rows[::-1]) == [True, True, False]


@pytest.mark.parametrize("bits", [3, 8, 12, 30])
def test_like_scenes_are_found_as_by_comparing_all(bits):
    """Hashes near and far from each other, in groups; against every two compared."""
    draw = np.random.default_rng(bits)
    bases, gates = draw.integers(0, 2**63, 12), Gates(min_background_distance=bits, max_background_similarity=0.9)
    rows = []
    for i in range(300):
        phash = int(draw.choice(bases))
        for bit in draw.choice(64, draw.integers(0, 2 * bits), replace=False):
            phash ^= 1 << int(bit)
        signs = int("1" * int(draw.integers(0, 60)) or "0", 2)
        rows.append(creative(f"{i}", f"p{draw.integers(40)}", 0.1, phash, signs, cohort_id=f"c{draw.integers(3)}"))
    found = {tuple(pair) for pair in Scenes(gates).pairs(table(*rows), table(*rows)).tolist()}

    def like(a, b):
        hashes = [bin(int(a[n], 16) ^ int(b[n], 16)).count("1") for n in ("background_phash", "background_simhash")]
        shared = a["cohort_id"] == b["cohort_id"] or a["product_id"] == b["product_id"]
        return shared and hashes[0] < bits and np.cos(np.pi * hashes[1] / 256) > 0.9

    expected = {(i, j) for i, a in enumerate(rows) for j, b in enumerate(rows) if like(a, b)}
    assert found == expected
    assert len(expected) > 1.5 * len(rows)


def test_settling_asks_for_new_rounds_until_nothing_is_twice():
    first = [creative("a", "p1", 0.9, 0, 0), creative("b", "p2", 0.8, 0, 0)]
    kept, again = settled(*first)
    assert kept["creative_id"].to_pylist() == ["a"]
    assert again == {"p2": 1}
    second = creative("b2", "p2", 0.7, FAR, 2**256 - 1, number=1)
    kept, again = settled(*first, second)
    assert kept["creative_id"].to_pylist() == ["a", "b2"]
    assert again == {}
    # The second try looks like the first winner again: a third is asked for, and the original ends it.
    kept, again = settled(*first, second | {"background_phash": "0" * 16, "background_simhash": "0" * 64})
    assert again == {"p2": 2}
    last = creative("o", "p2", 0.5, 0, 0, number=2, background_phash=None, fallback=True)
    kept, again = settled(*first, second | {"background_phash": "0" * 16, "background_simhash": "0" * 64}, last)
    assert sorted(kept["creative_id"].to_pylist()) == ["a", "o"]
    assert again == {}


def test_live_scenes_come_first():
    kept, again = settled(creative("a", "p1", 0.9, 0, 0), live=[creative("live", "p9", 0.1, 0, 0)])
    assert kept.num_rows == 0
    assert again == {"p1": 1}


def test_marks_survive_scaling_and_tell_scenes_apart():
    from adbooster.models.clip import Clip
    from tests.conftest import MODELS

    ranker = Clip(MODELS / "rank", "cpu", 2)
    composed = [
        scenes.scene_only(*world.compose(s, "teapot", px, 3))
        for s, px in (("winter", 256), ("winter", 512), ("sailing", 256))
    ]
    found = [scenes.marks(s, v) for s, v in zip(composed, ranker.embed_images(composed), strict=True)]
    bits = [
        [bin(int(a, 16) ^ int(b, 16)).count("1") for a, b in zip(found[0], other, strict=True)] for other in found[1:]
    ]
    assert bits[0][0] <= 8
    assert bits[0][1] <= 40
    assert bits[1][0] > 12
    assert bits[1][1] > 60
