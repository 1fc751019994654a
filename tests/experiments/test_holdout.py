import numpy as np
import pyarrow as pa

from adbooster.experiments.config import Holdout
from adbooster.experiments.holdout import held_out, positions
from adbooster.generate.plan import NightPlan
from adbooster.painting.config import Targeting
from adbooster.painting.requests import Pairs
from adbooster.storage import tables
from adbooster.storage.buckets import WHOLE, parts
from tests.generate.test_generate import config, requests
from tests.generate.test_retirement import nights, on  # noqa: F401

PRODUCTS = pa.array([f"P{i}" for i in range(20_000)])
COHORTS = pa.array([f"c{i % 7}" for i in range(20_000)])


def held(share, salt=""):
    return held_out(PRODUCTS, COHORTS, Holdout(share=share, salt=salt)).to_numpy(zero_copy_only=False)


def test_a_larger_share_holds_out_the_same_pairs_and_more():
    small, large, other = held(0.05), held(0.2), held(0.05, "another")
    assert abs(small.mean() - 0.05) < 0.006
    assert abs(large.mean() - 0.2) < 0.012
    assert not (small & ~large).any()
    assert (small & other).sum() < 0.3 * small.sum()
    assert not held(0.0).any()


def test_positions_of_one_purpose_say_nothing_of_another():
    found = [positions(PRODUCTS, COHORTS, *purpose) for purpose in (("holdout", ""), ("arm", "a"), ("arm", "b"))]
    assert np.abs(np.corrcoef(found) - np.eye(3)).max() < 0.03


def share_of(root):
    """A share that holds out one of the root's two pairs: (share, cohort that is held out, cohort that is not)."""
    at = positions(pa.array(["P1", "P1"]), pa.array(["c1", "c2"]), "holdout", "")
    first, second = np.argsort(at)
    assert at[first] < 0.5, "choose another salt"
    return float(min(at[first] + 1e-6, 0.5)), f"c{first + 1}", f"c{second + 1}"


def test_what_is_live_of_a_held_out_pair_leaves_and_nothing_else_is_painted(stocked, nights):  # noqa: F811
    share, out, painted_cohort = share_of(stocked)
    first, _ = nights("n1")
    stays = on(stocked, painted_cohort)
    assert first.held_out == 0
    report, painted = nights("n2", holdout={"share": share})
    assert (report.held_out, report.requests, painted, report.retired, report.coverage) == (1, 1, 0, 3, 1.0)
    assert on(stocked, out) == []
    assert on(stocked, painted_cohort) == stays
    report, painted = nights("n3", holdout={"share": share}, part_rows=1)
    assert (report.held_out, painted, report.retired) == (1, 0, 0)
    # The control group ends: the pair is painted as before.
    report, painted = nights("n4")
    assert (report.held_out, painted) == (0, 1)
    assert len(on(stocked, out)) == 3


def test_without_a_share_requests_are_those_of_earlier_versions(stocked):
    with NightPlan(config(stocked), stocked) as night:
        planned = night.missing(WHOLE)["request_id"].to_pylist()
    assert planned == requests(stocked, name=night.recipe_id)["request_id"].to_pylist()


def test_a_catalog_in_parts_holds_out_what_one_in_a_single_part_does(stocked):
    sample = tables.read(stocked, "samples").to_pylist()[0]
    more = pa.Table.from_pylist([sample | {"sample_id": f"s{i}", "product_id": f"P{i}"} for i in range(2, 40)])
    tables.merge(stocked, "samples", more.cast(tables.TABLES["samples"]), "sample_id", 0, {})
    pairs = Pairs(stocked, Targeting(), "", holdout=Holdout(share=0.3))

    def kept(some):
        return {(r["product_id"], r["cohort_id"]) for part in some for r in pairs.of(part).held_out.to_pylist()}

    assert kept([WHOLE]) == kept(parts(8, 1))
    assert 8 < len(kept([WHOLE])) < 40
    one = pairs.of(WHOLE)
    assert len(one.of_product) + one.held_out.num_rows == 39 * 2
