"""The painting of a night: rounds of requests through the painters until they are settled or what is allowed is used up."""

import logging
import math
from collections import Counter
from datetime import datetime, timedelta
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import ray

from adbooster import allowance, candidates, choose, plan, schema, value
from adbooster.objects import Root
from adbooster.pools import Progress, dataset, preflight, stage_parts, through
from adbooster.publish import staying

log = logging.getLogger(__name__)


def paint(config, wanted: pa.Table, live: pa.Table, earlier: pa.Table, done) -> pa.Table:
    """Paint what is neither live nor staged, and again what turns out a duplicate, while time and budget last.

    config   of jobs.generate; done  its report, which gets the figures of the painting
    wanted   the night's requests; live  what is live; earlier  what is staged (schema.STAGED)
    returns  the night's new rows (schema.STAGED)
    """
    root, new = Root(config.root_uri), plan.without(wanted, live)
    to_paint = plan.without(new, earlier)
    meter, todo, first = _meter(config, earlier), to_paint, True
    shown_up_to = candidates.shown_up_to(wanted["request_id"], config.gallery)
    if meter:
        todo = value.by_value(to_paint, live)
    while True:
        if todo.num_rows:
            _stage(config, root, todo, done, meter, shown_up_to)
        done.stopped = ray.get(meter.word.remote()) if meter else None
        staged = plan.staged(root, config.run_id, done.recipe_id)
        staged = staged.filter(pc.is_in(staged["request_id"], new["request_id"]))
        fresh, again = choose.settle(staged, staying(config.recipe.gates, wanted, live, staged))
        if not again or done.stopped or not (first or todo.num_rows):
            break
        todo = plan.next_round(wanted, again)
        log.info("%d winners look like others; their requests are painted again", todo.num_rows)
        done.repainted_duplicates, first = done.repainted_duplicates + todo.num_rows, False
    left = plan.without(new, fresh) if done.stopped else new.slice(0, 0)
    if done.stopped:
        _leave(config, root, left, live, done)
    done.rejected = plan.without(to_paint, fresh, left).num_rows
    done.painted = to_paint.num_rows - plan.without(to_paint, fresh).num_rows
    done.published = fresh.num_rows
    best = fresh.filter(pc.equal(fresh["rank"], 0))
    fallbacks = best.filter(best["fallback"])
    done.fallbacks, done.fallback_reasons = fallbacks.num_rows, dict(Counter(fallbacks["fallback_reason"].to_pylist()))
    firsts = staged.filter(pc.equal(staged["rank"], 0))
    done.candidate_rejects = dict(Counter(w for words in firsts["candidate_rejects"].to_pylist() for w in words or ()))
    done.gpu_s = round(pc.sum(firsts["gpu_s"]).as_py() or 0.0, 1)
    done.paint_batch = pc.min(firsts["paint_batch"]).as_py()
    if done.paint_batch and done.paint_batch < config.paint_batch:
        log.warning("memory ran out: paint_batch %d went down to %d", config.paint_batch, done.paint_batch)
    return fresh


def _meter(config, earlier: pa.Table):
    """What holds painters to deadline and budget; None where there is neither. A resumed run has spent some already."""
    ends = allowance.until(config.deadline, datetime.now().astimezone())
    if ends is None and config.gpu_hours is None:
        return None
    mine = earlier.filter(pc.and_(pc.equal(earlier["run_id"], config.run_id), pc.equal(earlier["rank"], 0)))
    gpu_s = None if config.gpu_hours is None else config.gpu_hours * 3600 - (pc.sum(mine["gpu_s"]).as_py() or 0.0)
    return allowance.start_meter(ends and ends - timedelta(seconds=config.publish_s), gpu_s)


def _leave(config, root: Root, left: pa.Table, live: pa.Table, done) -> None:
    done.left = left.num_rows
    done.left_uri, done.left_by_value = value.write_left(root, config.run_id, left, live)
    words = ", ".join(f"{n} {name}" for name, n in done.left_by_value.items())
    log.warning("%s is used up: %d requests are left for the next night (%s)", done.stopped, done.left, words)


def _stage(config, root: Root, rows: pa.Table, done, meter, shown_up_to: str) -> None:
    """Run requests through the painters; their rows are staged as they are finished."""
    preflight({"paint": config.paint})
    whole = config.paint_batch // math.gcd(config.paint_batch, config.recipe.candidates)  # requests that fill passes
    pool = config.paint.model_copy(update={"batch": -(-config.paint.batch // whole) * whole})
    from adbooster.painter import Painter

    ds = through(
        dataset(rows, pool.batch),
        allowance.metered(Painter, meter) if meter else Painter,
        pool,
        schema.STAGED,
        root=root,
        config=config,
        recipe_id=done.recipe_id,
        weights_revision=done.weights_revision,
        shown_up_to=shown_up_to,
    )
    with Progress("generate", rows.num_rows, config.progress_s, root) as progress:
        folder = plan.staged_folder(config.run_id, done.recipe_id)
        enough = partial(allowance.settled, meter) if meter else None
        stage_parts(ds, root, folder, allowance.LEFT, enough, progress)
