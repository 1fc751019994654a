"""What a vision model refuses is painted again or falls back; the painters' stages run in this process."""

import hashlib
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pap
import pytest

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError, CoverageTooLow
from adbooster.generate import rounds
from adbooster.generate.checks import check as check_generate
from adbooster.generate.job import generate
from adbooster.generate.looking import SeeingGate, refused_rounds
from adbooster.painting.requests import staged_folder
from adbooster.pictures import images
from adbooster.storage import tables
from tests.conftest import row
from tests.generate.test_generate import RECIPE, Chain, Stub, config
from tests.seeing.server import VisionServer, seen

ONE_STEP = RECIPE | {"num_inference_steps": 1, "max_rounds": 2}
HALLOWEEN = "teapot, a halloween night"


@pytest.fixture
def server():
    found = VisionServer()
    yield found
    found.shutdown()
    found.server_close()


class InProcess:
    """In place of rounds._stage: paints a wave here and stages it. `dies_in` is a round that kills the run, `paints_until`
    the first whose requests no painter finishes."""

    def __init__(self):
        self.painted, self.chains, self.dies_in, self.paints_until = [], {}, None, 99

    def __call__(self, settings, root, night, rows, _meter, _times, _progress, arrived):
        at = rows["round"][0].as_py()
        if at == self.dies_in:
            raise RuntimeError("killed")
        self.painted += [at] * rows.num_rows
        if at >= self.paints_until:
            return Counter({"crashed": rows.num_rows}), {}
        chain = self.chains.setdefault(settings.run_id, Chain(root, settings, night.recipe_id))
        chain.painter.ranker = Stub([0.4, 0.9], own=0.1)
        folder = staged_folder(settings.run_id, night.recipe_id)
        root.fs.makedirs(root.path(folder), exist_ok=True)
        for i in range(rows.num_rows):
            staged = chain(rows.slice(i, 1))
            name = hashlib.sha256(f"{at} {staged['creative_id'][0]}".encode()).hexdigest()[:32]
            pap.write_table(staged, root.path(f"{folder}/{name}.parquet"))
            arrived(staged)
        return Counter(), {}


@pytest.fixture
def stages(monkeypatch):
    found = InProcess()
    monkeypatch.setattr(rounds, "_stage", found)
    monkeypatch.setattr(rounds.stage_times, "start", object)
    monkeypatch.setattr(rounds.stage_times, "write", lambda *_: {})
    return found


def night(root, server, run_id="r1", seeing=(), **changes):
    settings = server.seeing(max_retries=0, **dict(seeing)) if server else None
    return generate(config(root, run_id, **{"recipe": ONE_STEP, "seeing": settings} | changes))


def live(root) -> dict[str, dict]:
    return {r["cohort_id"]: r for r in tables.read(root, "creatives").to_pylist()}


class FirstOf:
    """Says these words of the first picture of each text that is asked about, and nothing of those after it."""

    def __init__(self, words, texts):
        self.words, self.texts, self.pictures = words, texts, []

    def __call__(self, picture, user):
        self.pictures.append((user["user_looks_for"], picture.tobytes()))
        first = Counter(text for text, _ in self.pictures)[user["user_looks_for"]] == 1
        return seen(*self.words) if first and user["user_looks_for"] in self.texts else seen()


def test_what_is_refused_is_painted_again_and_the_rest_stays(server, stages, stocked):
    server.default = FirstOf(["floating", "text"], [HALLOWEEN])
    report = night(stocked, server)
    assert stages.painted == [0, 0, 1]
    figures = report.seeing
    assert (figures.looked, figures.calls, figures.known) == (3, 3, 0)
    assert (figures.refused, figures.repainted, figures.not_looked) == ({"seen_floating": 1}, 1, {})
    assert (report.published, report.fallbacks, report.coverage) == (2, 0, 1.0)
    assert report.candidate_rejects == {"seen_floating": 1}
    assert report.repainted_duplicates == 0
    texts = [text for text, _ in server.default.pictures]
    assert Counter(texts) == {HALLOWEEN: 2, "teapot, a snowy winter day": 1}
    refused = tables.read(stocked, "sightings", where=pa.compute.field("seen_floating"))["sha256"].to_pylist()
    assert len(refused) == 1
    assert not set(refused) & {r["sha256"] for r in live(stocked).values()}

    # The next night has nothing to paint and nothing to ask, with the gate or without.
    for name, gate in (("r2", server), ("r3", None)):
        again = night(stocked, gate, name)
        assert (again.already_live, again.painted, again.published) == (2, 0, 0)
    assert len(server.asked) == 3


def test_after_the_last_round_the_original_is_published_with_the_word(server, stages, stocked):
    server.default = lambda *_: seen("text", why="letters on the wall")
    report = night(stocked, server)
    assert stages.painted == [0, 0, 1, 1, 2, 2], "the round after the last gives the original without painting"
    assert report.fallback_reasons == {"seen_text": 2}
    assert (report.published, report.coverage, report.seeing.repainted) == (2, 1.0, 4)
    assert report.seeing.refused == {"seen_text": 4}
    assert len(server.asked) == 4, "the product's own picture is not looked at"
    assert all(r["fallback"] and r["fallback_reason"] == "seen_text" for r in live(stocked).values())


def test_a_run_that_was_killed_asks_nothing_twice(server, stages, stocked):
    server.default, stages.dies_in = FirstOf(["wrong_scale"], [HALLOWEEN]), 1
    with pytest.raises(RuntimeError, match="killed"):
        night(stocked, server)
    assert tables.version(stocked, "creatives") is None
    assert len(server.asked) == 2
    stages.dies_in = None
    report = night(stocked, server)
    assert stages.painted == [0, 0, 1]
    assert len(server.asked) == 3
    assert (report.seeing.looked, report.seeing.known, report.seeing.calls) == (3, 2, 1)
    assert report.seeing.refused == {"seen_wrong_scale": 1}
    assert report.published == 2


def test_creatives_are_looked_at_as_the_painters_pools_finish_them(warm_ray, server, stocked):
    server.default = lambda *_: seen("text")
    report = night(stocked, server, recipe=RECIPE | {"max_rounds": 1})
    assert report.fallback_reasons == {"seen_text": 2}
    assert (report.published, report.seeing.calls, report.seeing.repainted) == (2, 2, 2)
    page = stocked.read("runs/r1/gallery.json").decode()
    assert page.count('"word": "seen_text"') == 2, "the page says of each candidate that won why it is not live"


@pytest.mark.parametrize(
    ("answer", "changes", "reasons"),
    [
        (500, {}, {"InternalServerError 500": 2}),
        ("I cannot see it", {}, {"no usable answer": 2}),
        (60.0, {"timeout_s": 0.3}, {"APITimeoutError": 2}),
        (seen("text"), {"max_calls": 0}, {"over max_calls": 2}),
    ],
)
def test_what_nobody_could_look_at_is_published_and_counted(server, stages, stocked, answer, changes, reasons):
    server.default = lambda *_: answer
    report = night(stocked, server, seeing=changes)
    assert (report.published, report.fallbacks, report.coverage) == (2, 0, 1.0)
    assert (report.seeing.looked, report.seeing.not_looked, report.seeing.refused) == (0, reasons, {})
    assert stages.painted == [0, 0]


def test_a_request_that_ends_without_a_creative_leaves_nothing_half_live(server, stages, stocked):
    """Its first creative is refused, its second round crashes: coverage is too low, and nothing at all is live."""
    server.default, stages.paints_until = FirstOf(["people"], [HALLOWEEN]), 1
    with pytest.raises(CoverageTooLow, match="50.0% of 2 requests"):
        night(stocked, server)
    assert tables.version(stocked, "creatives") is None
    report = night(stocked, server, "r2", min_coverage=0.5)
    assert (report.published, report.rejected) == (1, 0)
    assert "c1" not in live(stocked), "what was refused is not published in a later night either"


@pytest.mark.parametrize("fault", ["blind", "only_text"])
def test_an_endpoint_without_vision_stops_before_anything_is_painted_or_written(server, stages, stocked, fault):
    setattr(server, fault, True)
    with pytest.raises(ConfigError, match="seeing needs a model with vision"):
        night(stocked, server)
    assert (stages.painted, server.asked) == ([], [])
    assert not stocked.exists("runs")
    dry = night(stocked, server, dry_run=True)
    assert (dry.to_paint, dry.seeing) == (2, None)


def test_settings_that_cannot_work_are_refused_before_a_cluster_is_used(stocked):
    with pytest.raises(ConfigError, match="seeing.base_url"):
        check_generate(config(stocked, seeing={"model": "m"}))


def test_the_gate_is_no_part_of_a_requests_name(server, stages, stocked):
    with_gate = night(stocked, server, dry_run=True)
    without = night(stocked, None, dry_run=True)
    assert with_gate.recipe_id == without.recipe_id
    report = night(stocked, None)
    assert (report.seeing, server.colours_asked, report.published) == (None, 0, 2)
    assert tables.version(stocked, "sightings") is None


def creative(root, number=0, **changes) -> dict:
    uri = root.put(images.encode_lossless(np.full((40, 40, 3), number, np.uint8)), "webp")
    told = {"creative_id": str(number), "request_id": "q", "round": 0, "rank": 0, "fallback": False, "uri": uri}
    told |= {"sha256": uri, "text": "a snowy day", "prompt": "a teapot, snow"}
    return row(schema.STAGED, **told | changes)


def refused(root, server, *rows, **seeing) -> list[str | None]:
    with SeeingGate(root, server.seeing(**seeing), "r1", None) as gate:
        return gate.refused(pa.Table.from_pylist(list(rows), schema.STAGED)).to_pylist()


def test_people_reject_nothing_where_a_cohort_asks_for_them(server, root):
    server.default = lambda *_: seen("people")
    rows = creative(root, 0), creative(root, 1, text="hiking with friends")
    assert refused(root, server, *rows) == ["seen_people", None]
    server.default = lambda *_: seen("people", "text")
    assert refused(root, server, creative(root, 2, text="hiking with friends")) == ["seen_text"]


def test_only_words_that_are_asked_to_reject_do(server, root):
    server.default = lambda *_: seen("tasteless")
    assert refused(root, server, creative(root)) == [None]
    assert refused(root, server, creative(root), reject=("tasteless",)) == ["seen_tasteless"]


def test_originals_and_rows_that_are_no_creatives_are_not_looked_at(server, root):
    rows = creative(root, 0, fallback=True), creative(root, 1, reject="crashed", uri=None, fallback=None)
    assert refused(root, server, *rows) == [None, None]
    assert server.asked == []


def test_a_rounds_word_is_that_of_its_best_creative(root):
    rows = [creative(root, n, rank=rank, round=at) for n, (rank, at) in enumerate([(1, 0), (0, 0), (0, 1)])]
    words = pa.array(["seen_text", "seen_floating", None], pa.string())
    assert refused_rounds(pa.Table.from_pylist(rows, schema.STAGED), words) == {("q", 0): "seen_floating"}
