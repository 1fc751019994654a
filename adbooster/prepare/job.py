"""Feed -> samples: every picture of every product fetched, masked, captioned and judged; only what changed."""

import logging
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts import schema
from adbooster.contracts.errors import TooManyRejects
from adbooster.engine import permits, stage_times
from adbooster.engine.host_limits import Limits
from adbooster.engine.isolation import CRASHED, TIMED_OUT, TOO_LARGE, Failures
from adbooster.engine.pools import Dataset, dataset, dataset_of, preflight, through
from adbooster.engine.progress import Progress
from adbooster.engine.staging import Staged, stage_parts
from adbooster.models.files import caption_input
from adbooster.prepare import changes, rates
from adbooster.prepare.config import PrepareConfig, PrepareReport
from adbooster.prepare.dry_run import dry_run
from adbooster.prepare.plan import PartPlan, Plan, Tally
from adbooster.prepare.stages import UNCHANGED, Captioner, Fetcher, Judge, Refiner, Segmenter, Shrinker
from adbooster.storage import buckets
from adbooster.storage.mask_models import mask_input, mask_model
from adbooster.storage.model_store import local_copy

log = logging.getLogger(__name__)
ENDED = ("failed_fetch", CRASHED, TIMED_OUT, TOO_LARGE)


def prepare(config: PrepareConfig) -> PrepareReport:
    """Bring tables/samples up to date with the feed in one commit; unchanged pictures cost no decoding and no model."""
    with tempfile.TemporaryDirectory(prefix="adbooster-prepare-") as folder:
        plan = Plan(config, Path(folder))
        if config.dry_run:
            return dry_run(plan)
        preflight(config.pools())
        with buckets.Change(plan.root, "samples", plan.base, "sample_id", plan.live.parts) as change:
            return _Night(plan, change).run()


class _Night:
    """One run of a plan: its parts one after another, then one commit of all."""

    def __init__(self, plan: Plan, change: buckets.Change):
        self.plan, self.config, self.root, self.change = plan, plan.config, plan.root, change
        self.tally, self.stats = Tally(), []
        self.times: stage_times.Handle | None = None
        self.hosts: permits.Handle | None = None
        self.title = "prepare"

    def run(self) -> PrepareReport:
        run_id, parts = self.config.run_id, len(self.plan.live.parts)
        for n, part in enumerate(self.plan, 1):
            self.title = "prepare" if parts == 1 else f"prepare, part {n} of {parts}"
            staged = _through_stages(self, part)
            self.stats.append(staged.stats)
            self._bring_up_to_date(part, staged.rows)
        self.root.write(f"runs/{run_id}/prepare.stats.txt", "\n".join(self.stats).encode())
        if self.times is not None:
            stage_times.write(self.root, run_id, "prepare", self.times, [])
        if self.hosts is not None:
            rates.write(self.root, run_id, permits.measured(self.hosts))
        _check_rejects(self.config, self.tally.report(self.plan, self.plan.base, []))
        return self.tally.report(self.plan, self.change.commit({"run_id": run_id}), [])

    def limits(self, found: changes.Changes) -> permits.Handle | None:
        """The limits of hosts, for all fetchers of the night; None as long as no photo is behind http(s)."""
        if self.hosts is None and rates.by_host(found.wanted["image_uri"], self.config.feed_uri):
            http = self.config.http
            self.hosts = permits.start(Limits(http.per_host, http.requests_per_s, http.retry_after_s))
        return self.hosts

    def _bring_up_to_date(self, part: PartPlan, staged: list[pa.Table]) -> None:
        """Count what became of a part's pictures and write the rows that are others than the live ones, not live yet."""
        found, counts = part.changes, self.tally.counts
        done = found.named(pa.concat_tables([schema.PREPARED.empty_table(), *staged]))
        finished = pa.concat_tables([done, found.rejected_by_feed()])
        taken_over = found.taken_over(finished)
        rows = pa.concat_tables([schema.fill(_worth_writing(finished, part.live), schema.SAMPLES), taken_over])
        revalued = found.revalued(part.live, rows)
        self.tally.add(part, *_counts(part, rows))
        self.tally.rejects.update(_rejects(part, finished))
        kept = pc.sum(pc.fill_null(finished["kept"], False)).as_py() or 0
        counts.update(kept_unreachable=kept, taken_over=taken_over.num_rows, updated=revalued.num_rows)
        self.change.replace(part.part, pa.concat_tables([rows, revalued, part.gone.retired]), part.gone.moved)


def _through_stages(night: _Night, part: PartPlan) -> Staged:
    """Where no work is expected only fetchers start, and the models only for photos that turn out to have changed."""
    plan, config, changes_found = night.plan, night.config, part.changes
    total = changes_found.to_fetch()
    if not total:
        return Staged([], "no picture to fetch\n")
    place = {"root": plan.root, "source": config.source(), "rules": config.rules, "made": plan.made}
    if changes_found.work_expected():
        night.times = night.times or stage_times.start()
    blocks, failures = dataset_of(changes_found.blocks(config.fetch.batch)), _failures(night, "failed_fetch")
    watched = {"times": night.times, "hosts": night.limits(changes_found)}
    ds = through(blocks, Fetcher, config.fetch, schema.FETCHED, failures, **watched, **place)
    if changes_found.work_expected():
        return _through_models(night, ds, total)
    asked = _staged(night, ds, total, f"runs/{config.run_id}/staged/asked")
    changed = pa.concat_tables(asked.rows) if asked.rows else None
    if changed is None:
        return asked
    made = _through_models(night, dataset(changed, config.shrink.batch), changed.num_rows)
    return Staged(made.rows, f"{asked.stats}\n{made.stats}")


def _through_models(night: _Night, ds: Dataset, total: int) -> Staged:
    """Actors with a GPU run networks and nothing else: decoding and scaling are before them, matting after."""
    plan, night.times = night.plan, night.times or stage_times.start()
    config, mask_failed, times = plan.config, _failures(night, "failed_mask"), {"times": night.times}
    known, runs_on = {"made": plan.made, **times}, {"runs_on": (config.device, config.threads), **times}
    network = mask_input(mask_model(config.mask_model, config.mask_network))
    caption_px = caption_input(local_copy(config.caption_model))
    how: dict = {"root": plan.root, "network": network, "caption_px": caption_px}
    ds = through(ds, Shrinker, config.shrink, schema.SHRUNK, mask_failed, **known, **how)
    how = {"model": config.caption_model, "how": config.captions, "caption_px": caption_px, "made": plan.made}
    ds = through(ds, Captioner, config.caption, schema.CAPTIONED, _failures(night, "failed_caption"), **runs_on, **how)
    how = {"model": config.mask_model, "network": config.mask_network}
    ds = through(ds, Segmenter, config.mask, schema.SEGMENTED, mask_failed, **runs_on, **how)
    ds = through(ds, Refiner, config.refine, schema.MASKED, mask_failed, **known, root=plan.root, how=config.masking)
    ds = through(ds, Judge, config.judge, schema.PREPARED, times=night.times, rules=config.rules)
    return _staged(night, ds, total, changes.staged_folder(config.run_id, plan.base))


def _failures(night: _Night, word: str) -> Failures:
    return Failures(night.root, night.config.run_id, word)


def _staged(night: _Night, ds: Dataset, total: int, folder: str) -> Staged:
    with Progress(night.title, total, night.config.progress_s, night.root) as progress:
        return stage_parts(ds, night.root, folder, leave_out=UNCHANGED, progress=progress)


def _worth_writing(finished: pa.Table, live: pa.Table) -> pa.Table:
    """Without rows whose server did not answer, or which ended their process again, and of which nothing else has changed."""
    current = live.filter(pc.is_null(live["retired_at"]))
    now = current["fingerprint"].take(pc.index_in(finished["sample_id"], current["sample_id"]))
    ended = pc.and_(pc.is_null(finished["photo_uri"]), pc.is_in(finished["reject"], pa.array(ENDED)))
    again = pc.or_(pc.fill_null(finished["kept"], False), ended)
    same = pc.and_(again, pc.equal(finished["fingerprint"], pc.fill_null(now, "")))
    return finished.filter(pc.invert(same))


def _counts(part: PartPlan, rows: pa.Table) -> tuple[int, int]:
    """new and changed, of what is to be written against what is live"""
    live = part.live
    at = pc.index_in(rows["sample_id"], live["sample_id"].combine_chunks())
    current = pc.fill_null(pc.is_null(live["retired_at"]).take(at), False)
    same = pc.and_(current, pc.equal(rows["fingerprint"], pc.fill_null(live["fingerprint"].take(at), "")))
    new, same = at.null_count, pc.sum(same).as_py() or 0  # the same, with another validator of its photo
    return new, rows.num_rows - new - same


def _rejects(part: PartPlan, finished: pa.Table) -> list[str]:
    """The word of every rejected picture of a part after this night, whenever it was rejected."""
    before = part.changes.known.select(["sample_id", "reject"]).take(part.changes.at.drop_null())
    before = before.filter(pc.invert(pc.is_in(before["sample_id"], finished["sample_id"].combine_chunks())))
    return finished["reject"].drop_null().to_pylist() + before["reject"].drop_null().to_pylist()


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
