"""Training examples: pictures with a scene or pairs of them, their order, and where the window lies each time.

All of it follows from (seed, epoch, sample), so that any worker can make any example at any time, and a run that starts
again at step n goes on with the examples it would have seen.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts import schema
from adbooster.contracts.naming import digest, position
from adbooster.contracts.settings import Pool
from adbooster.engine.isolation import Failures
from adbooster.engine.pools import dataset, through
from adbooster.finetune.config import FinetuneConfig, TrainingConfig
from adbooster.finetune.preference import better_over_worse, scorer
from adbooster.finetune.rows import PAIRS, PLANNED, PLANNED_PAIRS, SCENIC, SURVEYED
from adbooster.finetune.stages import Surveyor
from adbooster.measure import subjects, trials
from adbooster.measure.config import Trial, TrialsConfig
from adbooster.measure.run import keep_candidates
from adbooster.pictures import layout
from adbooster.storage import tables
from adbooster.storage.model_store import content_hash, local_copy
from adbooster.storage.objects import Root

FEW = 1000  # pictures whose masks are read faster than actors start


def scenic_samples(root: Root, version: int | None = None) -> pa.Table:
    """Usable pictures that show a product in a scene, in one version of tables/samples; the newest if None."""
    rows = tables.read(root, "samples", version=version)
    usable = pc.and_(pc.is_null(rows["reject"]), pc.is_null(rows["retired_at"]))
    return schema.fill(rows.filter(pc.and_(usable, pc.equal(rows["background"], "scene"))), SCENIC).sort_by("sample_id")


def split(rows: pa.Table, held_out_share: float) -> tuple[pa.Table, pa.Table]:
    """Rows to train on and rows of held-out products: those whose hash is low, and at least the lowest."""
    shares = {p: position(digest("held out", p)) for p in rows["product_id"].to_pylist()}
    bound = max(held_out_share, min(shares.values(), default=0))
    held = pa.array([shares[p] <= bound for p in rows["product_id"].to_pylist()], pa.bool_())
    return rows.filter(pc.invert(held)), rows.filter(held)


def survey(root: Root, rows: pa.Table, pool: Pool, failures: Failures | None = None) -> pa.Table:
    """The rows with what the plan needs to know of each photo, in the same order."""
    if rows.num_rows <= FEW:
        return Surveyor(root)(rows)
    pool = pool.model_copy(update={"batch": 256})
    found = through(dataset(rows, 256), Surveyor, pool, SURVEYED, failures, root=root)
    return pa.concat_tables(found.iter_batches(batch_size=None, batch_format="pyarrow")).sort_by("sample_id")


class Batch(NamedTuple):
    """Pictures of one batch: rows of the table, the epoch of each, and the width over height that they share."""

    rows: list[int]
    epochs: list[int]
    aspect: float


@dataclass(frozen=True)
class Plan:
    """The endless, reproducible sequence of batches over a table of SURVEYED."""

    rows: pa.Table
    config: TrainingConfig
    key = "sample_id"  # the column that names an example

    def batches(self) -> Iterator[Batch]:
        """Every epoch in another order; pictures wait until a batch of their aspect is full, into the next epoch if need be."""
        keys = np.array([int(digest(s)[:16], 16) for s in self.rows[self.key].to_pylist()], np.uint64)
        fits, waiting = self._fits(), [([], []) for _ in self.config.aspects]
        epoch = 0
        while True:
            drawn = _mixed(keys, self.config.seed, self.place(epoch), 1)
            number = drawn % fits.sum(1).astype(np.uint64)  # the n-th of the aspects that this photo has room for
            chosen = (np.cumsum(fits, 1) > number[:, None]).argmax(1)
            for row in np.argsort(_mixed(keys, self.config.seed, epoch, 2), kind="stable"):
                rows, epochs = waiting[chosen[row]]
                rows.append(int(row))
                epochs.append(epoch)
                if len(rows) == self.config.batch:
                    yield Batch(rows, epochs, self.config.aspects[chosen[row]])
                    waiting[chosen[row]] = ([], [])
            epoch += 1

    def place(self, epoch: int) -> int:
        """Which placement of a picture an epoch sees."""
        return epoch % self.config.latents.placements if self.config.latents.placements else epoch

    def of_worker(self, rank: int, first_step: int, last_step: int) -> pa.Table:
        """PLANNED rows of one worker's batches, in order, of steps first_step <= step < last_step."""
        width, some = max(1, self.config.workers), []
        for number, batch in enumerate(self.batches()):
            if number >= last_step * self.config.passes:
                break
            if number >= first_step * self.config.passes and number % width == rank:
                some.append(batch)
        return self.planned(some)

    def planned(self, batches: list[Batch]) -> pa.Table:
        rows = schema.fill(self.rows.take([r for b in batches for r in b.rows]), SCENIC)
        epochs = [e for b in batches for e in b.epochs]
        columns = {"place": [self.place(e) for e in epochs], "epoch": epochs}
        return schema.extend(rows, PLANNED, **columns, aspect=[b.aspect for b in batches for _ in b.rows])

    def all_placements(self) -> pa.Table:
        """PLANNED rows of every picture in each of the cache's placements, at the aspect that training will want."""
        keys = np.array([int(digest(s)[:16], 16) for s in self.rows["sample_id"].to_pylist()], np.uint64)
        fits, parts = self._fits(), []
        for place in range(self.config.latents.placements):
            number = _mixed(keys, self.config.seed, place, 1) % fits.sum(1).astype(np.uint64)
            chosen = (np.cumsum(fits, 1) > number[:, None]).argmax(1)
            columns = {"place": [place] * len(keys), "epoch": [place] * len(keys)}
            aspects = [self.config.aspects[i] for i in chosen]
            parts.append(schema.extend(schema.fill(self.rows, SCENIC), PLANNED, **columns, aspect=aspects))
        # Pictures of one aspect lie together, so that a batch of the encoder holds one size.
        return pa.concat_tables(parts).sort_by([("aspect", "ascending"), ("place", "ascending")])

    def _fits(self) -> np.ndarray:
        """bool [N, aspects]: windows in which the product is not larger than it may be; at least the roomiest."""
        wide, high, longest = (self.rows[n].to_numpy()[:, None] for n in ("width_px", "height_px", "longest_px"))
        share = longest / layout.widest(wide, high, np.array(self.config.aspects)[None])
        return (share <= self.config.product_scale[1]) | (share == share.min(1, keepdims=True))


class PairPlan(Plan):
    """The same over a table of PAIRS; each pair has the aspect of its pictures."""

    key = "pair_id"

    def __init__(self, rows: pa.Table, config: TrainingConfig):
        aspects = tuple(sorted(set(rows["aspect"].to_pylist())))
        super().__init__(rows, config.model_copy(update={"aspects": aspects}))

    def planned(self, batches: list[Batch]) -> pa.Table:
        rows = self.rows.select(PAIRS.names).take([r for b in batches for r in b.rows])
        return schema.extend(rows, PLANNED_PAIRS, epoch=[e for b in batches for e in b.epochs])

    def once(self) -> pa.Table:
        """PLANNED_PAIRS rows of every pair, in the order of the table."""
        return schema.extend(self.rows.select(PAIRS.names), PLANNED_PAIRS, epoch=[0] * self.rows.num_rows)

    def _fits(self) -> np.ndarray:
        return self.rows["aspect"].to_numpy()[:, None] == np.array(self.config.aspects)[None]


def cold_start_pairs(root: Root, config: FinetuneConfig) -> pa.Table:
    """Pairs of candidates that the base has painted, now or for an earlier run of the same settings."""
    cold = config.preference.cold_start
    shared = {name: getattr(cold, name) for name in ("dtype", "paint", "paint_batch", "panel")}
    shared |= {name: getattr(config, name) for name in ("root_uri", "catalog", "run_id", "device", "threads")}
    recipe = cold.recipe.model_copy(update={"layouts": 1})
    # The CLIP that orders the candidates is the only one that is asked.
    painting = TrialsConfig(**shared, recipe=recipe, rank_model=scorer(cold), judge_model="")
    trial = Trial(name="cold start", weights=config.base, prompts=cold.prompts)
    products, cohorts = subjects.own_pictures(root), subjects.cohort_texts(root)
    rows, _ = trials.trial_requests(root, painting, trial, products, cohorts)
    name = digest(content_hash(local_copy(painting.rank_model)), *sorted(rows["look_id"].to_pylist()))[:16]
    candidates = keep_candidates(root, painting, trial, rows, f"runs/candidates-{name}")
    return better_over_worse(candidates, cold.by, config.preference.min_margin)


def pairs_to_place(pairs: pa.Table) -> pa.Table:
    """schema.PREFERENCES as PAIRS."""
    aspects = pc.divide(pairs["width_px"].cast(pa.float64()), pairs["height_px"].cast(pa.float64()))
    return schema.fill(pairs.append_column("aspect", aspects), PAIRS)


def planned_rows(plan: Plan, chosen: list[tuple[int, int]]) -> pa.Table:
    """PLANNED rows of (row, epoch) pairs, at the first of the aspects."""
    rows, epochs = (list(part) for part in zip(*chosen, strict=True))
    return plan.planned([Batch(rows, epochs, plan.config.aspects[0])])


def _mixed(keys: np.ndarray, *numbers: int) -> np.ndarray:
    """A hash of each key with the numbers, uint64 (splitmix64's finalizer)."""
    with np.errstate(over="ignore"):
        for n in numbers:
            keys = keys + np.uint64((n * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**64)
            keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            keys = keys ^ (keys >> np.uint64(31))
    return keys
