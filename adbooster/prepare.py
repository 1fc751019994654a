"""Feed -> samples: every picture of every product fetched, masked, captioned and judged; only what changed."""

import json
import logging
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.core import url_to_fs
from pydantic import BaseModel, Field

from adbooster import feeds, images, schema, tables
from adbooster.errors import ConfigError, TooManyRejects
from adbooster.objects import Root, content_hash, local_copy, refuse_pickles
from adbooster.pools import Pool, dataset, preflight, stage_parts, through
from adbooster.recipe import digest
from adbooster.settings import Config, JobConfig, Uri

log = logging.getLogger(__name__)
UNCHANGED = "unchanged"  # travels in the reject column to skip the models; never reaches a table


class Rules(Config):
    """What a picture must be to be used."""

    min_side_px: int = Field(200, ge=16)
    """A photo with a shorter side is rejected."""
    max_mb: float = Field(16, gt=0)
    """A file over this is not read."""
    min_area_share: float = Field(0.01, ge=0, le=1)
    """A mask with a smaller share of white is no product."""
    max_area_share: float = Field(0.9, ge=0, le=1)
    """A mask with a larger share of white is no cut-out."""
    max_border_share: float = Field(0.02, ge=0, le=1)
    """Share of the border that the product of a main photo may touch; more means it is cut off."""
    plain_deviation: float = Field(12, ge=0)
    """Standard deviation (0-255) outside the mask below which a background is plain, not a scene."""


class PrepareConfig(JobConfig):
    """Settings of `jobs.prepare`."""

    feed_uri: Uri
    """The product feed: Google Merchant, tab-delimited (also .gz) or Parquet."""
    allowed_file_root: Uri = ""
    """Folder below which local pictures may lie; empty: the feed's own folder."""
    mask_model: Uri
    """U2-Net family model, an .onnx file."""
    caption_model: Uri
    """BLIP model, a folder in transformers layout."""
    device: str = Field("cuda", pattern="^(cuda|cpu)$")
    """Where the models run; never chosen by what is there."""
    threads: int = Field(1, ge=1)
    """CPU threads a model actor."""
    fetch: Pool = Pool(batch=32)
    """Actors that fetch photos."""
    mask: Pool = Pool(batch=8)
    """Actors that mask."""
    caption: Pool = Pool(batch=16)
    """Actors that caption."""
    judge: Pool = Pool(batch=32)
    """Actors that judge."""
    rules: Rules = Rules()
    """What a picture must be to be used."""
    max_reject_share: float = Field(0.2, ge=0, le=1)
    """More rejected pictures than this share stop the job before anything is live."""


class PrepareReport(BaseModel):
    """What `jobs.prepare` did; counts are pictures."""

    job: str = "prepare"
    run_id: str
    pictures: int
    new_or_changed: int
    unchanged: int
    retired: int
    rejects: dict[str, int]
    samples_version: int | None
    seconds: float


class Fetcher:
    """Photos into object storage; a row whose fingerprint is known is marked unchanged and costs no model."""

    def __init__(self, root: Root, feed_uri: str, allowed: str, rules: Rules, made_by: str, known: dict[str, str]):
        self.root, self.rules, self.made_by, self.known = root, rules, made_by, known
        self.base = feed_uri.rsplit("/", 1)[0] if "/" in feed_uri else "."
        self.allowed = Path(allowed or self.base).resolve() if allowed or "://" not in feed_uri else None

    def __call__(self, rows: pa.Table) -> pa.Table:
        with ThreadPoolExecutor(16) as pool:
            done = list(pool.map(self._fetch, rows.to_pylist()))
        names = schema.FETCHED.names[len(schema.PICTURES) - 1 :]
        return schema.extend(
            rows.drop_columns(["reject"]), schema.FETCHED, **{n: [d.get(n) for d in done] for n in names}
        )

    def _fetch(self, row: dict) -> dict:
        uri = row["image_uri"]
        try:
            fs, path = url_to_fs(uri if "://" in uri or uri.startswith("/") else f"{self.base}/{uri}")
            if "file" in fs.protocol and not (self.allowed and Path(path).resolve().is_relative_to(self.allowed)):
                return {"reject": "unreachable_image"}
            with fs.open(path) as f:
                photo = f.read(int(self.rules.max_mb * 1e6) + 1)
        except FileNotFoundError:
            return {"reject": "missing_image"}
        except (OSError, ValueError) as e:
            log.info("cannot fetch %r: %s", uri, e)
            return {"reject": "unreachable_image"}
        if len(photo) > self.rules.max_mb * 1e6:
            return {"reject": "oversized_image"}
        return self._keep(row, photo)

    def _keep(self, row: dict, photo: bytes) -> dict:
        try:
            height, width = images.decode(photo).shape[:2]
        except images.UnreadableImage as e:
            log.info("cannot decode %r: %s", row["image_uri"], e)
            return {"reject": "unreadable_image"}
        photo_uri = self.root.put(photo, "photo")
        sha256 = Path(photo_uri).stem
        mark = digest(sha256, row["title"], row["category"], self.made_by)
        unchanged = self.known.get(row["sample_id"]) == mark
        size = {"width": width, "height": height, "photo_uri": photo_uri, "photo_sha256": sha256, "fingerprint": mark}
        small = min(height, width) < self.rules.min_side_px
        return size | {"reject": UNCHANGED if unchanged else "image_too_small" if small else None}


class Masker:
    """Product masks into object storage."""

    def __init__(self, root: Root, model: str, device: str, threads: int):
        from adbooster.mask import U2Net

        self.root, self.net = root, U2Net(local_copy(model), device, threads)

    def __call__(self, rows: pa.Table) -> pa.Table:
        masks = [self.net.mask(images.decode(self.root.read(uri))) for uri in rows["photo_uri"].to_pylist()]
        return schema.extend(
            rows,
            schema.MASKED,
            mask_uri=[self.root.put(images.encode_mask(m), "png") for m in masks],
            mask_area_share=[float((m > 127).mean()) for m in masks],
        )


class Captioner:
    """One line of text a picture."""

    def __init__(self, root: Root, model: str, device: str, threads: int):
        from adbooster.caption import Blip

        self.root, self.net = root, Blip(local_copy(model), device, threads)

    def __call__(self, rows: pa.Table) -> pa.Table:
        photos = [images.decode(self.root.read(uri)) for uri in rows["photo_uri"].to_pylist()]
        return schema.extend(rows, schema.CAPTIONED, caption=self.net.captions(photos))


class Judge:
    """Rejects by the rules, and whether the surroundings are plain or a scene."""

    def __init__(self, root: Root, rules: Rules):
        self.root, self.rules = root, rules

    def __call__(self, rows: pa.Table) -> pa.Table:
        verdicts = [self._judge(row) for row in rows.to_pylist()]
        rest = rows.drop_columns(["reject"])
        return schema.extend(rest, schema.JUDGED, reject=[v[0] for v in verdicts], background=[v[1] for v in verdicts])

    def _judge(self, row: dict) -> tuple[str | None, str]:
        photo, mask = (
            images.decode(self.root.read(row["photo_uri"])),
            images.decode_mask(self.root.read(row["mask_uri"])),
        )
        outside = photo[mask < 10]
        deviation = float(outside.std(axis=0).max()) if len(outside) else 0.0
        background = "plain" if deviation < self.rules.plain_deviation else "scene"
        border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        if row["mask_area_share"] < self.rules.min_area_share:
            return "mask_empty", background
        if row["mask_area_share"] > self.rules.max_area_share:
            return "mask_full", background
        if row["role"] == "main" and (border > 127).mean() > self.rules.max_border_share:
            return "mask_touches_border", background
        return (None if row["caption"] else "caption_empty"), background


def prepare(config: PrepareConfig) -> PrepareReport:
    """Bring tables/samples up to date with the feed; unchanged pictures cost no model."""
    started = time.monotonic()
    root = Root(config.root_uri)
    base = tables.version(root, "samples")
    live = tables.read(root, "samples")
    wanted = feeds.pictures(feeds.read_feed(config.feed_uri))
    if config.dry_run:
        return _report(config, wanted, [], live, base, started)
    folder = f"runs/{config.run_id}/staged/samples"
    root.clear(folder)  # parts of an earlier try of this run
    stage_parts(_pictures_through_models(config, root, wanted, live), root, folder)
    judged = tables.read_staged(root, folder, schema.JUDGED)
    done = judged.filter(pc.invert(pc.equal(pc.fill_null(judged["reject"], ""), UNCHANGED)))
    report = _report(config, wanted, done["reject"].to_pylist(), live, base, started)
    _hold_back(config, report, live)
    rows = pa.concat_tables([schema.fill(done, schema.SAMPLES), _retired(live, wanted)])
    if rows.num_rows:
        report.samples_version = tables.merge(root, "samples", rows, "sample_id", base, {"run_id": config.run_id})
    return report


def check(config: PrepareConfig) -> None:
    """raises ConfigError for anything that can be known before an actor starts: models, feed, root, cluster"""
    mask_model, caption_model = local_copy(config.mask_model), local_copy(config.caption_model)
    refuse_pickles(mask_model)
    refuse_pickles(caption_model)
    if mask_model.suffix != ".onnx":
        raise ConfigError(f"the mask model {config.mask_model} is not an .onnx file")
    feeds.read_feed(config.feed_uri)
    Root(config.root_uri).check_writable()


def _pictures_through_models(config: PrepareConfig, root: Root, wanted: pa.Table, live: pa.Table):
    preflight({"fetch": config.fetch, "mask": config.mask, "caption": config.caption, "judge": config.judge})
    made_by = [content_hash(local_copy(m)) for m in (config.mask_model, config.caption_model)]
    made_by = digest(*made_by, json.dumps(config.rules.model_dump(mode="json"), sort_keys=True))
    current = live.filter(pc.is_null(live["retired_at"]))
    known = dict(zip(current["sample_id"].to_pylist(), current["fingerprint"].to_pylist(), strict=True))
    model = {"root": root, "device": config.device, "threads": config.threads}
    place = {"root": root, "feed_uri": config.feed_uri, "allowed": config.allowed_file_root}
    ds = dataset(wanted, config.fetch.batch)
    ds = through(ds, Fetcher, config.fetch, schema.FETCHED, **place, rules=config.rules, made_by=made_by, known=known)
    ds = through(ds, Masker, config.mask, schema.MASKED, **model, model=config.mask_model)
    ds = through(ds, Captioner, config.caption, schema.CAPTIONED, **model, model=config.caption_model)
    return through(ds, Judge, config.judge, schema.JUDGED, root=root, rules=config.rules)


def _retired(live: pa.Table, wanted: pa.Table) -> pa.Table:
    """Live samples that left the feed, marked so; they are kept."""
    gone = live.filter(pc.invert(pc.is_in(live["sample_id"], wanted["sample_id"])))
    gone = gone.filter(pc.is_null(gone["retired_at"]))
    now = pa.array([datetime.now(UTC)] * gone.num_rows, schema.SAMPLES.field("retired_at").type)
    return gone.set_column(gone.schema.get_field_index("retired_at"), "retired_at", now)


def _hold_back(config: PrepareConfig, report: PrepareReport, live: pa.Table) -> None:
    rejected = sum(report.rejects.values())
    if report.pictures == 0:
        raise ConfigError(f"the feed {config.feed_uri} has no rows; an empty feed would retire every product")
    if rejected > config.max_reject_share * report.pictures:
        words = ", ".join(f"{n} {word}" for word, n in report.rejects.items())
        raise TooManyRejects(
            f"{rejected} of {report.pictures} pictures were rejected ({words}), more than max_reject_share "
            f"{config.max_reject_share}; nothing was published, see runs/{config.run_id}/staged/samples"
        )


def _report(config, wanted: pa.Table, rejects: list, live: pa.Table, base: int | None, started: float) -> PrepareReport:
    return PrepareReport(
        run_id=config.run_id,
        pictures=wanted.num_rows,
        new_or_changed=len(rejects),
        unchanged=wanted.num_rows - len(rejects) if not config.dry_run else 0,
        retired=_retired(live, wanted).num_rows,
        rejects=dict(Counter(word for word in rejects if word)),
        samples_version=base,
        seconds=round(time.monotonic() - started, 1),
    )
