"""What a night has to do, part by part: no more of the catalog than one part is ever in memory."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.prepare import changes, feeds
from adbooster.prepare.changes import Changes, Gone, MadeBy
from adbooster.prepare.config import PrepareConfig
from adbooster.prepare.spill import Spill
from adbooster.storage import buckets, tables
from adbooster.storage.buckets import Part
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


def made_by(config: PrepareConfig) -> MadeBy:
    """Digests of the models and settings that this run makes samples with."""
    masks_by = mask_model(config.mask_model, config.mask_network).revision
    caption_model = content_hash(local_copy(config.caption_model))
    return changes.made_by(masks_by, caption_model, config.masking, config.captions, config.rules)
