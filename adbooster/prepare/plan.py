"""What a night has to do, part by part, and what came of it; no more of the catalog than one part is ever in memory."""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.prepare import changes, feeds
from adbooster.prepare.changes import Changes, Gone, MadeBy
from adbooster.prepare.config import PrepareConfig, PrepareReport
from adbooster.storage import buckets, tables
from adbooster.storage.buckets import Part, Spill
from adbooster.storage.mask_models import mask_model
from adbooster.storage.model_store import content_hash, local_copy
from adbooster.storage.objects import Root

PART_PICTURES = buckets.PART_ROWS  # some 1 GiB with what is live and staged of them


class PartPlan(NamedTuple):
    """The feed's pictures of one part beside what is live and staged of it."""

    part: Part
    live: pa.Table
    """schema.SAMPLES"""
    changes: Changes
    gone: Gone


class Plan:
    """What is read once: the feed and what unfinished runs have staged, kept by parts in a folder of this machine.

    raises ConfigError as `feeds.read`, and for a feed without rows
    """

    def __init__(self, config: PrepareConfig, folder: Path):
        self.config, self.root, self.started = config, Root(config.root_uri), time.monotonic()
        self.base = tables.version(self.root, "samples")
        self._pictures = Spill(folder / "feed", schema.PICTURES)
        self._fresh, self._stale = (Spill(folder / name, schema.SAMPLES) for name in ("fresh", "stale"))
        self.feed = feeds.read(config.feed_uri, config.feed_format, config.columns, self._pictures.add)
        if not self.feed.pictures:
            raise ConfigError(f"the feed {config.feed_uri} has no rows; an empty feed would retire every product")
        self.made = made_by(config)
        for staged in changes.staged_samples(self.root, config.run_id, self.base):
            (self._fresh if staged.fresh else self._stale).add(staged.rows)
        for spill in (self._pictures, self._fresh, self._stale):
            spill.close()
        self.live = buckets.Snapshot(self.root, "samples", self.base, self.feed.pictures, PART_PICTURES)

    def __iter__(self) -> Iterator[PartPlan]:
        """One part after another, compared as it is asked for."""
        for part in self.live.parts:
            yield self._compared(part)

    def _compared(self, part: Part) -> PartPlan:
        wanted, live = self._pictures.read(part), self.live.read(part)
        known = changes.known_samples(live, self._fresh.read(part), self._stale.read(part))
        gone = changes.gone(live, wanted, self.feed.unnamed)
        return PartPlan(part, live, changes.compare(wanted, known, self.made), gone)

    def seconds(self) -> float:
        return round(time.monotonic() - self.started, 1)


class Tally:
    """Counts of pictures by the names of `PrepareReport`, and rejected pictures by their word."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.rejects: Counter[str] = Counter()

    def add(self, part: PartPlan, new: int, changed: int) -> None:
        """A part's pictures; those that came from another part are counted new there and are not."""
        moved = len(part.gone.moved)
        self.counts.update(new=new - moved, changed=changed + moved, retired=part.gone.retired.num_rows)

    def report(self, plan: Plan, version: int | None, pools: list[dict]) -> PrepareReport:
        """The report of a plan of which all parts were added."""
        counts, feed = self.counts, plan.feed
        work = counts["new"] + counts["changed"]
        return PrepareReport(
            run_id=plan.config.run_id,
            dry_run=plan.config.dry_run,
            feed_format=feed.format,
            rows=feed.rows,
            pictures=feed.pictures,
            new=counts["new"],
            changed=counts["changed"],
            new_or_changed=work,
            unchanged=feed.pictures - work,
            updated=counts["updated"],
            kept_unreachable=counts["kept_unreachable"],
            taken_over=counts["taken_over"],
            retired=counts["retired"],
            rejects=dict(self.rejects.most_common()),
            bad_weights=feed.bad_weights,
            notes=feed.notes,
            pools=pools,
            samples_version=version,
            seconds=plan.seconds(),
        )


def made_by(config: PrepareConfig) -> MadeBy:
    """Digests of the models and settings that this run makes samples with."""
    masks_by = mask_model(config.mask_model, config.mask_network).revision
    caption_model = content_hash(local_copy(config.caption_model))
    return changes.made_by(masks_by, caption_model, config.masking, config.captions, config.rules)
