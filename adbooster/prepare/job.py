"""Feed -> samples: every picture of every product fetched, masked, captioned and judged; only what changed."""

import logging
import os
import time
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError, TooManyRejects
from adbooster.contracts.redaction import redact
from adbooster.engine import stage_times
from adbooster.engine.isolation import CRASHED, TIMED_OUT, TOO_LARGE, Failures
from adbooster.engine.pools import Dataset, dataset, dataset_of, fit, preflight, through
from adbooster.engine.progress import Progress
from adbooster.engine.staging import Staged, stage_parts
from adbooster.models.files import caption_input
from adbooster.prepare import changes, feeds
from adbooster.prepare.changes import MadeBy
from adbooster.prepare.config import PrepareConfig, PrepareReport
from adbooster.prepare.fetch import file_etag
from adbooster.prepare.stages import UNCHANGED, Captioner, Fetcher, Judge, Refiner, Segmenter, Shrinker
from adbooster.storage import tables
from adbooster.storage.mask_models import mask_input, mask_model
from adbooster.storage.model_store import content_hash, local_copy
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)
ENDED = ("failed_fetch", CRASHED, TIMED_OUT, TOO_LARGE)


def prepare(config: PrepareConfig) -> PrepareReport:
    """Bring tables/samples up to date with the feed in one commit; unchanged pictures cost no decoding and no model."""
    plan = _Plan(config)
    if config.dry_run:
        return _dry_run(plan)
    preflight(config.pools())
    staged = _through_stages(plan)
    plan.root.write(f"runs/{config.run_id}/prepare.stats.txt", staged.stats.encode())
    if plan.times is not None:
        stage_times.write(plan.root, config.run_id, "prepare", plan.times, [])
    done = plan.changes.named(pa.concat_tables([schema.PREPARED.empty_table(), *staged.rows]))
    finished = pa.concat_tables([done, plan.changes.rejected_by_feed()])
    taken_over = plan.changes.taken_over(finished)
    rows = pa.concat_tables([schema.fill(_worth_writing(finished, plan.live), schema.SAMPLES), taken_over])
    report = plan.report(
        _counts(plan, rows),
        rejects=_rejects(plan, finished),
        kept_unreachable=pc.sum(pc.fill_null(finished["kept"], False)).as_py() or 0,
        taken_over=taken_over.num_rows,
    )
    _check_rejects(config, report)
    rows, version = pa.concat_tables([rows, plan.retired]), plan.base
    if rows.num_rows:
        version = tables.merge(plan.root, "samples", rows, "sample_id", plan.base, {"run_id": config.run_id})
    return report.model_copy(update={"samples_version": version, "seconds": plan.seconds()})


class _Plan:
    """What is read once and used throughout one run."""

    def __init__(self, config: PrepareConfig):
        self.config, self.root, self.started = config, Root(config.root_uri), time.monotonic()
        self.times: stage_times.Handle | None = None
        self.base = tables.version(self.root, "samples")
        self.live = changes.live_samples(self.root, self.base)
        self.feed = feeds.read(config.feed_uri, config.feed_format, config.columns)
        if not self.feed.pictures.num_rows:
            raise ConfigError(f"the feed {config.feed_uri} has no rows; an empty feed would retire every product")
        self.made = made_by(config)
        known = changes.known_samples(self.root, config.run_id, self.live, self.base)
        self.changes = changes.compare(self.feed.pictures, known, self.made)
        self.retired = changes.retired(self.live, self.feed.pictures)

    def seconds(self) -> float:
        return round(time.monotonic() - self.started, 1)

    def report(self, counts: tuple[int, int, int], rejects: dict[str, int], **more: Any) -> PrepareReport:
        """The report of this plan: `counts` are new, changed and unchanged pictures, `more` other fields."""
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
            retired=self.retired.num_rows,
            rejects=rejects,
            samples_version=self.base,
            seconds=self.seconds(),
            **{"kept_unreachable": 0, "taken_over": 0, "pools": []} | more,
        )


def made_by(config: PrepareConfig) -> MadeBy:
    """Digests of the models and settings that this run makes samples with."""
    masks_by = mask_model(config.mask_model, config.mask_network).revision
    caption_model = content_hash(local_copy(config.caption_model))
    return changes.made_by(masks_by, caption_model, config.masking, config.captions, config.rules)


def _through_stages(plan: _Plan) -> Staged:
    """Where no work is expected only fetchers start, and the models only for photos that turn out to have changed."""
    config, changes_found = plan.config, plan.changes
    total = changes_found.to_fetch()
    if not total:
        return Staged([], "no picture to fetch\n")
    place = {"root": plan.root, "source": config.source(), "rules": config.rules, "made": plan.made}
    if changes_found.work_expected():
        plan.times = stage_times.start()
    blocks, failures = dataset_of(changes_found.blocks(config.fetch.batch)), _failures(plan, "failed_fetch")
    ds = through(blocks, Fetcher, config.fetch, schema.FETCHED, failures, times=plan.times, **place)
    if changes_found.work_expected():
        return _through_models(plan, ds, total)
    asked = _staged(plan, ds, total, f"runs/{config.run_id}/staged/asked")
    changed = pa.concat_tables(asked.rows) if asked.rows else None
    if changed is None:
        return asked
    made = _through_models(plan, dataset(changed, config.shrink.batch), changed.num_rows)
    return Staged(made.rows, f"{asked.stats}\n{made.stats}")


def _through_models(plan: _Plan, ds: Dataset, total: int) -> Staged:
    """Actors with a GPU run networks and nothing else: decoding and scaling are before them, matting after."""
    plan.times = plan.times or stage_times.start()
    config, mask_failed, times = plan.config, _failures(plan, "failed_mask"), {"times": plan.times}
    known, runs_on = {"made": plan.made, **times}, {"runs_on": (config.device, config.threads), **times}
    network = mask_input(mask_model(config.mask_model, config.mask_network))
    caption_px = caption_input(local_copy(config.caption_model))
    how: dict = {"root": plan.root, "network": network, "caption_px": caption_px}
    ds = through(ds, Shrinker, config.shrink, schema.SHRUNK, mask_failed, **known, **how)
    how = {"model": config.caption_model, "how": config.captions, "caption_px": caption_px, "made": plan.made}
    ds = through(ds, Captioner, config.caption, schema.CAPTIONED, _failures(plan, "failed_caption"), **runs_on, **how)
    how = {"model": config.mask_model, "network": config.mask_network}
    ds = through(ds, Segmenter, config.mask, schema.SEGMENTED, mask_failed, **runs_on, **how)
    ds = through(ds, Refiner, config.refine, schema.MASKED, mask_failed, **known, root=plan.root, how=config.masking)
    ds = through(ds, Judge, config.judge, schema.PREPARED, times=plan.times, rules=config.rules)
    return _staged(plan, ds, total, changes.staged_folder(config.run_id, plan.base))


def _failures(plan: _Plan, word: str) -> Failures:
    return Failures(plan.root, plan.config.run_id, word)


def _staged(plan: _Plan, ds: Dataset, total: int, folder: str) -> Staged:
    with Progress("prepare", total, plan.config.progress_s, plan.root) as progress:
        return stage_parts(ds, plan.root, folder, leave_out=UNCHANGED, progress=progress)


def _worth_writing(finished: pa.Table, live: pa.Table) -> pa.Table:
    """Without rows whose server did not answer, or which ended their process again, and of which nothing else has changed."""
    current = live.filter(pc.is_null(live["retired_at"]))
    now = current["fingerprint"].take(pc.index_in(finished["sample_id"], current["sample_id"]))
    ended = pc.and_(pc.is_null(finished["photo_uri"]), pc.is_in(finished["reject"], pa.array(ENDED)))
    again = pc.or_(pc.fill_null(finished["kept"], False), ended)
    same = pc.and_(again, pc.equal(finished["fingerprint"], pc.fill_null(now, "")))
    return finished.filter(pc.invert(same))


def _counts(plan: _Plan, rows: pa.Table) -> tuple[int, int, int]:
    """new, changed, unchanged, of what is to be written against what is live"""
    at = pc.index_in(rows["sample_id"], plan.live["sample_id"])
    current = pc.fill_null(pc.is_null(plan.live["retired_at"]).take(at), False)
    same = pc.and_(current, pc.equal(rows["fingerprint"], pc.fill_null(plan.live["fingerprint"].take(at), "")))
    new, same = at.null_count, pc.sum(same).as_py() or 0  # the same, with another validator of its photo
    changed = rows.num_rows - new - same
    return new, changed, plan.feed.pictures.num_rows - new - changed


def _rejects(plan: _Plan, finished: pa.Table) -> dict[str, int]:
    """Every rejected picture of the feed after this night, whenever it was rejected."""
    before = plan.changes.known.take(plan.changes.at.drop_null())
    before = before.filter(pc.invert(pc.is_in(before["sample_id"], finished["sample_id"].combine_chunks())))
    words = Counter(finished["reject"].drop_null().to_pylist()) + Counter(before["reject"].drop_null().to_pylist())
    return dict(words.most_common())


def _check_rejects(config: PrepareConfig, report: PrepareReport) -> None:
    """raises TooManyRejects if more pictures than allowed have no usable photo tonight"""
    missing = sum(report.rejects.values()) + report.kept_unreachable
    if missing > config.max_reject_share * report.pictures:
        words = [f"{n} {word}" for word, n in report.rejects.items()]
        words += [f"{report.kept_unreachable} not reached tonight"] if report.kept_unreachable else []
        raise TooManyRejects(
            f"{missing} of {report.pictures} pictures were rejected ({', '.join(words)}), more than max_reject_share "
            f"{config.max_reject_share}; nothing was published, see runs/{config.run_id}/staged"
        )


def _dry_run(plan: _Plan) -> PrepareReport:
    """The plan, without fetching a photo or starting an actor; of local photos size and times are compared."""
    state, changes_found = plan.changes.state, plan.changes
    etags = changes_found.known["etag"].take(changes_found.at)
    for i in (state == 2).nonzero()[0].tolist():
        if _local_changed(plan, changes_found.wanted["image_uri"][i].as_py(), etags[i].as_py()):
            state[i] = 1
    words = changes_found.wanted["reject"].drop_null().to_pylist()
    rejects = dict(Counter(words).most_common())
    report = plan.report(changes_found.counts(), rejects, pools=fit(plan.config.pools()))
    print(redact(_plan_text(plan.config, report)), flush=True)
    return report


def _local_changed(plan: _Plan, uri: str, etag: str | None) -> bool:
    folder = os.path.dirname(plan.config.feed_uri)
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
