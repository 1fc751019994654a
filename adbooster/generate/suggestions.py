"""How many actors the next night needs so that painters never wait, from the stage times of the last one."""

import math

from pydantic import BaseModel

from adbooster.engine import stage_records
from adbooster.engine.pools import fit
from adbooster.generate.config import GenerateConfig
from adbooster.storage.objects import Root

SPARE = 1.25  # what the stages beside the painters can do more than the painters need
CALL_S = 5.0  # that a call of a painter should last: what happens between calls is then nothing
STAGES = {"Placer": "place", "Painter": "paint", "Finisher": "finish"}  # their pools in GenerateConfig


class Suggestion(BaseModel):
    """What to set, and how long the night would take with it and takes as it is set; from one measured run."""

    measured_in: str
    """The run whose stages.json this follows from."""
    actors: dict[str, int]
    """By pool: place, paint, finish."""
    paint_batch_of_requests: int
    """For paint.batch: calls of some seconds, of two passes at least, so that one is judged while the next is painted."""
    night_s: float
    """With these actors, loading aside."""
    night_s_as_set: float
    """With the actors that are set."""
    gpu_hours: float
    fits: bool
    """Whether the cluster has, or can grow to, the CPUs and GPUs for them."""

    def lines(self, config: GenerateConfig) -> list[str]:
        there = {name: getattr(config, name).actors for name in self.actors}
        actors = ", ".join(f"{name} {n} (set: {there[name]})" for name, n in self.actors.items())
        return [
            f"from the stage times of run {self.measured_in}: {self.gpu_hours:.2f} GPU-hours of painting",
            f"actors so that painters never wait: {actors}"
            + ("" if self.fits else "; THE CLUSTER HAS NOT ENOUGH CPUs"),
            f"paint.batch {self.paint_batch_of_requests} (set: {config.paint.batch})",
            f"the night would take {_time(self.night_s)}; as it is set {_time(self.night_s_as_set)}",
        ]


def suggest(config: GenerateConfig, root: Root, requests: int) -> Suggestion | None:
    """For painting so many requests; None where no run has measured its stages."""
    found = stage_records.newest(root, "generate", STAGES)
    if found is None:
        return None
    run_id, stages = found
    return _suggestion(config, run_id, {STAGES[name]: stages[name]["row_s"] for name in STAGES}, requests)


def _suggestion(config: GenerateConfig, run_id: str, row_s: dict[str, float], requests: int) -> Suggestion:
    pools = {name: getattr(config, name) for name in row_s}
    painters = config.paint.actors
    need = {name: max(1, math.ceil(SPARE * painters * s / row_s["paint"])) for name, s in row_s.items()}
    actors = need | {"paint": painters}
    wanted = {name: pools[name].model_copy(update={"actors": n}) for name, n in actors.items()}
    whole = config.requests_a_pass
    batch = max(2, math.ceil(CALL_S / max(row_s["paint"], 1e-6) / whole)) * whole
    slowest = max(s / max(pools[name].actors, pools[name].max_actors or 0) for name, s in row_s.items())
    return Suggestion(
        measured_in=run_id,
        actors=actors,
        paint_batch_of_requests=batch,
        night_s=round(requests * row_s["paint"] / painters, 1),
        night_s_as_set=round(requests * slowest, 1),
        gpu_hours=round(requests * row_s["paint"] * config.paint.gpus / 3600, 4),
        fits=all(row["asked"] <= row["there"] for row in fit(wanted)),
    )


def _time(seconds: float) -> str:
    return (
        f"{seconds / 3600:.1f} h"
        if seconds >= 3600
        else f"{seconds / 60:.0f} min"
        if seconds >= 120
        else f"{seconds:.0f} s"
    )
