"""A stage as a pool of Ray Data actors: the only caller of `map_batches` for stages."""

import logging
import sys
from collections.abc import Iterable, Iterator, Mapping

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.contracts.settings import Pool
from adbooster.engine import budget, isolation, metrics, permits, stage_times
from adbooster.engine.isolation import Failures, Isolated, StageProcess

log = logging.getLogger(__name__)


def through(
    ds: Dataset,
    stage: type,
    pool: Pool,
    out: pa.Schema,
    failures: Failures | None = None,
    meter: budget.Handle | None = None,
    times: stage_times.Handle | None = None,
    hosts: permits.Handle | None = None,
    **init,
) -> Dataset:
    """Run every usable row of `ds` through a pool of `stage(**init)`.

    Rows that carry a `reject` skip the stage and keep their place, with nulls in the
    columns it would have added. The result has exactly the schema `out`. An actor builds its
    stage when the first usable row arrives: a night without changes loads no model.

    failures  a row that the stage fails, dies or hangs on is rejected and noted there; None: it ends the job
    meter     decides whether a batch is begun at all
    times     is told what each call took
    hosts     answers what the stage asks about hosts
    """

    tags, name, pickled = metrics.tags(), stage.__name__, isolation.pickled(stage, init)

    class Actor:
        def __init__(self, process: StageProcess | None = None):
            answers = permits.answers(hosts) if hosts else None
            self.stage = Isolated(name, pickled, out, pool, failures, process or StageProcess(pool.niceness), answers)
            self.run = budget.Metered(self.stage, meter) if meter else self.stage
            self.clock = stage_times.Clock(name, pool.gpus, times)

        def __call__(self, rows: pa.Table) -> pa.Table:
            usable = pc.is_null(rows["reject"])
            skipped = schema.fill(rows.filter(pc.invert(usable)), out)
            if not pc.any(usable).as_py():
                return skipped
            self.clock.begin()
            done = self.run(rows.filter(usable))
            counts, loading_s = self.stage.take_counts()
            left = pc.sum(pc.equal(done["reject"], budget.LEFT)).as_py() if meter else 0
            n = pc.sum(usable).as_py() - (left or 0)  # rows taken in: a stage may make several of one
            call = self.clock.end(n, counts.pop(isolation.NETWORK_S, 0.0), loading_s)
            metrics.count(done, tags)
            metrics.stage(name, call, tags)
            for metric, value in counts.items():
                metrics.add(metric, value, tags)
            return pa.concat_tables([done, skipped])

    Actor.__name__ = Actor.__qualname__ = name  # the name on the Ray dashboard
    return _in_actors(ds, Actor, pool)


def _in_actors(ds: Dataset, actor: type, pool: Pool) -> Dataset:
    """The rows of `ds` in batches through a pool of `actor()`; tests replace this by processes that need no start."""
    return ds.map_batches(
        actor,
        compute=ActorPoolStrategy(min_size=pool.actors, max_size=max(pool.actors, pool.max_actors or 0)),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus or None,
        batch_size=pool.batch,
        batch_format="pyarrow",
    )


def dataset(rows: pa.Table, rows_per_block: int) -> Dataset:
    """Rows planned on the driver as blocks small enough that every actor gets some and a retry costs little."""
    context = DataContext.get_current()
    context.enable_progress_bars = sys.stderr.isatty()
    return ray.data.from_arrow(
        [rows.slice(at, rows_per_block) for at in range(0, max(rows.num_rows, 1), rows_per_block)]
    )


def in_order(ds: Dataset, batch: int) -> Iterator[pa.Table]:
    """The rows in the order of their blocks, `batch` at a time and two batches ahead; the dataset is built, not yet run."""
    # Of the dataset itself: it copied the process's options when it was made, and later changes there do not reach it.
    ds.context.execution_options.preserve_order = True
    yield from ds.iter_batches(batch_size=batch, batch_format="pyarrow", prefetch_batches=2)


def dataset_of(blocks: Iterable[pa.Table]) -> Dataset:
    """As `dataset`, of blocks made one by one, so that the driver never holds them all."""
    DataContext.get_current().enable_progress_bars = sys.stderr.isatty()
    refs = [ray.put(block) for block in blocks]
    return ray.data.from_arrow_refs(refs)  # pyright: ignore[reportArgumentType]  # Ray has two ObjectRefs


def fit(pools: dict[str, Pool]) -> list[dict]:
    """For CPU and GPU what the pools ask for and what the cluster has, or could grow to by its autoscaler's settings."""
    have = ray.cluster_resources()
    most = _autoscaler_limits()
    rows = []
    for name, field, spare in (("CPU", "cpus", 1), ("GPU", "gpus", 0)):
        want = sum(getattr(p, field) * p.actors for p in pools.values()) + spare
        rows.append({"resource": name, "asked": want, "there": max(have.get(name, 0.0), most.get(name, 0.0))})
    return rows


def _autoscaler_limits() -> Mapping[str, float]:
    """What the cluster could grow to; empty without an autoscaler, or where this Ray does not report it."""
    try:  # no public way in Ray 2.60
        from ray._private.state import state

        return state.get_max_resources_from_cluster_config() or {}
    except (ImportError, AttributeError):
        return {}


def preflight(pools: dict[str, Pool]) -> None:
    """raises ConfigError if the cluster could never hold all these pools at once and still read data"""
    for row in fit(pools):
        if row["asked"] > row["there"]:
            field = "gpus" if row["resource"] == "GPU" else "cpus"
            what = ", ".join(f"{k} {p.actors} x {getattr(p, field):g}" for k, p in pools.items())
            raise ConfigError(
                f"the pools ask for {row['asked']:g} {row['resource']}s ({what}) and the cluster has {row['there']:g}"
            )
