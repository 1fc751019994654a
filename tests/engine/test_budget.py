"""What deadline and budget leave is what the report says, nothing of it is lost, and the next night paints it."""

import io
import time
from datetime import datetime, timedelta
from functools import partial
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pap
import pytest
import ray

from adbooster.contracts import schema
from adbooster.contracts.deadline import parse_deadline
from adbooster.contracts.errors import ConfigError, CoverageTooLow
from adbooster.contracts.settings import Pool
from adbooster.engine.budget import LEFT, BudgetMeter, begin_round, settled, start_meter
from adbooster.engine.pools import dataset, through
from adbooster.engine.progress import Progress
from adbooster.engine.staging import stage_parts
from adbooster.generate.config import GenerateReport
from adbooster.generate.job import generate
from adbooster.storage import tables
from adbooster.storage.objects import Root
from tests.conftest import row
from tests.engine.stages import Copier
from tests.generate.test_generate import RECIPE, config

NOW = datetime(2026, 11, 24, 23, 30, tzinfo=ZoneInfo("Europe/Berlin"))
ONE_BATCH = 1e-7  # GPU-hours: the first batch is let through, as none was measured; then the budget is used up


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("5h", NOW + timedelta(hours=5)),
        ("90m", NOW + timedelta(minutes=90)),
        ("1.5h", NOW + timedelta(minutes=90)),
        ("06:30", datetime(2026, 11, 25, 6, 30, tzinfo=ZoneInfo("Europe/Berlin"))),
        ("23:45", datetime(2026, 11, 24, 23, 45, tzinfo=ZoneInfo("Europe/Berlin"))),
        ("06:30 America/New_York", datetime(2026, 11, 25, 6, 30, tzinfo=ZoneInfo("America/New_York"))),
        ("2026-11-25T06:30:00+00:00", datetime(2026, 11, 25, 6, 30, tzinfo=ZoneInfo("UTC"))),
        ("", None),
    ],
)
def test_a_deadline_is_a_time_of_day_or_a_duration(text, ends):
    assert parse_deadline(text, NOW) == ends


@pytest.mark.parametrize("text", ["soon", "25:00", "5 hours", "06:30 Mars/Base", "-1h"])
def test_any_other_deadline_is_refused_before_the_night(text):
    with pytest.raises(ConfigError, match="the deadline"):
        parse_deadline(text, NOW)


def test_no_batch_begins_that_would_end_after_the_deadline():
    meter = BudgetMeter(time.time() + 60, None)
    assert meter.try_begin("a", None) is None
    assert meter.try_begin("a", 20.0) is None
    assert meter.try_begin("a", 61.0) == "deadline"
    assert meter.try_begin("b", None) == "deadline"
    assert BudgetMeter(time.time() - 1, None).try_begin("a", None) == "deadline"


def test_painters_together_do_not_use_more_than_the_budget():
    meter = BudgetMeter(None, 100.0)
    assert [meter.try_begin(who, None) for who in "abc"] == [None] * 3
    assert (
        meter.try_begin("a", 20.0) is None
    )  # 20 used, b and c under way for 20 each as far as is known: 80 with this one
    assert meter.try_begin("b", 20.0) is None  # 40 used, a and c under way
    assert meter.try_begin("c", 20.0) == "gpu_hours"  # 60 used, a and b under way: 120
    assert meter.try_begin("a", 20.0) == "gpu_hours"
    meter.finished("b", 20.0)
    assert meter.spent == 100.0
    assert BudgetMeter(None, 0.0).try_begin("a", None) == "gpu_hours"


def test_what_is_left_is_not_run_through_the_painters(local_ray, tmp_path):
    """All that was let paint arrives; of the hundreds of batches after it few are looked at."""
    meter = start_meter(None, 1e-4)
    rows = pa.Table.from_pylist([row(schema.STAGED, request_id=f"r{i}") for i in range(1000)], schema.STAGED)
    ray.get(meter.try_begin.remote("before", None, ["a", "b"]))  # a round before, whose requests do not count in this
    ray.get(meter.finished.remote("before", 0.0))
    begin_round(meter)
    ds = through(dataset(rows, 2), Copier, Pool(actors=2, cpus=0.5, batch=2), schema.STAGED, meter=meter)
    progress = Progress("test", rows.num_rows, 60)
    staged = stage_parts(ds, Root(str(tmp_path)), "staged", LEFT, partial(settled, meter), progress)
    painted = pa.concat_tables(staged.rows)["request_id"].to_pylist()
    assert ray.get(meter.settled.remote(set(painted)))
    assert not ray.get(meter.settled.remote(set(list(painted)[1:])))
    assert set(painted) <= {f"r{i}" for i in range(200)}, "in the order they were asked"
    assert progress.done < 700


def test_a_request_that_was_let_again_since_its_painter_died_is_one():
    meter = BudgetMeter(None, 1.0)
    for painter in ("a", "b"):
        assert meter.try_begin(painter, None, ["r1", "r2"]) is None
    assert not meter.settled({"r1", "r2"}), "more may come"
    meter.finished("b", 2.0)
    assert meter.try_begin("b", None, ["r3"]) == "gpu_hours"
    assert meter.settled({"r1", "r2"})
    assert not meter.settled({"r1"})
    assert not meter.settled({"r1", "r7"}), "r7 failed before any painter saw it; r2 is still painted"
    assert meter.settled({"r1", "r2", "r7"})


def more_cohorts(root: Root, n: int) -> None:
    some = [
        row(
            schema.COHORTS,
            cohort_id=f"m{i}",
            family="events",
            query="teapot",
            context=f"party {i}",
            interests=[],
            version=f"m{i}",
        )
        for i in range(n)
    ]
    rows = pa.Table.from_pylist(some, schema.COHORTS)
    tables.merge(root, "cohorts", rows, "cohort_id", tables.version(root, "cohorts"), {})


def live(root: Root) -> dict[str, dict]:
    return {r["cohort_id"]: r for r in tables.read(root, "creatives").to_pylist()}


def left(root: Root, report: GenerateReport) -> list[dict]:
    relative = report.left_uri.removeprefix(f"{root.uri}/")
    return pap.read_table(io.BytesIO(root.read(relative))).to_pylist()


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_what_a_budget_leaves_the_next_nights_paint(local_ray, stocked):
    """Eight requests, two a batch, in four nights of the same product."""
    more_cohorts(stocked, 6)
    with pytest.raises(CoverageTooLow, match=r"25.0% of 8 requests are filled, 6 are left by the gpu_hours"):
        generate(config(stocked, "n1", gpu_hours=ONE_BATCH, paint={"batch": 1}))
    assert tables.version(stocked, "creatives") is None

    second = generate(config(stocked, "n2", gpu_hours=ONE_BATCH, paint={"batch": 1}, min_coverage=0.5))
    assert (second.already_staged, second.painted, second.left, second.rejected) == (2, 2, 4, 0)
    assert (second.stopped, second.left_by_value, second.coverage) == ("gpu_hours", {"new_product": 4}, 0.5)
    asked = {f"m{i}" for i in range(6)} | {"c1", "c2"}
    assert {r["cohort_id"] for r in left(stocked, second)} == asked - live(stocked).keys()

    third = generate(config(stocked, "n3", gpu_hours=1000, deadline="5h", paint={"batch": 1}))
    assert (third.already_live, third.painted, third.left, third.stopped, third.left_uri) == (4, 4, 0, None, None)
    before = live(stocked)
    assert len(before) == 8

    # Another recipe would replace all eight. Those furthest below what is expected are replaced; the others stay meanwhile.
    fourth = generate(config(stocked, "n4", gpu_hours=ONE_BATCH, paint={"batch": 1}, recipe=RECIPE | {"seed": 1}))
    after = live(stocked)
    assert (fourth.painted, fourth.left, fourth.retired, fourth.coverage) == (2, 6, 2, 1.0)
    replaced = {c for c in before if after[c]["recipe_id"] == fourth.recipe_id}
    assert {after[c]["creative_id"] for c in after.keys() - replaced} == {
        before[c]["creative_id"] for c in before.keys() - replaced
    }
    told = left(stocked, fourth)
    assert {r["cohort_id"] for r in told} == before.keys() - replaced
    values = [r["value"] for r in fourth.painted_most_valuable] + [r["value"] for r in told]
    assert values == sorted(values, reverse=True)
    assert fourth.left_most_valuable == told
    assert {r["margin"] for r in told} == {before[c]["margin"] for c in before.keys() - replaced}
    assert sum(fourth.left_by_value.values()) == 6
