"""Painting in rounds: what is missing, and again what turns out to be a duplicate, while time and budget last."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts import schema
from adbooster.contracts.deadline import parse_deadline
from adbooster.contracts.recipe import Gates
from adbooster.engine import budget, stage_times
from adbooster.engine.isolation import Failures
from adbooster.engine.pools import dataset, preflight, through
from adbooster.engine.progress import Progress
from adbooster.engine.staging import stage_parts
from adbooster.generate import priority
from adbooster.generate.config import GenerateConfig
from adbooster.generate.plan import NightPlan, next_round, without
from adbooster.generate.publish import places
from adbooster.generate.value import Facts, read_facts
from adbooster.painting import candidates
from adbooster.painting.duplicates import Scenes
from adbooster.painting.finish import Finisher
from adbooster.painting.painter import Painter
from adbooster.painting.placing import Placer
from adbooster.painting.requests import staged_creatives, staged_folder
from adbooster.report.contact_sheet import write_contact_sheet
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Painted:
    """The results of a night's rounds.

    rows          new creatives (schema.STAGED) that duplicate no other winner
    first_ranks   the best row of every request and round, also of those that were duplicates
    requested     requests that had to be painted
    stopped       what ended painting early: deadline or gpu_hours; None: nothing did
    left          requests that were not painted for that reason
    failures      requests that a painter failed or died on, by reject word
    repainted     requests painted again, as their winner was a duplicate
    stages        what the stages' actors spent their time on, as of engine.stage_times.write
    """

    rows: pa.Table
    first_ranks: pa.Table
    requested: pa.Table
    left: pa.Table
    stopped: str | None = None
    repainted: int = 0
    left_uri: str | None = None
    left_by_value: dict[str, int] = field(default_factory=dict)
    left_most_valuable: list[dict[str, Any]] = field(default_factory=list)
    painted_most_valuable: list[dict[str, Any]] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    stages: dict[str, dict] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        """The fields of GenerateReport that painting decides."""
        best = self.rows.filter(pc.equal(self.rows["rank"], 0))
        fallbacks = best.filter(best["fallback"])
        words = (word for some in self.first_ranks["candidate_rejects"].to_pylist() for word in some or ())
        return {
            "painted": self.requested.num_rows - without(self.requested, self.rows).num_rows,
            "rejected": without(self.requested, self.rows, self.left).num_rows,
            "failures": self.failures,
            "stopped": self.stopped,
            "left": self.left.num_rows,
            "left_uri": self.left_uri,
            "left_by_value": self.left_by_value,
            "left_most_valuable": self.left_most_valuable,
            "painted_most_valuable": self.painted_most_valuable,
            "fallbacks": fallbacks.num_rows,
            "fallback_reasons": dict(Counter(fallbacks["fallback_reason"].to_pylist())),
            "candidate_rejects": dict(Counter(words)),
            "repainted_duplicates": self.repainted,
            "published": self.rows.num_rows,
            "painter_busy": self.stages.get("Painter", {}).get("network_share"),
            "gpu_s": round(pc.sum(self.first_ranks["gpu_s"]).as_py() or 0.0, 1),
            "paint_batch": pc.min(self.first_ranks["paint_batch"]).as_py(),
        }


def paint(config: GenerateConfig, night: NightPlan) -> Painted:
    """Paint what is neither live nor staged; winners whose scene another winner has are painted again."""
    root, missing, to_paint = Root(config.root_uri), night.missing, night.to_paint
    meter = _budget(config, night.staged)
    facts = _facts(config, root, night) if meter else None
    todo = priority.by_value(to_paint, night.live, facts) if facts else to_paint
    repainted, first_round, times = 0, True, None
    failures, blocked = Counter[str](), []
    while True:
        if todo.num_rows:
            times = times or stage_times.start()
            words, held_back_s = _stage(config, root, night, todo, meter, times)
            failures += words
            blocked.append(held_back_s)
        stopped = budget.exhausted_by(meter) if meter else None
        staged = staged_creatives(root, config.run_id, night.recipe_id)
        staged = staged.filter(pc.is_in(staged["request_id"], missing["request_id"]))
        rows, again = settle(staged, _scenes_that_stay(config.recipe.gates, night, staged))
        if not again or stopped or not (first_round or todo.num_rows):
            break
        todo, first_round = next_round(night.requests, again), False
        repainted += todo.num_rows
        log.info("%d winners duplicate others; their requests are painted again", todo.num_rows)
    stages = stage_times.write(root, config.run_id, "generate", times, blocked) if times else {}
    painted = Painted(
        rows=rows,
        first_ranks=staged.filter(pc.equal(staged["rank"], 0)),
        requested=to_paint,
        left=without(missing, rows) if stopped else missing.slice(0, 0),
        stopped=stopped,
        repainted=repainted,
        failures=dict(failures),
        stages=stages,
        **(_write_left(config, root, night, facts, without(missing, rows), stopped) if stopped and facts else {}),
    )
    smallest = painted.figures()["paint_batch"]
    if smallest and smallest < config.paint_batch:
        log.warning("memory ran out: paint_batch %d went down to %d", config.paint_batch, smallest)
    return painted


def settle(staged: pa.Table, live_scenes: Callable[[], Scenes]) -> tuple[pa.Table, dict[str, int]]:
    """The rows that remain without duplicates, and the requests to paint again with their next round.

    staged       rows (schema.STAGED) of all rounds painted so far
    live_scenes  makes the scenes of creatives that stay live, anew at each call
    """
    request_ids, rounds = (staged[c].to_pylist() for c in ("request_id", "round"))
    painted: dict[str, list[int]] = {}
    for request_id, number in zip(request_ids, rounds, strict=True):
        if number not in painted.setdefault(request_id, []):
            painted[request_id].append(number)
    at = {request_id: min(numbers) for request_id, numbers in painted.items()}
    while True:
        current = staged.filter(pa.array([at[q] == r for q, r in zip(request_ids, rounds, strict=True)], pa.bool_()))
        kept = current.filter(pa.array(live_scenes().take(current), pa.bool_()))
        held = set(kept["request_id"].to_pylist())
        lost = [q for q in at if q not in held]
        later = {q: min(numbers) for q in lost if (numbers := [n for n in painted[q] if n > at[q]])}
        if not later:
            return kept, {q: at[q] + 1 for q in lost}
        at.update(later)


def _scenes_that_stay(gates: Gates, night: NightPlan, staged: pa.Table) -> Callable[[], Scenes]:
    """Makes the scenes of live creatives that stay: still wanted, and in a place that nothing was painted for."""
    asked, replaced = set(places(night.requests)), set(places(staged))
    stays = night.live.filter(pa.array([p in asked and p not in replaced for p in places(night.live)], pa.bool_()))

    def scenes() -> Scenes:
        known = Scenes(gates)
        known.take(stays)
        return known

    return scenes


def _budget(config: GenerateConfig, staged: pa.Table) -> budget.Handle | None:
    """The meter of deadline and budget; None where there is neither. A resumed run has spent some already."""
    ends = parse_deadline(config.deadline, datetime.now().astimezone())
    if ends is None and config.gpu_hours is None:
        return None
    mine = staged.filter(pc.and_(pc.equal(staged["run_id"], config.run_id), pc.equal(staged["rank"], 0)))
    gpu_s = None if config.gpu_hours is None else config.gpu_hours * 3600 - (pc.sum(mine["gpu_s"]).as_py() or 0.0)
    return budget.start_meter(ends and ends - timedelta(seconds=config.publish_s), gpu_s)


def _facts(config: GenerateConfig, root: Root, night: NightPlan) -> Facts:
    """What values follow from, with the margins of all that is live."""
    facts = read_facts(root, config.value)
    facts.margins.add(night.live, night.requests)
    return facts


def _write_left(
    config: GenerateConfig, root: Root, night: NightPlan, facts: Facts, left: pa.Table, stopped: str | None
) -> dict[str, Any]:
    """Write down what the night leaves; its address, counts by class and the most valuable, as fields of Painted."""
    left_uri, by_value = priority.write_left(root, config.run_id, left, night.live, facts)
    words = ", ".join(f"{n} {name}" for name, n in by_value.items())
    log.warning("%s is used up: %d requests are left for the next night (%s)", stopped, left.num_rows, words)
    painted = without(night.to_paint, left)
    return {
        "left_uri": left_uri,
        "left_by_value": by_value,
        "left_most_valuable": priority.most_valuable(left, night.live, facts),
        "painted_most_valuable": priority.most_valuable(painted, night.live, facts),
    }


def _stage(
    config: GenerateConfig,
    root: Root,
    night: NightPlan,
    rows: pa.Table,
    meter: budget.Handle | None,
    times: stage_times.Handle,
) -> tuple[Counter[str], Mapping[str, float]]:
    """Run requests through the painters; their rows are staged as they are finished.

    returns  the reject words of the others, and the seconds that stages were held back
    """
    preflight({"place": config.place, "paint": config.paint, "finish": config.finish})
    batch = _batch(config, rows.num_rows)
    place, paint = (p.model_copy(update={"batch": batch}) for p in (config.place, config.paint))
    finish = config.finish.model_copy(update={"batch": min(config.finish.batch, batch)})
    if meter:
        budget.begin_round(meter)
    failures, shared = Failures(root, config.run_id, "failed_paint"), {"times": times, "config": config}
    shown = candidates.shown_up_to(night.requests["request_id"], config.gallery)
    names = {"recipe_id": night.recipe_id, "weights_revision": night.weights_revision}
    ds = through(dataset(rows, batch), Placer, place, schema.PLACED, failures, root=root, **shared)
    ds = through(ds, Painter, paint, schema.PAINTED, failures, meter, shown_up_to=shown, **shared)
    ds = through(ds, Finisher, finish, schema.STAGED, failures, root=root, **names, **shared)
    with Progress("generate", rows.num_rows, config.progress_s, root) as progress:
        folder = staged_folder(config.run_id, night.recipe_id)
        enough = partial(budget.settled, meter) if meter else None
        staged = stage_parts(ds, root, folder, budget.LEFT, enough, progress, _FirstSheet(root, config.run_id))
    words = Counter(word for part in staged.rows for word in part["reject"].drop_null().to_pylist())
    return words, staged.blocked_s


def _batch(config: GenerateConfig, requests: int) -> int:
    """Requests a call of a painter: whole passes, and in a small round few enough that every painter gets some."""
    whole = config.requests_a_pass
    share = min(config.paint.batch, -(-requests // (2 * config.paint.actors)))
    return -(-share // whole) * whole


class _FirstSheet:
    """Writes a contact sheet once the first paintings of a run are staged, so that people see results early."""

    def __init__(self, root: Root, run_id: str):
        self.root, self.run_id, self.written = root, run_id, False

    def __call__(self, rows: pa.Table) -> None:
        if not self.written and (sheet := write_contact_sheet(self.root, self.run_id, rows)):
            self.written = True
            log.info("the first creatives: %s", sheet)
