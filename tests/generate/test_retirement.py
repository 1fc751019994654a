"""Nights whose painter is made up: what is retired leaves, champions stay, and nothing is painted twice."""

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pap
import pytest

from adbooster.contracts import schema
from adbooster.contracts.naming import digest
from adbooster.contracts.recipe import Gates
from adbooster.generate import rounds
from adbooster.generate.job import generate
from adbooster.generate.marks import Marks, keep_champions
from adbooster.generate.plan import NightPlan
from adbooster.generate.rounds import Painted
from adbooster.painting.duplicates import Scenes
from adbooster.painting.requests import staged_folder
from adbooster.storage import tables
from tests.conftest import row
from tests.generate.test_generate import RECIPE, config
from tests.generate.test_marks import creative, live, request, wanted

KEEP = 3


class Killed(BaseException):
    """What ends a run from outside."""


@pytest.fixture
def nights(stocked, monkeypatch):
    """Runs a night: `ends` gives for each request how many paintings it ends on; 0 its original, None nothing at all.

    Gives the report and how many requests were painted.
    """
    monkeypatch.setattr("adbooster.generate.job._write_page", lambda *_: "")

    def night(run_id, ends=lambda _: KEEP, killed_at="", keep=KEEP, **changes):
        painted = []

        def paint(settings, plan):
            for part in plan.unpainted(plan.staged):
                rows = [r for asked in part.to_pylist() for r in _painted(asked, ends(asked), plan, settings.run_id)]
                painted.extend(part["request_id"].to_pylist())
                folder = staged_folder(settings.run_id, plan.recipe_id)
                stocked.fs.makedirs(stocked.path(folder), exist_ok=True)
                pap.write_table(pa.Table.from_pylist(rows, schema.STAGED), stocked.path(f"{folder}/p.parquet"))
            staged = rounds._staged(settings, stocked, plan)
            return Painted(rows=staged, first_ranks=staged, painted=len(painted), rejected=0)

        def killed(*_):
            raise Killed

        settings = config(stocked, run_id, min_coverage=0, recipe=RECIPE | {"candidates": 4, "keep": keep}, **changes)
        with monkeypatch.context() as patch:
            patch.setattr("adbooster.generate.job.paint", paint)
            if killed_at:
                patch.setattr(killed_at, killed)
                with pytest.raises(Killed):
                    generate(settings)
                return None, len(painted)
            report = generate(settings)
        stocked.write(f"runs/{run_id}/report.json", b"{}")
        return report, len(painted)

    return night


def _painted(asked, number, plan, run_id):
    told = {name: asked[name] for name in asked if name in schema.STAGED.names}
    told |= {"recipe_id": plan.recipe_id, "run_id": run_id, "fallback": False, "clip_score": 0.5, "gpu_s": 1.0}
    if number is None:
        return []
    if not number:
        name = digest(asked["request_id"], "original")[:16]
        return [row(schema.STAGED, **told | {"creative_id": name, "rank": 0, "fallback": True, "sha256": "f" * 64})]
    names = [digest(asked["request_id"], str(i))[:16] for i in range(number)]
    return [
        row(schema.STAGED, **told | {"creative_id": name, "rank": i, "sha256": digest(name)})
        for i, name in enumerate(names)
    ]


def on(root, cohort="c1"):
    """Live creatives of a cohort by their rank."""
    rows = tables.read(root, "creatives").to_pylist()
    return sorted((r for r in rows if r["cohort_id"] == cohort), key=lambda r: r["rank"])


def ids(root, cohort="c1"):
    return [r["creative_id"] for r in on(root, cohort)]


def said(root, word, *creatives):
    names = [n for n in schema.MARKS.names if n not in ("mark", "run_id")]
    rows = [row(schema.MARKS, mark=word, **{n: c[n] for n in names}) for c in creatives]
    base = tables.version(root, "marks")
    tables.merge(root, "marks", pa.Table.from_pylist(rows, schema.MARKS), "creative_id", base, {})


def test_new_ones_join_the_champions_of_a_place_whose_creative_was_retired(stocked, nights):
    nights("n1")
    first = on(stocked)
    other = on(stocked, "c2")
    said(stocked, "retired", first[0])
    report, painted = nights("n2")
    assert (painted, report.to_paint, report.published, report.retired, report.marks.retired) == (1, 1, 1, 1, 1)
    second = on(stocked)
    assert [r["rank"] for r in second] == [0, 1, 2], "champions first, and none of them is a rank short"
    assert [r["creative_id"] for r in second[:2]] == [r["creative_id"] for r in first[1:]]
    assert second[2]["run_id"] == "n2"
    assert second[2]["request_id"] != first[0]["request_id"]
    assert on(stocked, "c2") == other
    report, painted = nights("n3")
    assert (painted, report.already_live, report.retired) == (0, 2, 0)
    assert on(stocked) == second
    # A champion of the first request and one that joined it, in the same night.
    said(stocked, "retired", second[1], second[2])
    assert nights("n4")[1] == 1
    third = on(stocked)
    assert third[0]["creative_id"] == second[0]["creative_id"]
    assert {r["run_id"] for r in third[1:]} == {"n4"}
    assert len(third) == KEEP
    assert nights("n5")[1] == 0


def test_a_place_is_filled_again_whatever_its_retired_creatives_were_painted_under(stocked, nights):
    """One that was painted under a name that is no longer its place's, since more was retired of the place."""
    nights("n1")
    first = on(stocked)
    said(stocked, "retired", first[1])
    nights("n2")
    second = on(stocked)[-1]
    said(stocked, "retired", first[2])
    nights("n3")
    assert len(on(stocked)) == KEEP
    for run, gone in (("n4", second), ("n5", None), ("n6", None)):
        said(stocked, "retired", gone or on(stocked)[-1])
        assert nights(run)[1] == 1
        found = on(stocked)
        assert (len(found), found[0]["creative_id"]) == (KEEP, first[0]["creative_id"])
        assert found[-1]["run_id"] == run
        assert nights(f"{run}-again")[1] == 0


def test_a_single_creative_that_is_retired_is_replaced_as_a_rejected_one_is(stocked, nights):
    nights("n1", keep=1, ends=lambda _: 1)
    first = on(stocked)
    said(stocked, "retired", first[0])
    _, painted = nights("n2", keep=1, ends=lambda _: 1)
    second = on(stocked)
    assert painted == len(second) == 1
    assert second[0]["creative_id"] != first[0]["creative_id"]
    assert nights("n3", keep=1)[1] == 0
    assert on(stocked) == second
    # Without a champion the original takes its place.
    said(stocked, "retired", second[0])
    nights("n4", keep=1, ends=lambda _: 0)
    assert [r["fallback"] for r in on(stocked)] == [True]
    assert nights("n5", keep=1)[1] == 0


def test_an_original_displaces_no_champion_and_is_not_painted_again(stocked, nights):
    nights("n1")
    first = on(stocked)
    said(stocked, "retired", first[2])
    report, painted = nights("n2", ends=lambda _: 0)
    assert (painted, report.published, report.marks.outdone, report.coverage) == (1, 0, 1, 1.0)
    assert ids(stocked) == [r["creative_id"] for r in first[:2]]
    report, painted = nights("n3")
    assert (painted, report.already_live, report.marks.outdone) == (0, 2, 0)
    # The next retirement is another request; and where nothing is left beside, the original is shown.
    said(stocked, "retired", first[1])
    assert nights("n4", ends=lambda _: 0)[1] == 1
    assert ids(stocked) == [first[0]["creative_id"]]
    said(stocked, "rejected", first[0])
    assert nights("n5", ends=lambda _: 0)[1] == 1
    assert [r["fallback"] for r in on(stocked)] == [True]


def test_champions_stay_while_what_replaces_a_creative_is_not_there(stocked, nights):
    nights("n1")
    first = on(stocked)
    said(stocked, "retired", first[0])
    for run in ("n2", "n3"):  # its painter fails, and it is tried again
        report, painted = nights(run, ends=lambda _: None)
        assert (painted, report.coverage) == (1, 1.0)
        assert [(r["creative_id"], r["rank"]) for r in on(stocked)] == [
            (r["creative_id"], i) for i, r in enumerate(first[1:])
        ]
    assert nights("n4")[1] == 1
    assert len(on(stocked)) == KEEP


@pytest.mark.parametrize("killed_at", ["adbooster.generate.job.commit", "adbooster.generate.job.marks.keep_champions"])
def test_a_killed_night_is_gone_on_with(stocked, nights, killed_at):
    nights("n1")
    said(stocked, "retired", on(stocked)[0])
    ends = (lambda _: 2) if killed_at.endswith("commit") else (lambda _: 0)
    assert nights("n2", ends=ends, killed_at=killed_at)[1] == 1
    assert nights("n3")[1] == 0, "what the killed night staged is taken over"
    assert len(on(stocked)) == (3 if killed_at.endswith("commit") else 2)
    assert nights("n4")[1] == 0


def test_rejected_and_retired_creatives_give_one_name_and_rejections_alone_leave_no_champion(stocked, nights):
    nights("n1")
    first = on(stocked)
    said(stocked, "retired", first[0])
    said(stocked, "rejected", first[1])
    assert nights("n2")[1] == 1
    assert ids(stocked)[0] == first[2]["creative_id"]
    assert len(ids(stocked)) == KEEP
    said(stocked, "rejected", on(stocked, "c2")[0])
    assert nights("n3")[1] == 1
    assert {r["run_id"] for r in on(stocked, "c2")} == {"n3"}
    assert len(on(stocked, "c2")) == KEEP


def test_what_people_say_wins_over_retirements(stocked, nights, tmp_path):
    nights("n1")
    first = on(stocked)
    said(stocked, "retired", first[0])
    path = tmp_path / "marks.json"
    name = first[0]["creative_id"]
    for run, word in (("n2", "approved"), ("n3", "cleared")):
        path.write_text(f'{{"format": "adbooster-marks-1", "marks": [{{"creative_id": "{name}", "mark": "{word}"}}]}}')
        report, painted = nights(run, marks_uri=str(path))
        assert (painted, report.marks.retired) == (0, 0)
        assert on(stocked) == first


def test_another_recipe_leaves_no_champions_of_the_one_before(stocked, nights):
    nights("n1")
    said(stocked, "retired", on(stocked)[0])
    assert nights("n2", keep=2, ends=lambda _: 2)[1] == 2
    assert [r["run_id"] for r in on(stocked)] == ["n2", "n2"]


def test_champions_are_what_the_request_is_made_of():
    """Another prompt, photo, text or recipe, an original, and what was rejected is none; nothing is painted beside enough."""
    own = "a" * 64
    made = {"prompt": "p", "negative_prompt": "", "recipe_id": "r"}
    gone = creative(1, own, **made)
    others = [{"prompt": "q"}, {"photo_sha256": "0" * 64}, {"text": "snow"}, {"recipe_id": "s"}, {"fallback": True}]
    rows = [gone, creative(2, "b" * 64, **made), *(creative(5 + i, own, **made | o) for i, o in enumerate(others))]
    names = [n for n in schema.MARKS.names if n not in ("mark", "run_id")]
    mark = row(schema.MARKS, mark="retired", **{n: gone[n] for n in names})
    marks = Marks(pa.Table.from_pylist([mark], schema.MARKS))
    asked = wanted(request(own, prompt="p", negative_prompt=""), request("c" * 64, cohort_id="c2", prompt="p"))
    found = marks.champions(asked, live(*rows), "r")
    assert found["creative_id"].to_pylist() == [f"{2:016x}"]
    named, effects = marks.apply(asked, live())
    assert effects.renamed == 1
    assert marks.settled(named, found, 2).to_pylist() == [False, False]
    assert marks.settled(named, found, 1).to_pylist() == [True, False]


def test_a_request_that_ended_on_its_original_is_tried_again_once_its_champion_has_gone(root):
    asked = wanted(request("a" * 64))
    ended = live(creative(3, "a" * 64, fallback=True))
    keep_champions(root, ended, Marks(schema.MARKS.empty_table()), "n")
    marks = Marks(tables.read(root, "marks"))
    place = ["creative_id", "product_id", "cohort_id", "placement"]
    champions = live(creative(4)).select(place)
    assert marks.settled(asked, champions, 2).to_pylist() == [True]
    assert marks.settled(asked, champions.slice(0, 0), 2).to_pylist() == [False]
    assert marks.apply(asked, live())[0].num_rows == 1, "its place is asked for as before"


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_retired_rejected_and_killed(stocked, nights, seed):
    """Never more than `keep` in a place, never a gap in the ranks, never what has left; no place with a champion is emptied."""
    rng = np.random.default_rng(seed)
    left, fails = set(), rng.random() < 0.5
    nights("n")
    for number in range(9):
        before = defaultdict(list)
        for r in tables.read(stocked, "creatives").to_pylist():
            before[r["cohort_id"]].append(r)
        for rows in before.values():
            if len(rows) > 1 and rng.random() < 0.6:
                gone = rng.choice(np.array(rows, object), rng.integers(1, len(rows)), replace=False).tolist()
                said(stocked, "retired", *(r for r in gone if not r["fallback"]))
                left |= {r["creative_id"] for r in gone if not r["fallback"]}
            elif rng.random() < 0.15:
                said(stocked, "rejected", rows[0])
                left.add(rows[0]["creative_id"])

        def ends(_):
            return None if fails and rng.random() < 0.3 else int(rng.integers(0, KEEP + 1))

        if rng.random() < 0.3:
            nights(f"k{number}", ends, killed_at="adbooster.generate.job.commit")
        nights(f"n{number}", ends)
        rows = tables.read(stocked, "creatives").to_pylist()
        ranks = defaultdict(list)
        for r in rows:
            ranks[r["cohort_id"]].append(r["rank"])
        assert all(sorted(found) == list(range(len(found))) and len(found) <= KEEP for found in ranks.values())
        assert not left & {r["creative_id"] for r in rows}
        champions = {c for c, found in before.items() if any(r["creative_id"] not in left for r in found)}
        assert champions <= set(ranks)
        if not fails:
            again, painted = nights(f"u{number}", ends)
            assert (painted, again.retired, again.published) == (0, 0, 0)
            assert tables.read(stocked, "creatives").to_pylist() == rows


def test_a_scene_that_a_champion_has_is_taken_and_that_of_what_left_is_free(stocked, nights):
    nights("n1")
    gates = {"min_background_distance": 8, "max_background_similarity": 0.9}
    hashes = [{"background_phash": digit * 16, "background_simhash": digit * 64} for digit in "05f"]
    rows = [r | scene for c in ("c1", "c2") for r, scene in zip(on(stocked, c), hashes, strict=True)]
    base = tables.version(stocked, "creatives")
    tables.merge(stocked, "creatives", pa.Table.from_pylist(rows, schema.CREATIVES), "creative_id", base, {})
    said(stocked, "retired", on(stocked)[0])
    settings = config(stocked, "n2", recipe=RECIPE | {"candidates": 4, "keep": KEEP})
    with NightPlan(settings, stocked) as plan:
        asked = plan.missing(plan.parts[0]).to_pylist()[0]
        place = {name: asked[name] for name in ("product_id", "cohort_id", "placement", "request_id")}
        new = [row(schema.STAGED, **place, creative_id=f"{i:016x}", rank=i, **scene) for i, scene in enumerate(hashes)]
        taken = rounds._taken(Scenes(Gates(**gates)), plan, pa.Table.from_pylist(new, schema.STAGED))
    # The other cohort of the product shows all three scenes; only within its own cohort is the retired one's free.
    assert taken.tolist() == [True, True, True]
    tables.merge(
        stocked, "creatives", schema.CREATIVES.empty_table(), "creative_id", base + 1, {}, delete=ids(stocked, "c2")
    )
    with NightPlan(settings, stocked) as plan:
        taken = rounds._taken(Scenes(Gates(**gates)), plan, pa.Table.from_pylist(new, schema.STAGED))
    assert taken.tolist() == [False, True, True]
