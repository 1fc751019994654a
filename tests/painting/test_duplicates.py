import numpy as np
import pyarrow as pa
import pytest

from adbooster.contracts import schema
from adbooster.contracts.recipe import Gates
from adbooster.generate.rounds import settle
from adbooster.painting import selection
from adbooster.painting.duplicates import Scenes
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
    assert Scenes(GATES).take(table(second, creative("a", "p1", 0.9, 0, 0))) == [new, True]
    assert Scenes(Gates()).take(table(second, creative("a", "p1", 0.9, 0, 0))) == [True, True]


def test_the_better_score_keeps_the_scene_whatever_the_order():
    rows = [creative("a", "p1", 0.7, 0, 0), creative("b", "p2", 0.9, 0, 0), creative("c", "p3", 0.8, FAR, 0)]
    assert Scenes(GATES).take(table(*rows)) == [False, True, True]
    assert Scenes(GATES).take(table(*rows[::-1])) == [True, True, False]


def test_settling_asks_for_new_rounds_until_nothing_is_twice():
    none = lambda: Scenes(GATES)  # noqa: E731
    first = [creative("a", "p1", 0.9, 0, 0), creative("b", "p2", 0.8, 0, 0)]
    kept, again = settle(table(*first), none)
    assert kept["creative_id"].to_pylist() == ["a"]
    assert again == {"p2": 1}
    second = creative("b2", "p2", 0.7, FAR, 2**256 - 1, number=1)
    kept, again = settle(table(*first, second), none)
    assert kept["creative_id"].to_pylist() == ["a", "b2"]
    assert again == {}
    # The second try looks like the first winner again: a third is asked for, and the original ends it.
    kept, again = settle(table(*first, second | {"background_phash": "0" * 16, "background_simhash": "0" * 64}), none)
    assert again == {"p2": 2}
    last = creative("o", "p2", 0.5, 0, 0, number=2, background_phash=None, fallback=True)
    kept, again = settle(
        table(*first, second | {"background_phash": "0" * 16, "background_simhash": "0" * 64}, last), none
    )
    assert sorted(kept["creative_id"].to_pylist()) == ["a", "o"]
    assert again == {}


def test_live_scenes_come_first():
    def live():
        scenes = Scenes(GATES)
        scenes.take(table(creative("live", "p9", 0.1, 0, 0)))
        return scenes

    kept, again = settle(table(creative("a", "p1", 0.9, 0, 0)), live)
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
