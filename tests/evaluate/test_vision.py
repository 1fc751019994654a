"""A vision model as a further judge of what is live."""

import pytest

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.evaluate import vision
from adbooster.evaluate.checks import check as check_evaluate
from adbooster.evaluate.job import evaluate
from adbooster.storage import tables
from tests.evaluate.test_evaluate import config, publish, written
from tests.generate.test_seeing import creative, server  # noqa: F401
from tests.seeing.server import seen


def live(root, *rows):
    publish(root, *({name: made.get(name) for name in schema.CREATIVES.names} for made in rows))
    return tables.read(root, "creatives")


def test_shares_of_what_was_seen_with_intervals_and_what_was_not_looked_at(server, root):  # noqa: F811
    """Of four painted creatives one floats, one has people that are asked for, one is not looked at; one is an original."""
    rows = [creative(root, n) for n in range(3)] + [creative(root, 3, text="hiking with friends")]
    original = creative(root, 4, fallback=True)
    found = live(root, *rows, original)
    server.answers = [seen("floating", "tasteless"), seen(), 500, seen("people"), seen("text")]
    settings = server.seeing(max_retries=0, concurrency=1)
    told, notes, counts = vision.look(root, "e1", settings, found.sort_by("creative_id"))
    by_name = {f.name: f for f in told}
    floating = by_name["seen: floating (painted live creatives)"]
    assert (floating.n, floating.unit, floating.value) == (3, "share", pytest.approx(1 / 3))
    assert 0 < floating.low < 1 / 3 < floating.high < 1
    people = by_name["seen: people (painted live creatives)"]
    assert (people.n, people.value) == (2, 0), "one cohort asks for people"
    assert by_name["seen: any (painted live creatives)"].value == pytest.approx(1 / 3)
    assert (by_name["seen: text (live originals)"].n, by_name["seen: text (live originals)"].value) == (1, 1)
    assert (counts.looked, counts.calls) == (4, 5)
    assert notes == ["1 pictures were not looked at by m: InternalServerError 500."]

    again, notes, counts = vision.look(root, "e2", settings, found)
    assert (counts.known, counts.calls, notes) == (4, 1, [])
    assert {f.name: f.n for f in again}["seen: floating (painted live creatives)"] == 4


def test_an_evaluation_looks_at_what_it_measures(server, scenic):  # noqa: F811
    """Nothing of the products of these creatives is in the tables, so that no network has to measure them."""
    live(scenic, *(creative(scenic, n, product_id="gone", cohort_id="gone") for n in range(3)))
    server.default = lambda *_: seen("wrong_scale")
    settings = {"seeing": server.seeing(), "most": 2, "most_scenes": 0, "mask_model": ""}
    report = evaluate(config(scenic, **settings))
    assert (report.seeing.looked, len(server.asked)) == (2, 2)
    (figure,) = [f for f in written(scenic).figures if f.name == "seen: wrong_scale (painted live creatives)"]
    assert (figure.n, figure.value) == (2, 1)
    assert evaluate(config(scenic, "e2", **settings | {"seeing": None})).seeing is None


def test_an_endpoint_without_vision_stops_before_anything_is_measured(server, scenic):  # noqa: F811
    server.blind = True
    with pytest.raises(ConfigError, match="seeing needs a model with vision"):
        evaluate(config(scenic, seeing=server.seeing()))
    assert not scenic.exists("runs")
    assert evaluate(config(scenic, seeing=server.seeing(), dry_run=True)).seeing is None
    with pytest.raises(ConfigError, match="seeing.base_url"):
        check_evaluate(config(scenic, seeing={"model": "m"}))
