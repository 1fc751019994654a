import base64
import hashlib

import numpy as np
import pyarrow as pa
import pytest

from adbooster.contracts import schema
from adbooster.painting import candidates
from adbooster.pictures import images
from adbooster.report import gallery
from tests.conftest import scan
from tests.generate.test_generate import Stub, painter
from tests.painting.test_painter import TWO, Verdicts, one


def painted(stocked, *words, shown=True, rows=None):
    stage = painter(stocked, recipe=TWO)
    stage.painter.shown_up_to = "g" if shown else ""
    stage.painter.ranker, stage.painter.inspector = Stub([0.4, 0.9], own=0.1), Verdicts(*words)
    return stage(one(stocked) if rows is None else rows)


def kept(stocked, rows):
    return candidates.read(stocked, {r["request_id"]: r["run_id"] for r in rows.to_pylist()})


def test_the_sample_is_the_lowest_names_and_hardly_changes_when_more_are_there():
    names = pa.chunked_array(
        [[hashlib.sha256(str(i).encode()).hexdigest() for i in range(*n)] for n in ((0, 700), (700, 1000))]
    )
    last = candidates.shown_up_to(names, 50)
    assert sum(n <= last for n in names.to_pylist()) == len({n for n in names.to_pylist() if n <= last}) == 50
    assert candidates.shown_up_to(names, 5000) == max(names.to_pylist())
    assert candidates.shown_up_to(names, 0) == ""
    assert candidates.shown_up_to(pa.chunked_array([], pa.string()), 5) == ""


def test_what_is_kept_for_the_page_changes_no_creative(stocked):
    shown, hidden = painted(stocked), painted(stocked, shown=False)
    same = [n for n in schema.STAGED.names if n != "gpu_s"]
    assert shown.select(same).equals(hidden.select(same))
    assert len(kept(stocked, shown)) == 1


def test_only_sampled_requests_are_kept(stocked):
    assert kept(stocked, painted(stocked, shown=False)) == {}
    assert not stocked.exists("runs/r1/candidates")


def test_all_candidates_of_all_rounds_with_their_words(stocked):
    rows = painted(stocked, "second_copy", "second_copy", None)
    (found,) = kept(stocked, rows).values()
    told = found["candidates"]
    assert [c["number"] for c in told] == [0, 1, 2, 3]
    assert [c["word"] for c in told] == ["second_copy", "second_copy", None, None]
    winner = rows["seed"][0].as_py()
    assert list(found["winners"]) == [str(winner)]
    assert str(winner) in [c["seed"] for c in told[2:]]
    thumb = images.decode(base64.b64decode(told[0]["thumb"]))
    assert max(thumb.shape) <= candidates.THUMB_PX
    stored = images.decode(stocked.read(rows["uri"][0].as_py())).astype(int)
    large = images.decode(base64.b64decode(found["winners"][str(winner)])).astype(int)
    assert np.abs(stored - large).mean() < 12


def test_the_same_request_keeps_the_same_bytes(stocked):
    def files():
        return {name: stocked.read(f"runs/r1/candidates/{name}") for name in stocked.names("runs/r1/candidates")}

    painted(stocked)
    first = files()
    painted(stocked)
    assert files() == first


@pytest.mark.parametrize("word", ["duplicate_background", "seen_text"])
def test_a_winner_that_stepped_back_says_why(stocked, word):
    rows = one(stocked)
    painted(stocked, rows=rows)
    again = rows.to_pylist()[0] | {"round": 1, "again_for": word}
    second = painted(stocked, rows=pa.Table.from_pylist([again], schema.REQUESTS))
    data = gallery.collect(stocked, "r1", scan(schema.fill(second, schema.CREATIVES)), 9)
    told = data["creatives"][0]["candidates"]
    assert len(told) == 4
    assert [c["won"] for c in told].count(True) == 1
    assert [c["word"] for c in told].count(word) == 1
