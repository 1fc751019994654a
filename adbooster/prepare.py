"""Feed -> samples: every picture of every product fetched, masked, captioned and judged; only what changed."""

import logging
import os
import time
from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field
from ray.data import Dataset

from adbooster import changes, feeds, schema, tables
from adbooster.changes import MadeBy
from adbooster.errors import ConfigError, TooManyRejects
from adbooster.fetch import Http, file_etag
from adbooster.formats import FeedFormat
from adbooster.objects import Root, content_hash, local_copy, refuse_pickles
from adbooster.pictures import UNCHANGED, Captioner, Fetcher, Judge, Masker, Source
from adbooster.pools import Pool, Progress, Staged, dataset, dataset_of, fit, preflight, stage_parts, through
from adbooster.redact import redact
from adbooster.rules import Captions, Masking, Rules
from adbooster.settings import JobConfig, Uri

log = logging.getLogger(__name__)


class PrepareConfig(JobConfig):
    """Settings of `jobs.prepare`."""

    feed_uri: Uri
    """The product feed: a file, a folder of files, http(s):// or s3://; gzipped or not."""
    feed_format: FeedFormat = "auto"
    """What the feed is; auto: told from its first bytes, and said in log and report."""
    columns: dict[str, str] = Field(default_factory=dict)
    """For a feed with names of its own: our name (id, title, image_link, ...): the feed's name."""
    allowed_file_root: Uri = ""
    """Folder below which local pictures may lie; empty: the feed's own folder."""
    allow_private_hosts: bool = False
    """Pictures may be asked of private, loopback and link-local addresses."""
    http: Http = Http()
    """How photos are fetched over http(s)."""
    mask_model: Uri
    """U2-Net family model, an .onnx file."""
    masking: Masking = Masking()
    """How masks are made."""
    caption_model: Uri
    """BLIP model, a folder in transformers layout."""
    captions: Captions = Captions()
    """What captions are asked for."""
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
    """More rejected or unreachable pictures than this share stop the job before anything is live."""
    progress_s: float = Field(30, gt=0)
    """Seconds between two lines of progress in the log."""

    def pools(self) -> dict[str, Pool]:
        return {"fetch": self.fetch, "mask": self.mask, "caption": self.caption, "judge": self.judge}

    def source(self) -> Source:
        """The limit per host is for all fetch actors together: each gets its share."""
        http = self.http.model_copy(update={"per_host": max(1, self.http.per_host // self.fetch.actors)})
        return Source(
            feed_uri=self.feed_uri,
            allowed_file_root=self.allowed_file_root,
            allow_private_hosts=self.allow_private_hosts,
            http=http,
        )


class PrepareReport(BaseModel):
    """What `jobs.prepare` did, or would do; counts are pictures, but for `rows`."""

    job: str = "prepare"
    run_id: str
    dry_run: bool
    feed_format: str
    rows: int
    """products in the feed, bad ones too"""
    pictures: int
    new: int
    changed: int
    """also those that came back"""
    new_or_changed: int
    unchanged: int
    kept_unreachable: int
    """could not be reached tonight; the photo of an earlier night stays"""
    taken_over: int
    """made by an unfinished run and not again"""
    retired: int
    rejects: dict[str, int]
    pools: list[dict]
    samples_version: int | None
    seconds: float


class _Night:
    """What is read once and used throughout one run."""

    def __init__(self, config: PrepareConfig):
        self.config, self.root, self.started = config, Root(config.root_uri), time.monotonic()
        self.base = tables.version(self.root, "samples")
        self.live = changes.live_samples(self.root, self.base)
        self.feed = feeds.read(config.feed_uri, config.feed_format, config.columns)
        if not self.feed.pictures.num_rows:
            raise ConfigError(f"the feed {config.feed_uri} has no rows; an empty feed would retire every product")
        self.made = made_by(config)
        known = changes.known_samples(self.root, config.run_id, self.live, self.base)
        self.changes = changes.compare(self.feed.pictures, known, self.made)
        self.retired = changes.retired(self.live, self.feed.pictures)

    def report(self, counts: tuple[int, int, int], kept: int = 0, taken_over: int = 0) -> PrepareReport:
        new, changed, unchanged = counts
        return PrepareReport(
            run_id=self.config.run_id,
            dry_run=self.config.dry_run,
            feed_format=self.feed.format,
            rows=self.feed.rows,
            pictures=self.feed.pictures.num_rows,
            new=new,
            changed=changed,
            new_or_changed=new + changed,
            unchanged=unchanged,
            kept_unreachable=kept,
            taken_over=taken_over,
            retired=self.retired.num_rows,
            rejects={},
            pools=[],
            samples_version=self.base,
            seconds=round(time.monotonic() - self.started, 1),
        )


def prepare(config: PrepareConfig) -> PrepareReport:
    """Bring tables/samples up to date with the feed in one commit; unchanged pictures cost no decoding and no model."""
    night = _Night(config)
    if config.dry_run:
        return _dry_run(night)
    preflight(config.pools())
    staged = _through_stages(night)
    night.root.write(f"runs/{config.run_id}/prepare.stats.txt", staged.stats.encode())
    done = pa.concat_tables([schema.PREPARED.empty_table(), *staged.rows, night.changes.rejected_by_feed()])
    taken_over = night.changes.taken_over(done)
    rows = pa.concat_tables([schema.fill(_worth_writing(done, night.live), schema.SAMPLES), taken_over])
    kept = pc.sum(pc.fill_null(done["kept"], False)).as_py() or 0
    report = night.report(_counts(night, rows), kept, taken_over.num_rows)
    report.rejects = _rejects(night, done)
    _hold_back(config, report)
    rows = pa.concat_tables([rows, night.retired])
    if rows.num_rows:
        metadata = {"run_id": config.run_id}
        report.samples_version = tables.merge(night.root, "samples", rows, "sample_id", night.base, metadata)
    report.seconds = round(time.monotonic() - night.started, 1)
    return report


def check(config: PrepareConfig) -> None:
    """raises ConfigError for anything that can be known before an actor starts: models, feed, root"""
    mask_model, caption_model = local_copy(config.mask_model), local_copy(config.caption_model)
    refuse_pickles(mask_model)
    refuse_pickles(caption_model)
    if mask_model.suffix != ".onnx":
        raise ConfigError(f"the mask model {config.mask_model} is not an .onnx file")
    feeds.check(config.feed_uri, config.feed_format, config.columns)
    if not config.dry_run:
        Root(config.root_uri).check_writable()


def made_by(config: PrepareConfig) -> MadeBy:
    mask_model, caption_model = (content_hash(local_copy(m)) for m in (config.mask_model, config.caption_model))
    return changes.made_by(mask_model, caption_model, config.masking, config.captions, config.rules)


def _through_stages(night: _Night) -> Staged:
    """Where nothing to make is expected, only fetchers start, and the models for what they find changed after all."""
    config, found = night.config, night.changes
    total = found.to_fetch()
    if not total:
        return Staged([], "no picture to fetch\n")
    place = {"root": night.root, "source": config.source(), "rules": config.rules, "made": night.made}
    ds = through(dataset_of(found.blocks(config.fetch.batch)), Fetcher, config.fetch, schema.FETCHED, **place)
    if found.work_expected():
        return _through_models(night, ds, total)
    asked = _staged(night, ds, total, f"runs/{config.run_id}/staged/asked")
    changed = pa.concat_tables(asked.rows) if asked.rows else None
    if changed is None:
        return asked
    made = _through_models(night, dataset(changed, config.mask.batch), changed.num_rows)
    return Staged(made.rows, f"{asked.stats}\n{made.stats}")


def _through_models(night: _Night, ds: Dataset, total: int) -> Staged:
    config = night.config
    model = {"root": night.root, "made": night.made, "runs_on": (config.device, config.threads)}
    ds = through(ds, Masker, config.mask, schema.MASKED, **model, model=config.mask_model, how=config.masking)
    ds = through(
        ds, Captioner, config.caption, schema.CAPTIONED, **model, model=config.caption_model, how=config.captions
    )
    ds = through(ds, Judge, config.judge, schema.PREPARED, rules=config.rules)
    return _staged(night, ds, total, changes.staged_folder(config.run_id, night.base))


def _staged(night: _Night, ds: Dataset, total: int, folder: str) -> Staged:
    with Progress("prepare", total, night.config.progress_s, night.root) as progress:
        return stage_parts(ds, night.root, folder, leave_out=UNCHANGED, progress=progress)


def _worth_writing(done: pa.Table, live: pa.Table) -> pa.Table:
    """Without rows kept for want of an answer, of which nothing else has changed either."""
    current = live.filter(pc.is_null(live["retired_at"]))
    now = current["fingerprint"].take(pc.index_in(done["sample_id"], current["sample_id"]))
    same = pc.and_(pc.fill_null(done["kept"], False), pc.equal(done["fingerprint"], pc.fill_null(now, "")))
    return done.filter(pc.invert(same))


def _counts(night: _Night, rows: pa.Table) -> tuple[int, int, int]:
    """new, changed, unchanged, of what is to be written against what is live"""
    at = pc.index_in(rows["sample_id"], night.live["sample_id"])
    current = pc.fill_null(pc.is_null(night.live["retired_at"]).take(at), False)
    same = pc.and_(current, pc.equal(rows["fingerprint"], pc.fill_null(night.live["fingerprint"].take(at), "")))
    new, same = at.null_count, pc.sum(same).as_py() or 0  # the same, with another validator of its photo
    changed = rows.num_rows - new - same
    return new, changed, night.feed.pictures.num_rows - new - changed


def _rejects(night: _Night, done: pa.Table) -> dict[str, int]:
    """Every rejected picture of the feed as it stands after this night, whenever it was rejected."""
    before = night.changes.known.take(night.changes.at.drop_null())
    before = before.filter(pc.invert(pc.is_in(before["sample_id"], done["sample_id"].combine_chunks())))
    words = Counter(done["reject"].drop_null().to_pylist()) + Counter(before["reject"].drop_null().to_pylist())
    return dict(words.most_common())


def _hold_back(config: PrepareConfig, report: PrepareReport) -> None:
    missing = sum(report.rejects.values()) + report.kept_unreachable
    if missing > config.max_reject_share * report.pictures:
        words = [f"{n} {word}" for word, n in report.rejects.items()]
        words += [f"{report.kept_unreachable} not reached tonight"] if report.kept_unreachable else []
        raise TooManyRejects(
            f"{missing} of {report.pictures} pictures were rejected ({', '.join(words)}), more than max_reject_share "
            f"{config.max_reject_share}; nothing was published, see runs/{config.run_id}/staged"
        )


def _dry_run(night: _Night) -> PrepareReport:
    """The plan, told without fetching a photo or starting an actor; only local photos are looked at (size and times)."""
    state, found = night.changes.state, night.changes
    etags = found.known["etag"].take(found.at)
    for i in (state == 2).nonzero()[0].tolist():
        if _local_changed(night, found.wanted["image_uri"][i].as_py(), etags[i].as_py()):
            state[i] = 1
    report = night.report(found.counts())
    report.pools = fit(night.config.pools())
    words = found.wanted["reject"].drop_null().to_pylist()
    report.rejects = dict(Counter(words).most_common())
    print(redact(_plan_text(night.config, report)), flush=True)
    return report


def _local_changed(night: _Night, uri: str, etag: str | None) -> bool:
    folder = os.path.dirname(night.config.feed_uri)
    path = uri if uri.startswith("/") else os.path.join(folder, uri)
    if etag is None or "://" in path:
        return False
    try:
        return file_etag(os.stat(path)) != etag
    except (OSError, ValueError):
        return True


def _plan_text(config: PrepareConfig, report: PrepareReport) -> str:
    lines = [f"feed {config.feed_uri}, read as {report.feed_format}"]
    for name in ("rows", "pictures", "new", "changed", "unchanged", "retired"):
        lines.append(f"{name:>10} {getattr(report, name):>10,}")
    lines += [f"  rejected {n:>10,} {word} (by the feed alone)" for word, n in report.rejects.items()]
    for name, pool in config.pools().items():
        lines.append(f"pool {name}: {pool.actors} actors x {pool.cpus:g} CPUs, {pool.gpus:g} GPUs, batch {pool.batch}")
    for row in report.pools:
        verdict = "fits" if row["asked"] <= row["there"] else "DOES NOT FIT"
        lines.append(f"{row['resource']}: asked {row['asked']:g}, in the cluster {row['there']:g}: {verdict}")
    lines.append("photos behind http(s) and object storage are compared when the job runs; no actor was started")
    return "\n".join(lines)
