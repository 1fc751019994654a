"""Ray Data under the stages: the only module that knows how a stage becomes a pool of actors."""

import hashlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from datetime import UTC, datetime
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pap
import ray
import ray._private.state
from pydantic import Field
from ray.data import ActorPoolStrategy, DataContext, Dataset

from adbooster import metrics, schema
from adbooster.errors import ConfigError
from adbooster.objects import Root
from adbooster.settings import Config

log = logging.getLogger(__name__)
_PART = pa.schema([("rows", pa.int64()), ("part", pa.binary())])


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

    told = metrics.tags()

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
            metrics.count(done, told)
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


def dataset_of(blocks: Iterable[pa.Table]) -> Dataset:
    """As `dataset`, of blocks made one by one, so that the driver never holds them all."""
    DataContext.get_current().enable_progress_bars = sys.stderr.isatty()
    return ray.data.from_arrow_refs([ray.put(block) for block in blocks])


class Staged(NamedTuple):
    """What was staged, and Ray Data's account of how."""

    rows: list[pa.Table]
    stats: str


def stage_parts(
    ds: Dataset,
    root: Root,
    folder: str,
    leave_out: str | None = None,
    enough: Callable[[list[pa.Table]], bool] | None = None,
    progress: "Progress | None" = None,
) -> Staged:
    """Write the rows as Parquet parts below the root as they are finished; earlier parts of the folder stay.

    Parts are whole when they appear, and named by their content: a task that Ray runs again replaces its own.
    Rows that carry the reject word `leave_out` are neither written nor given back. When a block is left out as a whole,
    `enough` is asked, with the rows so far; if so the rest of `ds` is not run.
    """

    def part(rows: pa.Table) -> pa.Table:
        count = rows.num_rows
        if leave_out:
            rows = rows.filter(pc.not_equal(pc.fill_null(rows["reject"], ""), leave_out))
        buffer = pa.BufferOutputStream()
        pap.write_table(rows, buffer)
        content = buffer.getvalue().to_pybytes()
        if rows.num_rows:
            root.write(f"{folder}/{hashlib.sha256(content).hexdigest()[:32]}.parquet", content)
        return pa.table({"rows": [count], "part": [content if rows.num_rows else None]}, _PART)

    done: list[pa.Table] = []
    staging = ds.map_batches(part, batch_size=None, batch_format="pyarrow")
    # Closing the iterator ends the pools: Ray Data takes 2 ms a row of 16-row blocks even where nothing is done to them.
    with closing(iter(staging.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))) as batches:
        for batch in batches:
            for row in batch.to_pylist():
                done += [] if row["part"] is None else [pap.read_table(pa.BufferReader(row["part"]))]
                if progress:
                    progress.add(row["rows"])
            if enough and pc.all(pc.is_null(batch["part"])).as_py() and enough(done):
                break
    return Staged(done, staging.stats())


class Progress:
    """One line in the log every `every_s` seconds while a stage runs, for logs that are no terminal.

    The same line goes to runs/<run_id>/progress.json, where `root` is given, for `adbooster status`.
    """

    def __init__(self, what: str, total: int, every_s: float, root: Root | None = None):
        self.what, self.total, self.every_s, self.done, self.root = what, total, every_s, 0, root
        self.told = metrics.tags()
        self._stop = threading.Event()

    def add(self, rows: int) -> None:
        self.done += rows
        metrics.queue(self.total - self.done, self.told)

    def __enter__(self) -> "Progress":
        self._started = time.monotonic()
        metrics.queue(self.total, self.told)
        self._thread = threading.Thread(target=self._tell, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()

    def _tell(self) -> None:
        while not self._stop.wait(self.every_s):
            log.info(self.line())
            if self.root and self.told["run_id"]:
                self._write()

    def _write(self) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        facts = {"job": self.told["job"], "at": now, "done": self.done, "total": self.total, "line": self.line()}
        try:
            self.root.write_json(f"runs/{self.told['run_id']}/progress.json", facts)
        except OSError as e:  # a line less to read is no reason to end a night
            log.warning("progress could not be written: %s", e)

    def line(self) -> str:
        seconds = time.monotonic() - self._started
        rate = self.done / max(seconds, 1e-9)
        left = f", about {(self.total - self.done) / rate:.0f} s to go" if self.done else ""
        return f"{self.what}: {self.done:,} of {self.total:,} in {seconds:.0f} s, {rate:.1f}/s{left}"


def fit(pools: dict[str, Pool]) -> list[dict]:
    """For CPU and GPU what the pools ask for and what the cluster has, or could grow to by its autoscaler's settings."""
    have = ray.cluster_resources()
    most = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    rows = []
    for name, field, spare in (("CPU", "cpus", 1), ("GPU", "gpus", 0)):
        want = sum(getattr(p, field) * p.actors for p in pools.values()) + spare
        rows.append({"resource": name, "asked": want, "there": max(have.get(name, 0.0), most.get(name, 0.0))})
    return rows


def preflight(pools: dict[str, Pool]) -> None:
    """raises ConfigError if the cluster could never hold all these pools at once and still read data"""
    for row in fit(pools):
        if row["asked"] > row["there"]:
            field = "gpus" if row["resource"] == "GPU" else "cpus"
            what = ", ".join(f"{k} {p.actors} x {getattr(p, field):g}" for k, p in pools.items())
            raise ConfigError(
                f"the pools ask for {row['asked']:g} {row['resource']}s ({what}) and the cluster has {row['there']:g}"
            )
