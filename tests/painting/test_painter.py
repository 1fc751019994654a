import json
import time

import numpy as np
import pyarrow as pa
import pytest
import torch

from adbooster.contracts import schema
from adbooster.painting.painter import Kept
from adbooster.painting.selection import Contest
from adbooster.pictures import images, lighting
from tests.generate.test_generate import RECIPE, Stub, painter, requests

TWO = RECIPE | {"max_rounds": 2}


class Verdicts:
    """An inspector that turns the first pictures down with these words and then passes."""

    def __init__(self, *words):
        self.words = list(words)

    def inspect(self, pictures_u8, *_):
        return [((self.words.pop(0) if self.words else None), {}) for _ in pictures_u8]


def one(stocked):
    return requests(stocked).slice(0, 1)


def staged(stocked, verdicts, scores=(0.4, 0.9), own=0.1, rows=None, **recipe):
    stage = painter(stocked, recipe=TWO | recipe)
    stage.painter.ranker, stage.painter.inspector = Stub(list(scores), own), Verdicts(*verdicts)
    return stage(one(stocked) if rows is None else rows).to_pylist()


def test_a_candidate_that_a_gate_turns_down_makes_room_for_the_next(stocked):
    best, second = staged(stocked, [])[0], staged(stocked, ["product_expanded"])[0]
    assert (best["candidate_rejects"], second["candidate_rejects"]) == ([], ["product_expanded"])
    assert round(best["clip_score"], 2) == 0.9
    assert round(second["clip_score"], 2) == 0.4
    assert [round(s, 2) for s in second["candidate_scores"]] == [0.4, 0.9]
    assert second["round"] == 0


def test_all_turned_down_are_painted_again_with_new_seeds(stocked):
    first = staged(stocked, [])[0]
    again = staged(stocked, ["second_copy", "second_copy"])[0]
    assert (again["round"], again["candidate_rejects"]) == (1, ["second_copy"] * 2)
    assert again["seed"] != first["seed"]
    assert again["sha256"] != first["sha256"]
    assert not again["fallback"]


def test_after_the_last_round_the_original_is_published_and_says_why(stocked):
    given_up = staged(stocked, ["second_copy"] * 3 + ["unsafe"])[0]
    assert given_up["fallback"]
    assert given_up["fallback_reason"] == "unsafe"
    assert len(given_up["candidate_rejects"]) == 4
    assert given_up["margin"] == 0


def test_what_does_not_fit_is_not_painted_again(stocked):
    """Nothing above the product's own picture: another round would cost as much and is not asked for."""
    original = staged(stocked, [], own=0.95)[0]
    assert (original["fallback_reason"], original["round"]) == ("below_original", 0)
    assert original["background_phash"] is None


@pytest.mark.parametrize("word", ["duplicate_background", "seen_floating"])
def test_a_request_comes_back_for_its_next_round_or_ends_it(stocked, word):
    rows = one(stocked)

    def again(number):
        row = rows.to_pylist()[0] | {"round": number, "again_for": word}
        return staged(stocked, [], rows=pa.Table.from_pylist([row], schema.REQUESTS))[0]

    second, over = again(1), again(2)
    assert (second["round"], second["fallback"], second["candidate_rejects"]) == (1, False, [word])
    assert second["sha256"] != staged(stocked, [])[0]["sha256"]
    assert (over["round"], over["fallback"], over["fallback_reason"]) == (2, True, word)


def test_every_word_is_known(stocked):
    assert {"below_original", "duplicate_background", "second_copy", "product_expanded"} <= set(schema.REJECTS)


def test_places_are_shared_by_cohorts_and_candidates(stocked):
    """Two cohorts, four candidates, two places: the VAE sees the product twice, not eight times."""
    stage = painter(stocked, recipe=RECIPE | {"candidates": 4, "layouts": 2})
    seen = []
    encode = stage.painter.outpainter.vae.encode
    stage.painter.outpainter.vae.encode = lambda x: seen.append(x.shape) or encode(x)
    rows = stage(requests(stocked))
    assert len(seen) == 2
    assert len(set(rows["request_id"].to_pylist())) == 2


def test_layouts_make_candidates_differ(stocked):
    stage = painter(stocked, recipe=RECIPE | {"keep": 2, "diversity": 0.0, "layouts": 2})
    stage.painter.ranker = Stub([0.4, 0.9], own=0.1)
    a, b = stage(one(stocked)).to_pylist()
    assert a["layout"] != b["layout"]
    stage = painter(stocked, recipe=RECIPE | {"keep": 2, "diversity": 0.0, "layouts": 1})
    stage.painter.ranker = Stub([0.4, 0.9], own=0.1)
    a, b = stage(one(stocked)).to_pylist()
    assert a["layout"] == b["layout"]


def test_placements_have_their_sizes(stocked):
    recipe = RECIPE | {"placements": ("square", "story"), "size_px": 256}
    stage = painter(stocked, recipe=recipe)
    stage.painter.ranker = Stub([0.4, 0.9], own=0.1)
    from adbooster.contracts.recipe import Recipe

    rows = requests(stocked, Recipe(**recipe))
    assert rows.num_rows == 4
    assert len(set(rows["request_id"].to_pylist())) == 4
    done = {(r["cohort_id"], r["placement"]): r for r in stage(rows).to_pylist()}
    assert {(r["width"], r["height"]) for (_, p), r in done.items() if p == "story"} <= {(144, 256), (256, 256)}
    assert images.decode(stocked.read(done["c1", "square"]["uri"])).shape == (256, 256, 3)


def test_lossy_files_record_what_the_product_lost(stocked):
    lossy = staged(stocked, [], image_format="jpeg", quality=80)[0]
    assert lossy["uri"].endswith(".jpg")
    assert 20 < lossy["gates"]["psnr_db"] < 60
    assert staged(stocked, [])[0]["gates"]["psnr_db"] is None


def test_every_creative_says_what_made_it(stocked):
    made = staged(stocked, [])[0]
    empty = {k for k, v in made.items() if v is None}
    assert empty == {"fallback_reason", "reject", "arm", "reward", "unusable"}, "in no experiment, and by CLIP alone"
    assert json.dumps(made["layout"])
    assert np.isclose(made["margin"], made["clip_score"] - 0.1, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_the_size_of_a_pass_does_not_choose_the_picture(stocked, batch):
    """Another paint_batch runs other kernels: the same candidate wins, its pixels at most 3 levels apart."""
    rows, found = requests(stocked), []
    for size in (4, batch):
        stage = painter(stocked, paint_batch=size)
        stage.painter.ranker = Stub([0.4, 0.9], own=0.1)
        found.append(stage(rows).to_pylist())
    for a, b in zip(*found, strict=True):
        assert (a["seed"], a["layout"]) == (b["seed"], b["layout"])
        pictures = [images.decode(stocked.read(r["uri"])).astype(int) for r in (a, b)]
        assert np.abs(pictures[0] - pictures[1]).max() <= 3


CLASH = dict.fromkeys(("scene_light_deg", "product_light_deg"), 90.0) | dict.fromkeys(
    ("colour_distance", "scene_light_confidence", "product_light_confidence", "light_opposition"), 0.0
)


def told(monkeypatch, stage, clashes):
    """Agreements as given, by the candidate's own painting, in place of measured ones."""
    order = {}
    paint = stage.painter.outpainter.paint

    def painting(jobs, *judge):
        out = paint(jobs, *judge)
        order.update({p.tobytes(): clashes[i % len(clashes)] for i, p in enumerate(out)})
        return out

    def agreement(scene_u8, *_):
        clash = order[scene_u8.tobytes()]
        return lighting.Agreement(**CLASH, ground_line=0.6, contact_share=1 - clash, clash=clash)

    monkeypatch.setattr(stage.painter.outpainter, "paint", painting)
    monkeypatch.setattr(lighting, "agreement", agreement)


def test_a_better_scene_may_win_over_a_better_score(stocked, monkeypatch):
    for weight, score in ((0.0, 0.9), (0.4, 0.9), (0.6, 0.4)):
        stage = painter(stocked, recipe=TWO | {"clash_weight": weight})
        stage.painter.ranker, stage.painter.inspector = Stub([0.4, 0.9], own=0.1), Verdicts()
        with monkeypatch.context() as patch:
            told(patch, stage, [0.0, 1.0])
            best = stage(one(stocked)).to_pylist()[0]
        assert round(best["clip_score"], 2) == score


def test_a_floating_product_makes_room_for_the_next(stocked, monkeypatch):
    stage = painter(stocked, recipe=TWO | {"gates": {"min_contact_share": 0.5}})
    stage.painter.ranker, stage.painter.inspector = Stub([0.4, 0.9], own=0.1), Verdicts()
    told(monkeypatch, stage, [0.2, 0.9])
    best = stage(one(stocked)).to_pylist()[0]
    assert (best["candidate_rejects"], round(best["clip_score"], 2)) == (["floating"], 0.4)
    assert best["light"]["contact_share"] == pytest.approx(0.8)


def test_the_figures_of_light_are_stored(stocked):
    light = staged(stocked, [], shadow="grounded")[0]["light"]
    assert set(light) == {f.name for f in schema.LIGHT}
    assert 0 <= light["clash"] <= 1
    assert 0 < light["colour_distance"] < 120
    assert staged(stocked, [], own=0.95)[0]["light"] is None


def test_a_pass_is_judged_while_the_next_one_is_painted(stocked):
    """Eight requests in four passes: what the painter does besides networks costs the night nothing but the last pass."""
    rows = pa.concat_tables([requests(stocked)] * 4)
    stage = painter(stocked, recipe=TWO | {"max_rounds": 1})
    stage.painter.ranker, stage.painter.inspector = Stub([0.4, 0.9], own=0.1), Verdicts()
    placed = stage.placer(rows)
    stage.painter(placed)  # conditions and texts are known from here on
    pass_s = 0.4

    def slow_paint(jobs, *rest):
        time.sleep(pass_s)
        return [np.zeros((64, 64, 3), np.uint8)] * len(jobs)

    def slow_judge(painted):
        time.sleep(pass_s * bool(painted))
        return []

    stage.painter.outpainter.paint, stage.painter._judge = slow_paint, slow_judge
    started = time.monotonic()
    done = stage.painter(placed)
    assert time.monotonic() - started < 6.5 * pass_s, (
        "four passes painted, one judged after them; in turn it were eight"
    )
    assert done.num_rows == 8


def test_an_error_of_the_device_ends_the_call(stocked):
    stage = painter(stocked)

    def broken(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    stage.painter.outpainter.paint = broken
    with pytest.raises(RuntimeError, match="CUDA error"):
        stage(requests(stocked))


def test_only_what_was_used_last_is_kept():
    kept, made = Kept(2), []

    def use(key):
        return kept.use(key, lambda: made.append(key) or key.upper())

    assert [use(k) for k in "abaca"] == ["A", "B", "A", "C", "A"]
    assert made == ["a", "b", "c"]
    use("b")
    assert made == ["a", "b", "c", "b"]


def test_candidates_win_and_lose_as_the_gates_say():
    contest = Contest(np.array([0.2, 0.9, 0.5]), np.array([0.2, 0.9, 0.5]), np.zeros((3, 1)), 0.3, 1, 0.0)
    assert contest.next() == 1
    contest.turn_down()
    assert contest.next() == 2
    contest.choose(2)
    assert contest.next() is None
    assert not contest.again
    hopeless = Contest(np.array([0.2, 0.9]), np.array([0.2, 0.9]), np.zeros((2, 1)), 0.3, 1, 0.0)
    assert hopeless.next() == 1
    hopeless.turn_down()
    assert hopeless.next() is None, "what is below the floor is never looked at"
    assert hopeless.again


class Brightness:
    """A ranker that likes bright pictures."""

    input = Stub.input

    def embed_texts(self, texts):
        return np.ones((len(texts), 1), np.float32)

    def embed_pixels(self, pixels_u8):
        pictures = np.asarray(pixels_u8)
        dark = pictures.shape[1] == self.input.height_px  # the product's own pictures
        return np.float32([[0.0 if dark else p.mean()] for p in pictures])


def test_weaker_candidates_stop_early_and_cannot_win(stocked):
    """Half of them is seen halfway only; of the others one wins, and it is the picture that it would have been anyway."""
    whole, halved = ({"candidates": 4, "num_inference_steps": 4, "halving": {"at": at}} for at in (0, 0.5))
    found = []
    for recipe in (whole, halved):
        stage = painter(stocked, recipe=RECIPE | recipe)
        stage.painter.ranker, stage.painter.inspector = Brightness(), Verdicts()
        asked = stage.painter.outpainter.evaluations
        found.append((stage(one(stocked)).to_pylist()[0], stage.painter.outpainter.evaluations - asked))
    (plain, all_cost), (made, cost) = found
    assert cost == 0.75 * all_cost
    scores = made["candidate_scores"]
    assert sum(s is None for s in scores) == 2
    assert [s for s in scores if s is not None] == [
        whole for whole, s in zip(plain["candidate_scores"], scores, strict=True) if s is not None
    ]
    winner = scores.index(max(s for s in scores if s is not None))
    assert made["clip_score"] == pytest.approx(plain["candidate_scores"][winner])


def test_judging_goes_again_when_memory_holds_it_beside_no_painting(stocked):
    """The first look finds no memory while a pass is painted; the night gets what it would have got."""
    found = []
    for fails in (0, 1):
        stage = painter(stocked)
        stage.painter.ranker, stage.painter.inspector = Stub([0.4, 0.9], own=0.1), Verdicts()
        look, left = stage.painter._look, [fails]

        def short(some, look=look, left=left):
            if left[0]:
                left[0] -= 1
                raise torch.OutOfMemoryError("CUDA out of memory")
            return look(some)

        stage.painter._look = short
        found.append([r["sha256"] for r in stage(requests(stocked)).to_pylist()])
    assert found[0] == found[1]


def test_an_error_while_judging_leaves_no_painting_behind(stocked):
    stage = painter(stocked, paint_batch=2)  # a request a pass: the second is painted while the first is judged
    stage.painter.ranker, stage.painter.inspector = Stub([0.4, 0.9], own=0.1), Verdicts()
    paint, done = stage.painter.outpainter.paint, []

    def slow(jobs, *judge):
        time.sleep(0.3)
        done.append(len(jobs))
        return paint(jobs, *judge)

    def broken(some):
        raise ValueError("a picture that no gate can read")

    stage.painter.outpainter.paint, stage.painter._look = slow, broken
    with pytest.raises(ValueError, match="no gate can read"):
        stage(requests(stocked))
    assert len(done) == 2
    assert all(future.done() for future in stage.painter.painting)
