"""Creatives x channels -> renditions and feeds: crop or extend, encode, mark, read back, publish at once."""

import logging
import time
from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from adbooster.channels.feeds import FeedSettings
from adbooster.channels.presets import Channel, load_channels
from adbooster.contracts import schema
from adbooster.contracts.errors import CoverageTooLow, PublishConflict, TooManyRejects
from adbooster.contracts.settings import code_commit
from adbooster.deliver import extending, feed_files
from adbooster.deliver.config import ChannelReport, DeliverConfig, DeliverReport
from adbooster.deliver.extender import Extender, Framer, Joiner
from adbooster.deliver.feed_files import Ready
from adbooster.deliver.plan import LASTING, Plan, known_renditions, plan, staged_folder, with_files
from adbooster.deliver.sources import Sources, State, read_withdrawn
from adbooster.deliver.stages import Renderer
from adbooster.engine import cluster, stage_times
from adbooster.engine.isolation import Failures
from adbooster.engine.pools import dataset, preflight, through
from adbooster.engine.progress import Progress
from adbooster.engine.staging import stage_parts
from adbooster.experiments import shown
from adbooster.report import delivery, gallery
from adbooster.report.page import write_report
from adbooster.storage import tables
from adbooster.storage.objects import Root

SPARED = 10  # entries that may leave a feed whatever share of it they are
log = logging.getLogger(__name__)


def deliver(config: DeliverConfig) -> DeliverReport:
    """Make the files that are not there yet, then publish all rows in one commit of tables/deliveries, then the feeds and the page.

    raises  TooManyRejects, CoverageTooLow, PublishConflict; nothing of this run is live then, and what was made is kept
    """
    started = time.monotonic()
    root, channels = Root(config.root_uri), load_channels(config.channels)
    work = plan(config, root, channels)
    not_extended: Counter[str] = Counter()
    to_extend = work.extensions.num_rows
    while work.extensions.num_rows and not config.dry_run:  # again for those of other placements, where the first fails
        not_extended += _extend(config, root, work)
        work = plan(config, root, channels, work)
        to_extend += work.extensions.num_rows
    to_render, planned = work.to_render, pa.concat_tables([work.wanted, work.kept])
    report = DeliverReport(
        run_id=config.run_id,
        dry_run=config.dry_run,
        creatives_version=work.creatives_version,
        creatives=work.creatives,
        left_out=work.left_out,
        held_out=work.held_out,
        to_extend=to_extend,
        extended=0 if config.dry_run else to_extend - sum(not_extended.values()),
        not_extended=dict(not_extended.most_common()),
        to_render=to_render.num_rows,
        deliveries_version=work.base,
        channels={channel.name: _channel_report(planned, channel) for channel in channels},
        not_renewed=_not_renewed(root, channels),
    )
    log.info("%d files for %d slots: %d to make", work.requests.num_rows, planned.num_rows, to_render.num_rows)
    if config.dry_run:
        return report.model_copy(update={"seconds": _since(started)})

    if to_render.num_rows:
        _render(config, root, to_render)
    known = known_renditions(root, work.live, work.requests["rendition_id"], config.run_id)
    _check_failures(config, work.requests, known)
    rows = pa.concat_tables([with_files(work.wanted, known), work.kept])
    changed, gone = _changes(work, rows, channels)
    made = _feeds(config, root, rows, channels)
    _check_removed(config, work, made)
    version = _commit(config, root, work, changed, gone)
    first_shown = shown.remember(root, _shown(root, work, rows), config.run_id)
    state = State(version, work.withdrawn)
    published = {name: feed_files.publish(root, feed, state, config.run_id) for name, feed in made.items()}
    reports = {c.name: _channel_report(rows, c).model_copy(update={"feed": published[c.name]}) for c in channels}
    filled = rows.filter(pc.is_null(rows["reason"]))
    made_now = known.filter(pc.is_in(known["rendition_id"], to_render["rendition_id"].combine_chunks()))
    figures = {
        "delivered": len(pc.unique(filled["creative_id"])),
        "first_shown": first_shown,
        "channels": reports,
        "made_by": dict(Counter(filled["made_by"].to_pylist())),
        "seam": _mean_seam(filled),
        "rendered": made_now["reject"].null_count,
        "failures": dict(Counter(made_now["reject"].drop_null().to_pylist())),
        "changed": changed.num_rows,
        "removed": len(gone),
        "size_bytes": sum(dict(zip(filled["uri"].to_pylist(), filled["size_bytes"].to_pylist(), strict=True)).values()),
        "deliveries_version": version,
        "seconds": _since(started),
    }
    report = report.model_copy(update=figures)
    said = changed.num_rows or gone or any(work.withdrawn) or gallery.kept(root, config.run_id)
    if not said:  # the page before says the same
        return report.model_copy(update={"seconds": _since(started)})
    delivery.write(root, config.run_id, report.model_dump(mode="json") | {"require": config.require})
    page = {"gallery_uri": write_report(root, config.run_id), "seconds": _since(started)}
    return report.model_copy(update=page)


def _extend(config: DeliverConfig, root: Root, work: Plan) -> Counter[str]:
    """Run extensions through their stages; their rows are staged as they are finished. Returns the words of those that failed.

    raises  TooManyRejects if more failed than allowed for a reason that is neither the seam's nor a gate's
    """
    assert config.extend
    assert work.models
    extend, requests = config.extend, work.extensions
    cluster.start()
    preflight({"place": extend.place, "paint": extend.paint, "finish": extend.finish})
    failures, times = Failures(root, config.run_id, "failed_extension"), stage_times.start()
    batch = -(-extend.paint.batch // extend.paint_batch) * extend.paint_batch  # whole passes of the network
    batch = min(batch, -(-requests.num_rows // extend.paint.actors))
    place, paint = (pool.model_copy(update={"batch": batch}) for pool in (extend.place, extend.paint))
    # Canvases of one size, which are painted together, one after another.
    shape = pc.binary_join_element_wise(
        *(pc.struct_field(requests["frame"], name).cast(pa.string()) for name in ("width_px", "height_px")), " "
    )
    requests = requests.take(pc.sort_indices(shape))
    ds = through(dataset(requests, batch), Framer, place, schema.CANVASES, failures, times=times, root=root)
    how = {"config": work.models.painting, "attempts": extend.attempts, "max_seam": extend.max_seam}
    ds = through(ds, Extender, paint, schema.EXTENDED, failures, times=times, **how)
    ds = through(ds, Joiner, extend.finish, schema.EXTENSIONS, failures, times=times, root=root)
    with Progress("extend", requests.num_rows, config.progress_s, root) as progress:
        staged = stage_parts(ds, root, extending.staged_folder(config.run_id), progress=progress)
    stage_times.write(root, config.run_id, "extend", times, [staged.blocked_s])
    words = Counter(word for part in staged.rows for word in part["reject"].drop_null().to_pylist())
    failed = Counter({word: n for word, n in words.items() if word not in extending.LASTING})
    _check_share(config, failed, work.extensions_wanted, "extensions")
    return words


def _mean_seam(filled: pa.Table) -> float | None:
    seams = filled.filter(pc.equal(filled["made_by"], "extension"))["seam"]
    return round(pc.mean(seams).as_py(), 3) if len(seams) else None


def _render(config: DeliverConfig, root: Root, requests: pa.Table) -> None:
    """Run requests through the renderers; their rows are staged as they are finished."""
    cluster.start()
    preflight({"render": config.render})
    times = stage_times.start()
    ds = through(
        dataset(requests, config.render.batch),
        Renderer,
        config.render,
        schema.RENDITIONS,
        Failures(root, config.run_id, "failed_delivery"),
        times=times,
        root=root,
        how=config.encoding,
        allowed=config.fidelity,
        signing=config.signing,
    )
    with Progress("deliver", requests.num_rows, config.progress_s, root) as progress:
        staged = stage_parts(ds, root, staged_folder(config.run_id), progress=progress)
    stage_times.write(root, config.run_id, "deliver", times, [staged.blocked_s])


def _check_failures(config: DeliverConfig, requests: pa.Table, known: pa.Table) -> None:
    """raises TooManyRejects if more files failed than allowed for a reason that is not their slot's"""
    words = Counter(word for word in known["reject"].drop_null().to_pylist() if word not in LASTING)
    if missing := requests.num_rows - known.num_rows:
        words["failed_delivery"] += missing
    _check_share(config, words, requests.num_rows, "renditions")


def _check_share(config: DeliverConfig, failed: Counter[str], of: int, what: str) -> None:
    if sum(failed.values()) > config.max_failed_share * of:
        named = ", ".join(f"{n} {word}" for word, n in failed.most_common())
        raise TooManyRejects(
            f"{sum(failed.values())} of {of} {what} failed ({named}), more than max_failed_share "
            f"{config.max_failed_share}; nothing was published, see runs/{config.run_id}/failures"
        )


def _changes(work: Plan, rows: pa.Table, channels: tuple[Channel, ...]) -> tuple[pa.Table, list[str]]:
    """Rows that are new or not as they are live, and the ids of live rows that are gone from these channels."""
    ours = pa.array([channel.name for channel in channels])
    live = work.live.filter(pc.is_in(work.live["channel"], ours))
    at = pc.index_in(rows["delivery_id"], live["delivery_id"].combine_chunks())
    same = pc.equal(_facts(rows), pc.fill_null(_facts(live).take(at), ""))
    changed = rows.filter(pc.invert(same))
    gone = pc.invert(pc.is_in(live["delivery_id"], rows["delivery_id"].combine_chunks()))
    return changed, live.filter(gone)["delivery_id"].to_pylist()


def _facts(rows: pa.Table) -> pa.ChunkedArray:
    """What makes a row another one, as one text a row; a row from before there were propensities was shown for certain."""
    names = ("rendition_id", "creative_id", "reason", "uri", "made_by", "extension_id", "arm")
    lists = [pc.binary_join(rows[name], " ") for name in ("refused_extensions", "refused_why")]
    lists.append(pc.cast(pc.fill_null(rows["propensity"], 1.0), pa.string()))
    lists.append(pc.cast(rows["drawn_for"], pa.string()))
    parts = [pc.fill_null(part, "") for part in (*(rows[name] for name in names), *lists)]
    return pc.binary_join_element_wise(*parts, " ")


def _shown(root: Root, work: Plan, rows: pa.Table) -> pa.Table:
    """What the rows (schema.DELIVERIES) show, as schema.SHOWN."""
    columns = ["creative_id", "product_id", "cohort_id", "placement", "request_id", "arm", "margin"]
    creatives = tables.read(root, "creatives", columns, work.creatives_version)
    return shown.of_deliveries(rows, creatives, tables.read(root, "cohorts", ["cohort_id", "family"]))


def _feeds(config: DeliverConfig, root: Root, rows: pa.Table, channels: tuple[Channel, ...]) -> dict[str, Ready]:
    """The channels' feeds, checked and not written yet."""
    sources = Sources(root, rows)
    made = {}
    for channel in channels:
        settings = FeedSettings(channel=channel, public_base_url=config.public_base_url, feeds=config.feeds)
        made[channel.name] = feed_files.ready(root, sources.feed(settings))
    return made


def _check_removed(config: DeliverConfig, work: Plan, made: dict[str, Ready]) -> None:
    """raises CoverageTooLow if a channel's feed would lose more of its entries than allowed, withdrawals apart"""
    for name, feed in made.items():
        gone, before = [key for key in feed.differing.removed if key not in work.withdrawn_from], feed.entries_before
        if len(gone) > max(SPARED, config.max_removed_share * before):
            why = Counter(work.left_out) + Counter(feed.report.left_out)
            said = ", ".join(f"{n} {word}" for word, n in why.most_common()) or "they are not live"
            raise CoverageTooLow(
                f"{len(gone)} of {before} entries would leave the feed of {name}, more than max_removed_share "
                f"{config.max_removed_share:g} (left out: {said}); nothing was published; --max-removed-share 1 allows it"
            )


def _commit(config: DeliverConfig, root: Root, work: Plan, changed: pa.Table, gone: list[str]) -> int | None:
    """Make the rows what is delivered in one commit; returns the version of tables/deliveries that is live now."""
    if read_withdrawn(root) != work.withdrawn:
        raise PublishConflict("something was withdrawn while this run worked; run again: files that are made are kept")
    if not changed.num_rows and not gone:
        return work.base
    metadata = {"run_id": config.run_id, "job": "deliver", "git_commit": code_commit() or ""}
    return tables.merge(root, "deliveries", changed, "delivery_id", work.base, metadata, delete=gone)


def _channel_report(rows: pa.Table, channel: Channel) -> ChannelReport:
    mine = rows.filter(pc.equal(rows["channel"], channel.name))
    empty = Counter(mine["reason"].drop_null().to_pylist())
    return ChannelReport(
        wanted=mine.num_rows, filled=mine.num_rows - sum(empty.values()), empty=dict(empty.most_common())
    )


def _not_renewed(root: Root, channels: tuple[Channel, ...]) -> list[str]:
    """Channels that have a feed and are no part of this run."""
    others = set(root.folders("delivery")) - {channel.name for channel in channels}
    found = sorted(name for name in others if feed_files.read_pointer(root, name))
    if found:
        log.warning("the feeds of %s are not renewed: these channels are not in `channels`", ", ".join(found))
    return found


def _since(started: float) -> float:
    return round(time.monotonic() - started, 1)
