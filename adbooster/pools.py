"""Ray Data under the stages: the only module that knows how a stage becomes a pool of actors."""

import logging
import sys

import pyarrow as pa
import pyarrow.compute as pc
import ray
from pydantic import Field
from ray.data import ActorPoolStrategy, DataContext, Dataset

from adbooster import schema
from adbooster.errors import ConfigError
from adbooster.objects import Root
from adbooster.settings import Config

log = logging.getLogger(__name__)


class Pool(Config):
    """How many actors a stage gets, and what each of them holds."""

    actors: int = Field(1, ge=1)
    """Processes that run the stage."""
    cpus: float = Field(1, ge=0)
    """Logical CPUs each of them reserves."""
    gpus: float = Field(0, ge=0)
    """GPUs each of them reserves; a share below 1 is bookkeeping, not isolation."""
    batch: int = Field(16, ge=1)
    """Rows a call."""


def through(ds: Dataset, stage: type, pool: Pool, out: pa.Schema, **init) -> Dataset:
    """Run every usable row of `ds` through a pool of `stage(**init)`.

    Rows that carry a `reject` skip the stage and keep their place, with nulls in the
    columns it would have added. The result has exactly the schema `out`. An actor builds its
    stage when the first usable row arrives: a night without changes loads no model.
    """

    class Actor:
        def __init__(self):
            self.stage = None

        def __call__(self, rows: pa.Table) -> pa.Table:
            usable = pc.is_null(rows["reject"])
            skipped = schema.fill(rows.filter(pc.invert(usable)), out)
            if not pc.any(usable).as_py():
                return skipped
            self.stage = self.stage or stage(**init)
            done = schema.check(self.stage(rows.filter(usable)), out, stage.__name__)
            return pa.concat_tables([done, skipped])

    Actor.__name__ = Actor.__qualname__ = stage.__name__  # the name on the Ray dashboard
    return ds.map_batches(
        Actor,
        compute=ActorPoolStrategy(size=pool.actors),
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


def stage_parts(ds: Dataset, root: Root, folder: str) -> None:
    """Write the rows as Parquet parts below the root as they are finished; earlier parts of the folder stay."""
    ds.write_parquet(root.path(folder), filesystem=root.arrow(), try_create_dir=True)


def preflight(pools: dict[str, Pool]) -> None:
    """raises ConfigError if the cluster, as it stands, could not hold all these pools at once and still read data"""
    have = ray.cluster_resources()
    for name, want in (("GPU", sum(p.gpus * p.actors for p in pools.values())), ("CPU", cpus_needed(pools))):
        if want > have.get(name, 0):
            what = ", ".join(f"{k} {p.actors} x {p.gpus if name == 'GPU' else p.cpus:g}" for k, p in pools.items())
            raise ConfigError(f"the pools ask for {want:g} {name}s ({what}) and the cluster has {have.get(name, 0):g}")


def cpus_needed(pools: dict[str, Pool]) -> float:
    """CPUs of all pools, and one for the tasks that read and write between them."""
    return sum(p.cpus * p.actors for p in pools.values()) + 1
