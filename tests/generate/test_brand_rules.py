"""A night under brand rules: what they forbid is not painted and leaves; what they allow costs nothing."""

import json
from collections import Counter
from datetime import date, datetime

import pyarrow as pa
import pytest
import yaml

from adbooster.contracts import schema
from adbooster.contracts.deadline import day_of
from adbooster.contracts.errors import ConfigError, CoverageTooLow
from adbooster.contracts.naming import bucket
from adbooster.generate import marks
from adbooster.generate.checks import check as check_generate
from adbooster.generate.job import generate
from adbooster.generate.plan import NightPlan
from adbooster.painting.requests import staged_folder
from adbooster.storage import tables
from tests.conftest import row
from tests.generate.test_generate import config

HALLOWEEN = {"dates": [{"name": "halloween", "cohort": {"words": ["halloween"]}, "from": "10-01", "to": "10-31"}]}
TEAPOTS = {"never": [{"name": "teapots", "words": ["teapot"]}]}
NOTHING = {"never": [{"name": "guns", "words": ["gun"]}]}


@pytest.fixture
def rules(tmp_path):
    def write(sections):
        path = tmp_path / "brand_rules.yaml"
        path.write_text(yaml.safe_dump(sections))
        return {"brand_rules_uri": str(path), "brand_rules_day": date(2026, 11, 1)}

    return write


@pytest.fixture
def painted(stocked):
    """A root with a live creative for every request."""
    with NightPlan(config(stocked, "before"), stocked) as night:
        asked = missing(night)
    place = ("request_id", "product_id", "cohort_id", "placement", "text", "photo_sha256")
    rows = [
        row(schema.CREATIVES, creative_id=f"{i:016x}", rank=0, **{n: r[n] for n in place}, margin=0.1, gpu_s=1.0)
        | {
            "bucket": bucket(r["product_id"]),
            "clip_score": 0.3,
            "neutral_score": 0.2,
            "fallback": False,
            "uri": r["photo_uri"],
        }
        for i, r in enumerate(asked)
    ]
    tables.merge(stocked, "creatives", pa.Table.from_pylist(rows, schema.CREATIVES), "creative_id", None, {})
    return stocked


def missing(night):
    """The requests that a night would paint, as dicts."""
    return [row for part in night.parts for row in night.missing(part).to_pylist()]


def live(root):
    return {r["cohort_id"]: r for r in tables.read(root, "creatives").to_pylist()}


def test_a_forbidden_pair_leaves_with_the_nights_commit_and_nothing_else_changes(painted, rules):
    before, settings = live(painted), rules(HALLOWEEN)
    dry = generate(config(painted, "n1", dry_run=True, **settings))
    assert (dry.requests, dry.to_paint, dry.already_live, dry.brand_rules.live) == (1, 0, 1, 1)
    assert live(painted) == before
    assert not painted.exists("runs/n1/brand_rules.json")

    done = generate(config(painted, "n1", **settings))
    assert (done.painted, done.already_live, done.retired, done.coverage) == (0, 1, 1, 1.0)
    assert live(painted) == {"c2": before["c2"]}
    told = done.brand_rules
    assert (told.day, told.pairs, told.rejects, told.notes) == (date(2026, 11, 1), 1, {"out_of_season": 1}, [])
    assert [s.model_dump() for s in told.rules[0].sample] == [{"product_id": "P1", "cohort_id": "c1"}]
    assert tables.open_table(painted, "creatives").history()[0]["run_id"] == "n1"


def test_other_rules_repaint_nothing_of_what_stays_allowed(stocked, rules):
    recipes, ids, notes = set(), [], []
    for sections in ({}, HALLOWEEN, NOTHING):
        settings = config(stocked, **rules(sections) if sections else {})
        with NightPlan(settings, stocked) as night:
            recipes.add(night.recipe_id)
            ids.append({row["request_id"] for row in missing(night)})
            notes.append(night.brand_figures.notes)
    assert len(recipes) == 1
    assert ids[1] < ids[0] == ids[2]
    assert notes[2] == ["the brand rule 'guns' matches no product and no cohort's query"]


def test_what_was_approved_or_staged_of_a_forbidden_pair_goes_too(painted, rules, tmp_path):
    path = tmp_path / "marks.json"
    said = [{"creative_id": live(painted)["c1"]["creative_id"], "mark": "approved"}]
    path.write_text(json.dumps({"format": marks.FORMAT, "marks": said}))
    shown = {name: value for name, value in live(painted)["c1"].items() if name in schema.STAGED.names}
    staged = row(schema.STAGED, **shown | {"creative_id": "f" * 16, "run_id": "n1", "round": 0})
    with NightPlan(config(painted, "n1"), painted) as night:
        folder = painted.path(staged_folder("n1", night.recipe_id))
    painted.fs.makedirs(folder)
    pa.parquet.write_table(pa.Table.from_pylist([staged], schema.STAGED), f"{folder}/part-0.parquet")
    done = generate(config(painted, "n1", marks_uri=str(path), **rules(HALLOWEEN)))
    assert (done.published, done.retired, list(live(painted))) == (0, 1, ["c2"])


def test_rules_that_forbid_all_leave_nothing_live(painted, rules):
    done = generate(config(painted, "n1", **rules(TEAPOTS)))
    assert (done.requests, done.retired, done.brand_rules.pairs) == (0, 2, 2)
    assert tables.read(painted, "creatives").num_rows == 0


def test_a_night_that_publishes_nothing_says_that_forbidden_ones_stay(painted, rules, monkeypatch):
    gone = live(painted)["c2"]["creative_id"]
    version = tables.version(painted, "creatives")
    tables.merge(painted, "creatives", schema.CREATIVES.empty_table(), "creative_id", version, {}, delete=[gone])
    monkeypatch.setattr("adbooster.generate.rounds._stage", lambda *_: (Counter(), {}))
    with pytest.raises(CoverageTooLow, match="the last night stays live, with 1 creatives that brand rules forbid"):
        generate(config(painted, "n1", **rules(HALLOWEEN)))
    assert list(live(painted)) == ["c1"]


def test_a_run_that_goes_on_decides_as_on_its_first_day(stocked, rules):
    uri = rules(HALLOWEEN)["brand_rules_uri"]

    def planned(run_id, day, **changes):
        settings = config(stocked, run_id, brand_rules_uri=uri, deadline=f"2026-{day}T06:30:00+01:00", **changes)
        with NightPlan(settings, stocked) as night:
            assert (night.requests == 2) == (night.brand_figures.day <= date(2026, 10, 31))
            return night.brand_figures.day

    assert planned("n1", "10-30", dry_run=True) == date(2026, 10, 30)
    assert planned("n1", "10-31") == date(2026, 10, 31)
    assert planned("n1", "11-01") == date(2026, 10, 31)
    assert planned("n2", "11-01") == date(2026, 11, 1)
    assert planned("n1", "11-01", brand_rules_day=date(2026, 11, 2)) == date(2026, 11, 2)
    stocked.write("runs/n1/report.json", b"{}")  # it is finished: the same name again is another run
    assert planned("n1", "11-03") == date(2026, 11, 3)
    stocked.write("runs/n3/brand_rules.json", b'{"day": "yesterday"}')
    with pytest.raises(ConfigError, match="brand_rules.json is not what this run wrote"):
        planned("n3", "11-03")


def test_the_day_is_that_of_the_deadline():
    evening = datetime.fromisoformat("2026-12-26T22:00:00-05:00")
    assert day_of("", evening) == date(2026, 12, 26)
    assert day_of("5h", evening) == date(2026, 12, 27)
    assert day_of("23:00", evening) == date(2026, 12, 26)
    assert day_of("06:30 Asia/Tokyo", evening) == date(2026, 12, 28)


def test_the_rules_are_read_before_any_model(stocked, rules, tmp_path):
    bad = rules({"never": [{"name": "n", "word": ["gun"]}]})
    with pytest.raises(ConfigError, match="never.0.word of the rule 'n' is an unknown key"):
        check_generate(config(stocked, weights=str(tmp_path / "none"), **bad))
