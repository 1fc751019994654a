"""Painting in rounds: what is missing, and again what is a duplicate or was refused, while time and budget last."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts import schema
from adbooster.contracts.deadline import parse_deadline
from adbooster.engine import budget, stage_times
from adbooster.engine.isolation import Failures
from adbooster.engine.pools import dataset, preflight, through
from adbooster.engine.progress import Progress
from adbooster.engine.staging import stage_parts
from adbooster.generate import priority
from adbooster.generate.config import GenerateConfig
from adbooster.generate.looking import COLUMNS as LOOKED_AT
from adbooster.generate.looking import SeeingGate, refused_rounds
from adbooster.generate.plan import JUDGED, WAVE_ROWS, NightPlan, places, without
from adbooster.painting import candidates
from adbooster.painting.duplicates import COLUMNS, Rivals, Scenes
from adbooster.painting.finish import Finisher
from adbooster.painting.painter import Painter
from adbooster.painting.placing import Placer
from adbooster.painting.requests import staged_creatives, staged_folder
from adbooster.report.contact_sheet import write_contact_sheet
from adbooster.seeing.config import SeeingFigures
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)
DUPLICATE = "duplicate_background"


@dataclass(frozen=True)
class Painted:
    """The results of a night's rounds; rows have the columns plan.JUDGED.

    rows          new creatives that duplicate no other winner and that the seeing gate does not refuse
    first_ranks   the best row of every request and round, also of those that were duplicates
    painted       requests that had to be painted and have a creative now
    rejected      requests that have none, though painting was not stopped
    stopped       what ended painting early: deadline or gpu_hours; None: nothing did
    left          requests that were not painted for that reason
    failures      requests that a painter failed or died on, by reject word
    repainted     requests painted again, as their winner was a duplicate
    seeing        what a vision model looked at; None: none was asked
    stages        what the stages' actors spent their time on, as of engine.stage_times.write
    """

    rows: pa.Table
    first_ranks: pa.Table
    painted: int
    rejected: int
    stopped: str | None = None
    left: int = 0
    repainted: int = 0
    left_uri: str | None = None
    left_by_value: dict[str, int] = field(default_factory=dict)
    left_most_valuable: list[dict[str, Any]] = field(default_factory=list)
    painted_most_valuable: list[dict[str, Any]] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    stages: dict[str, dict] = field(default_factory=dict)
    seeing: SeeingFigures | None = None

    def figures(self) -> dict[str, Any]:
        """The fields of GenerateReport that painting decides."""
        best = self.rows.filter(pc.equal(self.rows["rank"], 0))
        fallbacks = best.filter(best["fallback"])
        words = pc.list_flatten(self.first_ranks["candidate_rejects"].combine_chunks())
        return {
            "painted": self.painted,
            "rejected": self.rejected,
            "failures": self.failures,
            "stopped": self.stopped,
            "left": self.left,
            "left_uri": self.left_uri,
            "left_by_value": self.left_by_value,
            "left_most_valuable": self.left_most_valuable,
            "painted_most_valuable": self.painted_most_valuable,
            "fallbacks": fallbacks.num_rows,
            "fallback_reasons": dict(Counter(fallbacks["fallback_reason"].to_pylist())),
            "candidate_rejects": dict(Counter(words.to_pylist())),
            "repainted_duplicates": self.repainted,
            "seeing": self.seeing,
            "published": self.rows.num_rows,
            "painter_busy": self.stages.get("Painter", {}).get("network_share"),
            "gpu_s": round(pc.sum(self.first_ranks["gpu_s"]).as_py() or 0.0, 1),
            "paint_batch": pc.min(self.first_ranks["paint_batch"]).as_py(),
        }


def paint(config: GenerateConfig, night: NightPlan) -> Painted:
    """Paint what is neither live nor staged, and again where a winner has the scene of another or a vision model refuses it.

    Finished creatives are looked at while the painters go on; only the next round waits for the last answers.
    """
    root, ends = Root(config.root_uri), _ends(config)
    seeing, until = config.seeing, ends and ends.timestamp()
    with SeeingGate(root, seeing, config.run_id, until) if seeing else nullcontext() as gate:
        return _paint(config, root, night, ends, gate)


def _paint(
    config: GenerateConfig, root: Root, night: NightPlan, ends: datetime | None, gate: SeeingGate | None
) -> Painted:
    scenes, meter = Scenes(config.recipe.gates), _budget(config, night.staged, ends)
    repainted, times, arrived = Counter[str](), None, _Arrivals(root, config.run_id, gate)
    tried: set[tuple[str, int]] = set()
    failures, blocked = Counter[str](), []
    waves, wanted = priority.waves(night) if meter else _in_order(night.unpainted(night.staged)), night.to_paint
    if gate and night.staged.num_rows:
        gate.add(_staged(config, root, night))
    while True:
        asked = 0
        times = times or (stage_times.start() if wanted else None)
        with Progress("generate", wanted, config.progress_s, root) if times else nullcontext() as progress:
            for wave in waves:
                if times is None or progress is None or (meter and budget.exhausted_by(meter)):
                    break
                words, held_back_s = _stage(config, root, night, wave, meter, times, progress, arrived)
                failures += words
                blocked.append(held_back_s)
                asked += wave.num_rows
        stopped = budget.exhausted_by(meter) if meter else None
        staged = night.staged if not (blocked or gate) else _staged(config, root, night)
        refused = gate.refused(staged) if gate else pa.nulls(staged.num_rows, pa.string())
        staged = staged.select(list(JUDGED))
        rows, again = settle(staged, scenes, _taken(scenes, night, staged) | refused.is_valid().to_numpy(False))
        again = {request: number for request, number in again.items() if (request, number) not in tried}
        if not again or stopped or not (asked or not repainted):
            break
        tried |= set(again.items())  # a round that gives no creative is not painted twice
        of_round = refused_rounds(staged, refused)
        words = {request: of_round.get((request, number - 1), DUPLICATE) for request, number in again.items()}
        waves, wanted = _in_order(_next_round(night, again, words)), len(again)
        repainted += Counter(words.values())
        why = ", ".join(f"{n} for {word}" for word, n in sorted(Counter(words.values()).items()))
        log.info("%d requests are painted again: %s", len(again), why)
    stages = stage_times.write(root, config.run_id, "generate", times, blocked) if times else {}
    unfilled = without_any = 0
    for part in night.unpainted(rows, ["request_id"]):
        unfilled, without_any = unfilled + part.num_rows, without_any + without(part, night.staged).num_rows
    painted = Painted(
        rows=rows,
        first_ranks=staged.filter(pc.equal(staged["rank"], 0)),
        painted=night.to_paint - without_any,
        rejected=0 if stopped else without_any,
        left=unfilled if stopped else 0,
        stopped=stopped,
        repainted=repainted[DUPLICATE],
        seeing=gate.figures(repainted.total() - repainted[DUPLICATE]) if gate else None,
        failures=dict(failures),
        stages=stages,
        **(priority.write_left(root, config.run_id, night, rows, stopped) if stopped else {}),
    )
    smallest = painted.figures()["paint_batch"]
    if smallest and smallest < config.paint_batch:
        log.warning("memory ran out: paint_batch %d went down to %d", config.paint_batch, smallest)
    return painted


def _staged(config: GenerateConfig, root: Root, night: NightPlan) -> pa.Table:
    """What has been painted of what is missing, by this run and by unfinished ones; where it is looked at, with LOOKED_AT."""
    columns = dict.fromkeys([*JUDGED, *(LOOKED_AT if config.seeing else ())])
    return night.of_missing(staged_creatives(root, config.run_id, night.recipe_id, columns))


def _in_order(parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Requests in their order, some hundred thousand at a time."""
    held: list[pa.Table] = []
    for rows in parts:
        held += [rows] if rows.num_rows else []
        while sum(rows.num_rows for rows in held) >= WAVE_ROWS:
            together = pa.concat_tables(held)
            yield together.slice(0, WAVE_ROWS)
            held = [together.slice(WAVE_ROWS)] if together.num_rows > WAVE_ROWS else []
    if held:
        yield pa.concat_tables(held)


def _next_round(night: NightPlan, again: dict[str, int], words: dict[str, str]) -> Iterator[pa.Table]:
    """The requests to paint again, by request_id, with the round that each is painted in next, and the word of the last."""
    names = pa.array(list(again), pa.string())
    for part in night.parts:
        rows = night.missing(part)
        rows = rows.filter(pc.is_in(rows["request_id"], names))
        rounds = pa.array([again[q] for q in rows["request_id"].to_pylist()], pa.int32())
        rows = rows.set_column(rows.schema.get_field_index("round"), "round", rounds)
        why = pa.array([words[q] for q in rows["request_id"].to_pylist()], pa.string())
        yield rows.set_column(rows.schema.get_field_index("again_for"), "again_for", why)


def settle(staged: pa.Table, scenes: Scenes, taken: np.ndarray) -> tuple[pa.Table, dict[str, int]]:
    """The rows that remain without duplicates, and the requests to paint again with their next round.

    staged  rows (plan.JUDGED) of all rounds painted so far
    taken   for each whether it cannot be published: a creative that stays live has its scene, or it was refused
    """
    request_ids, rounds = (staged[c].to_pylist() for c in ("request_id", "round"))
    painted: dict[str, list[int]] = {}
    for request_id, number in zip(request_ids, rounds, strict=True):
        if number not in painted.setdefault(request_id, []):
            painted[request_id].append(number)
    at, rivals = {request_id: min(numbers) for request_id, numbers in painted.items()}, Rivals(staged, scenes)
    while True:
        current = np.array([at[q] == r for q, r in zip(request_ids, rounds, strict=True)], bool)
        kept = rivals.keep(current & ~taken)
        held = {request_ids[i] for i in np.flatnonzero(kept)}
        lost = [q for q in at if q not in held]
        later = {q: min(numbers) for q in lost if (numbers := [n for n in painted[q] if n > at[q]])}
        if not later:
            return staged.filter(pa.array(kept)), {q: at[q] + 1 for q in lost}
        at.update(later)


def _taken(scenes: Scenes, night: NightPlan, staged: pa.Table) -> np.ndarray:
    """Which rows have the scene of a live creative that stays: still wanted, a champion or in a place that nothing was painted for."""
    if not scenes.near_bits or not staged.num_rows:
        return np.zeros(staged.num_rows, bool)
    replaced = places(staged)

    def stay() -> Iterator[pa.Table]:
        for part in night.parts:
            live = night.live.read(part, ["creative_id", *COLUMNS])
            held = night.of[part].champions["creative_id"].combine_chunks()
            gone = pc.and_(pc.is_in(places(live), replaced), pc.invert(pc.is_in(live["creative_id"], held)))
            gone = pc.or_(gone, pc.is_in(live["creative_id"], night.of[part].unasked))
            yield live.filter(pc.invert(gone))

    return scenes.among(staged, stay())


def _ends(config: GenerateConfig) -> datetime | None:
    """When painting has to end; None: whenever it is done."""
    deadline = parse_deadline(config.deadline, datetime.now().astimezone())
    return deadline and deadline - timedelta(seconds=config.publish_s)


def _budget(config: GenerateConfig, staged: pa.Table, ends: datetime | None) -> budget.Handle | None:
    """The meter of deadline and budget; None where there is neither. A resumed run has spent some already."""
    if ends is None and config.gpu_hours is None:
        return None
    mine = staged.filter(pc.and_(pc.equal(staged["run_id"], config.run_id), pc.equal(staged["rank"], 0)))
    gpu_s = None if config.gpu_hours is None else config.gpu_hours * 3600 - (pc.sum(mine["gpu_s"]).as_py() or 0.0)
    return budget.start_meter(ends, gpu_s)


def _stage(
    config: GenerateConfig,
    root: Root,
    night: NightPlan,
    rows: pa.Table,
    meter: budget.Handle | None,
    times: stage_times.Handle,
    progress: Progress,
    arrived: "_Arrivals",
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
    shown = candidates.shown_up_to(pa.chunked_array([night.lowest]), config.gallery)
    names = {"recipe_id": night.recipe_id, "weights_revision": night.weights_revision}
    ds = through(dataset(rows, batch), Placer, place, schema.PLACED, failures, root=root, **shared)
    ds = through(ds, Painter, paint, schema.PAINTED, failures, meter, shown_up_to=shown, **shared)
    ds = through(ds, Finisher, finish, schema.STAGED, failures, root=root, **names, **shared)
    folder = staged_folder(config.run_id, night.recipe_id)
    enough = partial(budget.settled, meter) if meter else None
    staged = stage_parts(ds, root, folder, budget.LEFT, enough, progress, arrived)
    words = Counter(word for part in staged.rows for word in part["reject"].drop_null().to_pylist())
    return words, staged.blocked_s


def _batch(config: GenerateConfig, requests: int) -> int:
    """Requests a call of a painter: whole passes, and in a small round few enough that every painter gets some."""
    whole = config.requests_a_pass
    share = min(config.paint.batch, -(-requests // (2 * config.paint.actors)))
    return -(-share // whole) * whole


class _Arrivals:
    """What happens with creatives as they are staged: they are looked at, and the first are shown on a contact sheet, so that
    people see results early."""

    def __init__(self, root: Root, run_id: str, gate: SeeingGate | None):
        self.root, self.run_id, self.gate, self.sheet = root, run_id, gate, False

    def __call__(self, rows: pa.Table) -> None:
        if self.gate:
            self.gate.add(rows)
        if not self.sheet and (sheet := write_contact_sheet(self.root, self.run_id, rows)):
            self.sheet = True
            log.info("the first creatives: %s", sheet)
