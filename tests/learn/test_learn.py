import json
from datetime import date

import pyarrow as pa
import pytest

from adbooster.cli.load import load
from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.contracts.naming import digest
from adbooster.experiments.holdout import control_id
from adbooster.learn import training
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
    return LearnConfig(**{"root_uri": root.uri, "run_id": run_id, "day": date(2026, 11, 30)} | changes)


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


def test_a_day_that_cannot_be_decides_nothing(shop, tmp_path):
    """One of the file is left out, one that an earlier version has stored is not the day that outcomes fade from."""
    uri = people(tmp_path)
    with open(uri, "a") as file:
        file.write(f"{creative(0, 0)['creative_id']},2062-11-01,10,1,0,1\n")
    report = learn(config(shop, outcomes_uri=uri, max_broken_share=0.5))
    assert (report.broken, written(shop).day) == (1, date(2026, 11, 1))
    shares = tables.read(shop, "allocations")["ctr"].to_pylist()
    wrong = tables.read(shop, "outcomes").slice(0, 1).to_pylist()[0] | {"day": date(2062, 11, 1), "outcome_id": "x"}
    wrong = pa.Table.from_pylist([wrong | {"impressions": 1, "clicks": 0}], schema.OUTCOMES)
    tables.merge(shop, "outcomes", wrong, "outcome_id", tables.version(shop, "outcomes"), {})
    learn(config(shop, "l2"))
    assert written(shop, "l2").day == date(2026, 11, 1)
    assert tables.read(shop, "allocations")["ctr"].to_pylist() == pytest.approx(shares, rel=0.01)


@pytest.mark.parametrize("at", ["adbooster.learn.training.train", "adbooster.learn.decisions.publish_shares"])
def test_a_killed_run_keeps_its_list_and_retires_no_more_when_it_goes_on(shop, tmp_path, monkeypatch, at):
    """Killed after its marks: they are there before the shares, so nothing retired has a share."""
    wanted = config(shop, outcomes_uri=people(tmp_path), retirement={"most": 3, "probability": 0.95})

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(at, killed)
        with pytest.raises(KeyboardInterrupt):
            learn(wanted)
    marked = set(tables.read(shop, "marks")["creative_id"].to_pylist())
    assert len(marked) == 3
    assert {r["creative_id"] for r in json.loads(shop.read("runs/l1/retired.json"))} == marked
    assert shop.exists("runs/l1/learning.json") == at.endswith("train")
    report = learn(wanted)
    assert set(tables.read(shop, "marks")["creative_id"].to_pylist()) == marked
    assert (report.retired, {r.creative_id for r in written(shop).retired}) == (3, marked)
    assert not marked & set(tables.read(shop, "allocations")["creative_id"].to_pylist())
    assert learn(wanted.model_copy(update={"run_id": "l2"})).retired == 3, "another night retires again"


def test_what_is_withdrawn_has_no_share_and_is_not_retired(shop, tmp_path):
    gone = {"product": "P0", "creative": creative(1, 0)["creative_id"]}
    rows = [row(schema.WITHDRAWALS, withdrawal_id=k, kind=k, value=v) for k, v in gone.items()]
    tables.merge(shop, "withdrawals", pa.Table.from_pylist(rows, schema.WITHDRAWALS), "withdrawal_id", None, {})
    report = learn(config(shop, outcomes_uri=people(tmp_path), retirement={"most": 99, "probability": 0.95}))
    shares = tables.read(shop, "allocations").to_pylist()
    assert not {"P0", "P1"} & {r["product_id"] for r in shares}
    assert report.retired == PLACES - 2


def test_an_empty_root_is_a_report_that_says_so(root):
    report = learn(config(root))
    assert report.notes == ["There are no outcomes: nothing is decided by them."]
    assert written(root).lift.together.note


def test_a_file_that_the_job_would_refuse_is_refused_before_the_night(shop, tmp_path):
    check(config(shop, outcomes_uri=people(tmp_path)))
    with pytest.raises(ConfigError, match="12 of 36 rows that cannot be"):
        check(config(shop, outcomes_uri=people(tmp_path, clicks=(5000, 1, 1))))
    assert not shop.exists("tables/outcomes")


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


def test_heads_learn_nothing_of_robots_and_originals(shop, tmp_path):
    uri = people(tmp_path)
    learn(config(shop, outcomes_uri=uri))
    robot, original = creative(0, 0)["creative_id"], digest("original", "P0", "c")[:16]
    rows = tables.read(shop, "outcomes").to_pylist()
    at = next(i for i, r in enumerate(rows) if r["creative_id"] == robot)
    shown = rows[at] | {"creative_id": original, "outcome_id": "o", "margin": None}
    table = pa.Table.from_pylist([rows[at] | {"clicks": 1900}, shown], schema.OUTCOMES)
    tables.merge(shop, "outcomes", table, "outcome_id", tables.version(shop, "outcomes"), {})
    found = training._shown(shop, 5.0)
    assert found[robot].clicks < 100
    assert found.keys() == {creative(p, v)["creative_id"] for p in range(PLACES) for v in range(2)}
