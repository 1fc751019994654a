"""A stage in a pool of actors: which rows it gets, what comes back, when it is built."""

import os

import pyarrow as pa
import pytest

from adbooster.contracts.errors import ConfigError
from adbooster.contracts.settings import Pool
from adbooster.engine.pools import dataset, in_order, preflight, through
from tests.engine.stages import MARKED, ROWS, Breaker, Copier, Marker, Uneven


def rows(*rejects: str | None) -> pa.Table:
    return pa.table({"n": range(len(rejects)), "reject": pa.array(rejects, pa.string())}, ROWS)


def result(ds) -> list[dict]:
    return sorted((row for batch in ds.iter_batches(batch_format="pyarrow") for row in batch.to_pylist()), key=_number)


def _number(row: dict) -> int:
    return row["n"]


def test_rejected_rows_skip_the_stage_and_are_kept(local_ray):
    ds = through(dataset(rows(None, "bad", None, "worse", None), 2), Marker, Pool(batch=2), MARKED, first_call=10)
    found = result(ds)
    assert [row["n"] for row in found] == [0, 1, 2, 3, 4]
    assert [row["reject"] for row in found] == [None, "bad", None, "worse", None]
    assert [row["call"] is None for row in found] == [False, True, False, True, False]
    assert {row["process"] for row in found if row["process"]} & {os.getpid()} == set(), "in a process of its own"
    assert sorted(row["call"] for row in found if row["call"]) == [11, 12, 13], "built once, with its settings"


def test_a_stage_is_not_built_for_rejected_rows(local_ray):
    assert len(result(through(dataset(rows("bad", "bad"), 2), Breaker, Pool(), MARKED))) == 2


def test_a_stage_that_gives_back_other_columns_is_an_error(local_ray):
    with pytest.raises(Exception, match="SchemaError.*process"):
        result(through(dataset(rows(None), 1), Copier, Pool(), MARKED))


def test_rows_come_in_the_order_of_their_blocks(local_ray):
    ds = through(dataset(rows(*[None] * 20), 2), Uneven, Pool(actors=2, batch=2), ROWS)
    assert [n for batch in in_order(ds, 5) for n in batch["n"].to_pylist()] == list(range(20))


def test_pools_that_never_fit_are_refused(local_ray):
    with pytest.raises(ConfigError, match="the pools ask for 2 GPUs \\(paint 2 x 1\\) and the cluster has 0"):
        preflight({"paint": Pool(actors=2, gpus=1)})
