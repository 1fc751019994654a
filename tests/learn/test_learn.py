import json
from datetime import date

import pyarrow as pa
import pytest

from adbooster.cli.load import load
from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.experiments.holdout import control_id
from adbooster.learn.checks import check
from adbooster.learn.config import LearnConfig, Learning
from adbooster.learn.job import learn
from adbooster.night.config import SECTIONS
from adbooster.storage import tables
from tests.conftest import row

EXPERIMENT = {"name": "style", "arms": [{"name": "qc"}, {"name": "llm"}]}
PLACES = 12


def creative(place, variant):
    names = {"product_id": f"P{place}", "cohort_id": "c", "placement": "square"}
    facts = {"creative_id": f"{place:x}{variant}".zfill(16), "request_id": f"r{place}".zfill(64), "sha256": "0" * 64}
    return row(schema.CREATIVES, **names, **facts, rank=variant, margin=0.1, fallback=False, arm="style=qc")


@pytest.fixture
def shop(root):
    """A root with twelve places of two variants, and twelve held-out products whose original was delivered."""
    live = [creative(p, v) for p in range(PLACES) for v in range(2)]
    tables.merge(root, "creatives", pa.Table.from_pylist(live, schema.CREATIVES), "creative_id", None, {})
    cohort = row(schema.COHORTS, cohort_id="c", family="seasons")
    tables.merge(root, "cohorts", pa.Table.from_pylist([cohort], schema.COHORTS), "cohort_id", None, {})
    originals = [
        row(
            schema.SHOWN,
            creative_id=control_id(f"H{p}", "c"),
            product_id=f"H{p}",
            cohort_id="c",
            family="seasons",
            placement="square",
            control=True,
        )
        for p in range(PLACES)
    ]
    tables.merge(root, "shown", pa.Table.from_pylist(originals, schema.SHOWN), "creative_id", None, {})
    return root


def people(tmp_path, day="2026-11-01", clicks=(20, 60, 25)):
    """A file in which first variants, second variants and originals have so many clicks each."""
    names = [creative(p, v)["creative_id"] for p in range(PLACES) for v in range(2)]
    lines = [f"{name},{day},2000,{clicks[i % 2] + i % 5},0,0.5" for i, name in enumerate(names)]
    lines += [f"{control_id(f'H{p}', 'c')},{day},2000,{clicks[2] + p % 5},0,1" for p in range(PLACES)]
    path = tmp_path / "o.csv"
    path.write_text("creative_id,day,impressions,clicks,conversions,propensity\n" + "\n".join(lines) + "\n")
    return str(path)


def config(root, run_id="l1", **changes):
    return LearnConfig(root_uri=root.uri, run_id=run_id, **changes)


def state(root):
    return {name: tables.version(root, name) for name in ("outcomes", "allocations", "marks")}


def written(root, run_id="l1"):
    return Learning.model_validate_json(root.read(f"runs/{run_id}/learning.json"))


def test_outcomes_decide_what_is_shown_and_what_is_replaced(shop, tmp_path):
    retirement = {"most": 3, "min_impressions": 1000, "probability": 0.95}
    report = learn(config(shop, outcomes_uri=people(tmp_path), experiments=[EXPERIMENT], retirement=retirement))
    assert (report.rows, report.new, report.outcomes, report.retired) == (36, 36, 36, 3)
    found = written(shop)
    together = found.lift.together
    assert (together.pairs, together.control_pairs) == (12, 12)
    assert together.sure
    assert together.lift.low > 0.1
    assert [f.family for f in found.lift.families] == ["seasons"]
    assert (found.allocation.places, found.allocation.variants) == (PLACES - 3, 2 * PLACES - 6)
    assert {(a.arm, a.family) for a in found.experiments[0].arms} == {("qc", "seasons"), ("llm", "seasons")}

    marks = tables.read(shop, "marks").to_pylist()
    assert {m["mark"] for m in marks} == {"retired"}
    assert {m["creative_id"][-1] for m in marks} == {"0"}, "first variants have a third of the clicks"
    assert all(m["request_id"] and m["sha256"] and m["run_id"] == "l1" for m in marks)
    assert {r["creative_id"] for r in json.loads(shop.read("runs/l1/retired.json"))} == {
        m["creative_id"] for m in marks
    }
    rows = tables.read(shop, "allocations")
    variants = [r for r in rows.to_pylist() if r["level"] == "variant"]
    assert not {m["creative_id"] for m in marks} & {r["creative_id"] for r in variants}
    share = {r["creative_id"]: r["weight"] for r in variants}
    assert all(w > 0.5 for name, w in share.items() if name.endswith("1"))


def test_the_same_outcomes_write_nothing_and_new_ones_do(shop, tmp_path):
    uri = people(tmp_path)
    learn(config(shop, outcomes_uri=uri))
    before = state(shop)
    again = learn(config(shop, "l2", outcomes_uri=uri))
    assert (again.new, again.corrected, again.unchanged, again.allocations_changed) == (0, 0, 36, False)
    learn(config(shop, "l3"))
    assert state(shop) == before
    assert written(shop, "l3").allocation == written(shop).allocation
    corrected = learn(config(shop, "l4", outcomes_uri=people(tmp_path, clicks=(20, 60, 30))))
    assert (corrected.new, corrected.corrected) == (0, 12)
    later = learn(config(shop, "l5", outcomes_uri=people(tmp_path, day="2026-11-02")))
    assert (later.new, later.outcomes, later.allocations_changed) == (36, 72, True)
    assert written(shop, "l5").day == date(2026, 11, 2)


def test_a_dry_run_writes_nothing(shop, tmp_path):
    report = learn(
        config(shop, outcomes_uri=people(tmp_path), retirement={"most": 3, "probability": 0.95}, dry_run=True)
    )
    assert (report.new, report.retired, report.learning_uri) == (36, 3, None)
    assert state(shop) == {"outcomes": None, "allocations": None, "marks": None}
    assert not shop.exists("runs/l1")


def test_a_refused_file_changes_nothing(shop, tmp_path):
    learn(config(shop, outcomes_uri=people(tmp_path)))
    before = state(shop)
    uri = people(tmp_path, day="2026-11-02", clicks=(5000, 1, 1))
    with pytest.raises(ConfigError, match="12 of 36 rows that cannot be"):
        learn(config(shop, "l2", outcomes_uri=uri))
    assert state(shop) == before
    assert not shop.exists("runs/l2")


def test_what_a_person_approved_is_not_retired_and_what_leaves_has_no_share(shop, tmp_path):
    marked = [
        row(schema.MARKS, creative_id=creative(p, 0)["creative_id"], mark="approved" if p else "rejected")
        for p in range(11)
    ]
    tables.merge(shop, "marks", pa.Table.from_pylist(marked, schema.MARKS), "creative_id", None, {})
    report = learn(config(shop, outcomes_uri=people(tmp_path), retirement={"most": 99, "probability": 0.95}))
    assert [r.creative_id for r in written(shop).retired] == [creative(11, 0)["creative_id"]]
    assert report.retired == 1
    marks = {m["creative_id"]: m["mark"] for m in tables.read(shop, "marks").to_pylist()}
    assert marks[creative(1, 0)["creative_id"]] == "approved"
    assert creative(0, 0)["creative_id"] not in tables.read(shop, "allocations")["creative_id"].to_pylist()


def test_held_out_pairs_have_no_shares(shop, tmp_path):
    learn(config(shop, outcomes_uri=people(tmp_path), holdout={"share": 0.5}))
    allocated = set(tables.read(shop, "allocations")["product_id"].to_pylist())
    assert 0 < len(allocated) < PLACES


def test_an_empty_root_is_a_report_that_says_so(root):
    report = learn(config(root))
    assert report.notes == ["There are no outcomes: nothing is decided by them."]
    assert written(root).lift.together.note


def test_what_cannot_work_is_refused_before_anything_starts(root, tmp_path):
    with pytest.raises(ConfigError, match="no outcomes table"):
        check(config(root, outcomes_uri=str(tmp_path / "gone.csv")))
    with pytest.raises(ConfigError, match="two experiments are called 'style'"):
        check(config(root, experiments=[EXPERIMENT, EXPERIMENT]))


def test_a_file_of_a_night_says_once_what_is_held_out_and_tried(tmp_path):
    path = tmp_path / "night.yaml"
    path.write_text(
        "root_uri: r\ngenerate: {weights: w, holdout: {share: 0.1}, experiments: [{name: style, arms: [{name: a}, {name: b}]}]}\n"
        "learn: {outcomes_uri: ./o.csv, retirement: {most: 5}}\n"
    )
    found = load(LearnConfig, ["--config", str(path)])
    assert (found.holdout.share, found.experiments[0].name, found.retirement.most) == (0.1, "style", 5)
    assert found.outcomes_uri == str(tmp_path / "o.csv")
    assert SECTIONS.index("cohorts") < SECTIONS.index("learn") < SECTIONS.index("generate")
