"""Which of several live variants is shown, with which probability, and what is said of pairs that are held out."""

import hashlib
import json
from collections import Counter
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pytest

from adbooster.channels.feed_text import parse
from adbooster.channels.presets import load_channels
from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.contracts.settings import completed
from adbooster.deliver.checks import check
from adbooster.deliver.config import DeliverConfig
from adbooster.deliver.job import deliver
from adbooster.deliver.withdraw import withdraw
from adbooster.experiments import shown
from adbooster.experiments.config import Holdout
from adbooster.experiments.holdout import control_id, held_out, original_id
from adbooster.pictures import images
from adbooster.storage import tables
from tests.conftest import row
from tests.deliver.conftest import config
from tests.deliver.pictures import BOX, master, publish
from tests.deliver.test_deliver import delivered, killed_at, mark

DAY = date(2026, 12, 1)


def variants(root, products=("P1",), number=3):
    """Live creatives of the cohort c1, `number` a product with ranks and pictures of their own; ids by product, best first."""
    firsts, rows = publish(root, products=products), []
    for i, first in enumerate(firsts):
        for rank in range(1, number):
            content = images.encode_lossless(master(BOX, seed=5000 + 100 * i + rank)[0])
            name = hashlib.sha256(f"{first['product_id']} {rank}".encode()).hexdigest()[:16]
            told = {"creative_id": name, "rank": rank, "uri": root.put(content, "webp"), "size_bytes": len(content)}
            rows.append(first | told | {"sha256": hashlib.sha256(content).hexdigest()})
    added = pa.Table.from_pylist(rows, schema.CREATIVES)
    tables.merge(root, "creatives", added, "creative_id", tables.version(root, "creatives"), {})
    by_product = {first["product_id"]: [first["creative_id"]] for first in firsts}
    for r in rows:
        by_product[r["product_id"]].append(r["creative_id"])
    return by_product


def allocate(root, weights):
    """Weights by creative_id as tables/allocations has them."""
    rows = [
        row(schema.ALLOCATIONS, allocation_id=name, level="variant", creative_id=name, weight=weight)
        for name, weight in weights.items()
    ]
    rows.append(row(schema.ALLOCATIONS, allocation_id="arm", level="arm", arm="a", weight=1.0))
    base = tables.version(root, "allocations")
    tables.merge(root, "allocations", pa.Table.from_pylist(rows, schema.ALLOCATIONS), "allocation_id", base, {})


def every(names):
    return [name for of in names.values() for name in of]


def of_day(root, channels, day=DAY, run_id="d1", redraw_days=1, **changes):
    return config(root, channels, run_id, variants={"day": day, "redraw_days": redraw_days}, **changes)


def seen(root):
    """(creative, propensity) that each product's rows show; every slot of every channel shows the same."""
    rows = {(r["product_id"], r["creative_id"], round(r["propensity"], 5)) for r in delivered(root)}
    found = {product: (creative, propensity) for product, creative, propensity in rows}
    assert len(found) == len(rows)
    return found


def test_without_an_allocation_the_best_is_shown_for_certain(root, small, rendered):
    names = variants(root)
    report = deliver(of_day(root, small("meta", "web")))
    assert seen(root) == {"P1": (names["P1"][0], 1.0)}
    assert (report.creatives, report.left_out, report.first_shown) == (1, {}, 1)
    assert all("propensity" not in slot for slot in manifest(root)["P1"]["c1"].values())


def test_a_variant_is_drawn_with_its_probability_and_all_slots_show_it(root, small, rendered):
    names = variants(root, tuple(f"P{i}" for i in range(12)))
    weights = (0.6, 0.3, 0.1)
    allocate(root, {name: w for of in names.values() for name, w in zip(of, weights, strict=True)})
    channels, drawn = small("tiktok", "web"), Counter()
    for i in range(6):
        deliver(of_day(root, channels, DAY + timedelta(days=i), f"d{i}"))
        for product, (creative, propensity) in seen(root).items():
            rank = names[product].index(creative)
            assert propensity == pytest.approx(weights[rank])
            drawn[rank] += 1
    assert [drawn[rank] / 72 for rank in range(3)] == pytest.approx(weights, abs=0.17)
    assert {slot["propensity"] for of in manifest(root).values() for slot in of["c1"].values()} <= {0.6, 0.3, 0.1}


def test_an_unchanged_allocation_and_period_draw_the_same_and_make_nothing(root, small, rendered):
    names = variants(root, ("P1", "P2", "P3", "P4"))
    allocate(root, dict.fromkeys(every(names), 1 / 3))
    channels, week = small("tiktok", "web"), DAY - timedelta(days=DAY.toordinal() % 7)
    first = deliver(of_day(root, channels, week, redraw_days=7))
    assert first.left_out == {"not_drawn": 8}
    before, feeds = seen(root), root.stats("delivery")
    for i in (1, 6):
        report = deliver(of_day(root, channels, week + timedelta(days=i), f"d{i}", redraw_days=7))
        assert (report.changed, report.to_render, report.first_shown) == (0, 0, 0)
    assert (seen(root), root.stats("delivery"), len(rendered)) == (before, feeds, 1)
    deliver(of_day(root, channels, week + timedelta(days=7), "d7", redraw_days=7))
    assert seen(root) != before
    # Other weights within the period change nothing: what is shown was drawn with those of the period's first day.
    before = seen(root)
    drawn = {creative for creative, _ in before.values()}
    allocate(root, {name: 0.02 if name in drawn else 0.49 for name in every(names)})
    report = deliver(of_day(root, channels, week + timedelta(days=8), "d8", redraw_days=7))
    assert (report.changed, report.to_render, seen(root)) == (0, 0, before)
    # What may no longer be shown is drawn anew, alone.
    gone = before["P2"][0]
    mark(root, gone, "rejected")
    deliver(of_day(root, channels, week + timedelta(days=9), "d9", redraw_days=7))
    now = seen(root)
    assert now["P2"][0] != gone
    assert {p: c for p, c in now.items() if p != "P2"} == {p: c for p, c in before.items() if p != "P2"}
    deliver(of_day(root, channels, week + timedelta(days=14), "d14", redraw_days=7))
    assert {p for _, p in seen(root).values()} <= {0.02, 0.49, round(0.02 / 0.51, 5), round(0.49 / 0.51, 5), 0.5}


def test_what_outcomes_retired_is_replaced_and_the_next_best_shown(root, small, rendered):
    """Also where another night retired it after its share had been allocated."""
    names = variants(root, ("P1", "P2"))
    allocate(root, dict(zip(names["P1"], (0.1, 0.45, 0.45), strict=True)))
    for creative in (names["P1"][0], names["P2"][0]):
        mark(root, creative, "retired")
    report = deliver(of_day(root, small("tiktok")))
    found = seen(root)
    assert found["P1"][0] in names["P1"][1:]
    assert found["P1"][1] == pytest.approx(0.5)
    assert found["P2"] == (names["P2"][1], 1.0), "nothing was allocated in its place: the best of what is left"
    assert report.left_out == {"replaced": 2, "not_drawn": 1}


def test_which_placement_a_slot_shows_does_not_depend_on_what_was_drawn(root, small, rendered):
    """One of the square's variants has another size, of which the slot shows a larger part than of the landscape."""
    first = publish(root, placement="square", size=(240, 240))[0]
    wide = publish(root, placement="landscape", size=(400, 240))[0]
    content = images.encode_lossless(master(BOX, 300, 240, seed=9)[0])
    other = first | {"creative_id": "f" * 16, "rank": 1, "uri": root.put(content, "webp"), "width": 300}
    other |= {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    added = pa.Table.from_pylist([other], schema.CREATIVES)
    tables.merge(root, "creatives", added, "creative_id", tables.version(root, "creatives"), {})
    channels, placed = small("meta", "web"), []
    for weight in (1.0, 0.0):
        allocate(root, {first["creative_id"]: weight, other["creative_id"]: 1 - weight})
        deliver(of_day(root, channels, run_id=f"d{weight}"))
        placed.append({(r["channel"], r["slot"]): r["placement"] for r in delivered(root)})
        shown_of = {r["creative_id"] for r in delivered(root)}
        assert shown_of <= {wide["creative_id"], first["creative_id"] if weight else other["creative_id"]}
    assert placed[0] == placed[1]
    assert set(placed[0].values()) == {"square", "landscape"}


def test_what_may_not_be_shown_is_not_among_the_drawn(root, small, rendered):
    names = variants(root)["P1"]
    allocate(root, dict(zip(names, (0.5, 0.3, 0.2), strict=True)))
    mark(root, names[0], "rejected")
    channels = small("tiktok")
    for i in range(4):
        report = deliver(of_day(root, channels, DAY + timedelta(days=i), f"d{i}"))
        creative, propensity = seen(root)["P1"]
        assert propensity == pytest.approx({names[1]: 0.6, names[2]: 0.4}[creative], abs=1e-5)
        assert report.left_out == {"rejected": 1, "not_drawn": 1}
    mark(root, names[2], "approved")
    deliver(of_day(root, channels, run_id="e", require="approved"))
    assert seen(root) == {"P1": (names[2], 1.0)}
    withdraw(root, "creative", [names[2]], "w")
    deliver(of_day(root, channels, run_id="f"))
    assert seen(root) == {"P1": (names[1], 1.0)}


def test_a_variant_that_is_newer_than_the_allocation_has_an_even_share(root, small, rendered):
    names = variants(root)["P1"]
    allocate(root, {names[0]: 0.9, names[1]: 0.1})
    expected = dict(zip(names, (0.6, 2 / 30, 1 / 3), strict=True))
    for i in range(3):
        deliver(of_day(root, small("tiktok"), DAY + timedelta(days=i), f"d{i}"))
        creative, propensity = seen(root)["P1"]
        assert propensity == pytest.approx(expected[creative], abs=1e-5)


def test_a_root_from_before_there_were_propensities_stays_as_it_is(root, small, rendered):
    publish(root, products=("P1", "P2"), cohorts=("c1", "c2"))
    channels = small("tiktok", "web")
    deliver(config(root, channels))
    rows = tables.read(root, "deliveries")
    older = rows.set_column(rows.schema.get_field_index("propensity"), "propensity", pa.nulls(len(rows), pa.float32()))
    tables.merge(root, "deliveries", older, "delivery_id", 0, {})
    feeds = root.stats("delivery")
    report = deliver(config(root, channels, run_id="d2"))
    assert (report.changed, report.removed, report.to_render, report.deliveries_version) == (0, 0, 0, 1)
    assert root.stats("delivery") == feeds


def test_the_arm_of_a_creative_is_in_its_rows_and_follows_it(root, small, rendered):
    creatives = publish(root, arm="prompts=plain", margin=0.25)
    deliver(config(root, small("tiktok")))
    assert {r["arm"] for r in delivered(root)} == {"prompts=plain"}
    moved = pa.Table.from_pylist([creatives[0] | {"arm": "prompts=photo"}], schema.CREATIVES)
    tables.merge(root, "creatives", moved, "creative_id", tables.version(root, "creatives"), {})
    report = deliver(config(root, small("tiktok"), run_id="d2"))
    assert (report.changed, report.to_render, report.first_shown) == (1, 0, 1)
    assert [r["arm"] for r in tables.read(root, "shown").to_pylist()] == ["prompts=photo"]
    assert tables.read(root, "shown")["run_id"].to_pylist() == ["d1"], "it was first shown then"


def manifest(root):
    """By product and cohort the slots of the channel web."""
    entries = parse(root.read("delivery/web/feed.json"), "json", "id")
    return {name: entry["cohorts"] for name, entry in entries.items()}


COHORTS = ("c1", "c2", "c3")
HOLDOUT = {"share": 0.4}


@pytest.fixture
def shop(root):
    """Four products live in three cohorts; pairs by whether they are held out under HOLDOUT."""
    products = ("P1", "P2", "P3", "P4")
    publish(root, products=products, cohorts=COHORTS)
    cohorts = [row(schema.COHORTS, cohort_id=c, family="events", query=c, context="a scene") for c in COHORTS]
    tables.merge(root, "cohorts", pa.Table.from_pylist(cohorts, schema.COHORTS), "cohort_id", None, {})
    samples = [
        sample | {"caption": "a disc", "category": "Toys"} for sample in tables.read(root, "samples").to_pylist()
    ]
    rows = pa.Table.from_pylist(samples, schema.SAMPLES)
    tables.merge(root, "samples", rows, "sample_id", tables.version(root, "samples"), {})
    pairs = [(p, c) for p in products for c in COHORTS]
    kept = held_out(*(pa.array(list(ids)) for ids in zip(*pairs, strict=True)), Holdout(**HOLDOUT)).to_pylist()
    assert 0 < sum(kept) < len(kept)
    return [pair for pair, held in zip(pairs, kept, strict=True) if held], [
        pair for pair, held in zip(pairs, kept, strict=True) if not held
    ]


def pairs_of(rows):
    return sorted({(r["product_id"], r["cohort_id"]) for r in rows})


def test_held_out_pairs_have_rows_of_their_own_and_no_picture_of_ours(root, small, rendered, shop):
    held, others = shop
    channels = small("meta", "web")
    report = deliver(config(root, channels, holdout=HOLDOUT))
    assert (report.held_out, report.left_out) == (len(held), {"holdout": len(held)})
    rows = delivered(root, reason="holdout")
    slots = sum(len(channel.slots) for channel in load_channels(channels))
    assert (pairs_of(rows), len(rows)) == (held, len(held) * slots)
    for r in rows:
        assert r["creative_id"] == control_id(r["product_id"], r["cohort_id"])
        assert (r["propensity"], r["made_by"], r["uri"], r["rendition_id"]) == (1.0, None, None, None)
    assert pairs_of(delivered(root, reason=None)) == others
    assert sum(channel.empty["holdout"] for channel in report.channels.values()) == len(rows)
    # The manifest says what the control's outcomes are counted to; a catalog says nothing of it.
    said = manifest(root)
    for product, cohort in held:
        assert {json.dumps(slot, sort_keys=True) for slot in said[product][cohort].values()} == {
            json.dumps({"control": True, "creative_id": control_id(product, cohort)}, sort_keys=True)
        }
    assert all("url" in slot for p, c in others for slot in said[p][c].values())
    catalog = root.read("delivery/meta/feed.csv").decode()
    assert "None" not in catalog
    again = deliver(config(root, channels, run_id="d2", holdout=HOLDOUT))
    assert (again.changed, again.removed, again.first_shown) == (0, 0, 0)


def test_a_pair_without_a_creative_is_shown_as_an_original_on_the_side_of_creatives(root, small, rendered, shop):
    held, others = shop
    live = tables.read(root, "creatives").to_pylist()
    plain = {others[0]: "fallback", others[1]: "rejected", others[2]: "gone"}
    ids = {(r["product_id"], r["cohort_id"]): r["creative_id"] for r in live}
    changed = [r | {"fallback": True} for r in live if (r["product_id"], r["cohort_id"]) == others[0]]
    base = tables.version(root, "creatives")
    rows = pa.Table.from_pylist(changed, schema.CREATIVES)
    tables.merge(root, "creatives", rows, "creative_id", base, {}, delete=[ids[others[2]]])
    mark(root, ids[others[1]], "rejected")
    channels = small("web", "meta")
    report = deliver(config(root, channels, holdout=HOLDOUT))
    rows = delivered(root, reason="original")
    assert pairs_of(rows) == sorted(plain)
    assert {r["creative_id"] for r in rows} == {original_id(*pair) for pair in plain}
    assert {r["propensity"] for r in rows} == {1.0}
    assert (pairs_of(delivered(root, reason="holdout")), report.held_out) == (held, len(held))
    said = manifest(root)
    for product, cohort in plain:
        assert next(iter(said[product][cohort].values())) == {
            "creative_id": original_id(product, cohort),
            "original": True,
        }
    seen_of = {(r["product_id"], r["cohort_id"]): r for r in tables.read(root, "shown").to_pylist()}
    assert all((r["control"], r["margin"], r["request_id"]) == (False, None, None) for r in map(seen_of.get, plain))
    assert set(seen_of) == {*held, *others}
    again = deliver(config(root, channels, run_id="d2", holdout=HOLDOUT))
    assert (again.changed, again.removed, again.first_shown) == (0, 0, 0)
    # Without a control group there is nothing to compare with, and the rows leave.
    deliver(config(root, channels, run_id="d3", max_removed_share=1))
    assert not delivered(root, reason="original")


def test_a_product_that_is_sold_out_is_on_a_side_only_while_it_is_shown(root, small, rendered, shop):
    held, others = shop
    out = {held[0][0], next(p for p, _ in others if p != held[0][0])}
    samples = [r | {"available": r["product_id"] not in out} for r in tables.read(root, "samples").to_pylist()]
    base = tables.version(root, "samples")
    tables.merge(root, "samples", pa.Table.from_pylist(samples, schema.SAMPLES), "sample_id", base, {})
    gone = [r["creative_id"] for r in tables.read(root, "creatives").to_pylist() if r["product_id"] == held[0][0]]
    base = tables.version(root, "creatives")
    tables.merge(root, "creatives", schema.CREATIVES.empty_table(), "creative_id", base, {}, delete=gone)
    deliver(config(root, small("web"), holdout=HOLDOUT))
    assert pairs_of(delivered(root, reason="holdout")) == [pair for pair in held if pair[0] != held[0][0]]
    assert not delivered(root, product_id=held[0][0])


def test_what_was_shown_is_remembered_once(root, small, rendered, shop, monkeypatch):
    held, others = shop
    channels = small("tiktok")
    with killed_at("adbooster.deliver.job.shown.remember", monkeypatch):
        deliver(config(root, channels, holdout=HOLDOUT))
    report = deliver(config(root, channels, run_id="d2", holdout=HOLDOUT))
    rows = tables.read(root, "shown").to_pylist()
    assert report.first_shown == len(rows) == len(held) + len(others)
    assert pairs_of(r for r in rows if r["control"]) == held
    assert pairs_of(r for r in rows if not r["control"]) == others
    assert {r["family"] for r in rows} == {"events"}
    assert all((r["request_id"] is None) == r["control"] for r in rows)
    deliver(config(root, small("tiktok", "web"), run_id="d3", holdout=HOLDOUT))
    assert tables.version(root, "shown") == 0
    # The control group ends: what was held out is shown, its control rows stay for outcomes that come late.
    deliver(config(root, channels, run_id="d4"))
    assert len(tables.read(root, "shown")) == len(rows) + len(held)
    assert not delivered(root, channel="tiktok", reason="holdout")


def test_two_runs_that_remember_at_once_both_do(root, monkeypatch):
    one, two = (
        pa.Table.from_pylist([row(schema.SHOWN, creative_id=f"{i:016x}", control=False)], schema.SHOWN) for i in (1, 2)
    )
    merge, raced = tables.merge, []

    def overtaken(*given, **more):
        if not raced:
            raced.append(1)
            shown.remember(root, two, "b")
        return merge(*given, **more)

    monkeypatch.setattr(tables, "merge", overtaken)
    assert shown.remember(root, one, "a") == 1
    assert sorted(tables.read(root, "shown")["run_id"].to_pylist()) == ["a", "b"]


def test_what_is_withdrawn_or_not_targeted_is_no_control(root, small, rendered, shop, tmp_path):
    held, _ = shop
    channels = small("web")
    listed = tmp_path / "pairs.csv"
    listed.write_text("product_id,cohort_id\n" + "".join(f"{p},{c}\n" for p, c in held[1:]))
    targeting = {"rule": "table", "table_uri": str(listed)}
    deliver(config(root, channels, holdout=HOLDOUT, targeting=targeting))
    assert pairs_of(delivered(root, reason="holdout")) == held[1:]
    withdraw(root, "product", [held[-1][0]], "w")
    left = [pair for pair in held if pair[0] != held[-1][0]]
    assert pairs_of(delivered(root, reason="holdout")) == [pair for pair in held[1:] if pair in left]
    deliver(config(root, channels, run_id="d2", holdout=HOLDOUT, max_removed_share=1))
    assert pairs_of(delivered(root, reason="holdout")) == left


def test_which_pairs_there_are_is_taken_from_generate():
    given = {"channels": ["web"], "public_base_url": "https://cdn.shop.example/ads", "root_uri": "/r"}
    generate = {"holdout": {"share": 0.1}, "targeting": {"rule": "top_n", "n": 3}, "rank_model": "/m", "weights": "/w"}
    taken = DeliverConfig(**completed(DeliverConfig, given, {"generate": generate}))
    assert (taken.holdout.share, taken.targeting.n, taken.rank_model) == (0.1, 3, "/m")
    assert DeliverConfig(**completed(DeliverConfig, given, {})).holdout.share == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"targeting": {"rule": "top_n"}}, "needs rank_model"),
        ({"targeting": {"rule": "table"}}, "needs targeting.table_uri"),
        ({"brand_rules_uri": "/none.yaml"}, "there is no brand rules"),
    ],
)
def test_pairs_that_cannot_be_told_are_one_sentence_before_anything_starts(root, small, changes, said):
    with pytest.raises(ConfigError, match=said):
        check(config(root, small("web"), holdout={"share": 0.1}, **changes))
    if "brand_rules_uri" not in changes:
        check(config(root, small("web"), **changes))


def test_a_seed_draws_anew(root, small, rendered):
    names = variants(root, tuple(f"P{i}" for i in range(8)), number=2)
    allocate(root, dict.fromkeys(every(names), 0.5))
    found = []
    for seed in (0, 1, 0):
        deliver(config(root, small("tiktok"), f"d{len(found)}", variants={"seed": seed, "day": DAY}))
        found.append(seen(root))
    assert found[0] == found[2] != found[1]
    assert np.mean([found[0][p] != found[1][p] for p in names]) > 0.1
