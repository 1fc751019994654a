"""Nights in which some rows do what a hostile or unlucky picture can do to a native library."""

from contextlib import contextmanager

from adbooster.generate import rounds
from adbooster.measure import run as measure_run
from adbooster.prepare import job as prepare_job
from tests.engine.stages import Poisoned


@contextmanager
def poisoned(**deeds: dict[str, str]):
    """Stages by name do deeds by a part of a row's text: `poisoned(Refiner={"killer": "crashes"})`."""
    jobs = (prepare_job, rounds, measure_run)
    real = rounds.through

    def through(ds, stage, *rest, **init):
        mine = deeds.get(stage.__name__)
        return real(ds, Poisoned, *rest, of=stage, deeds=mine, **init) if mine else real(ds, stage, *rest, **init)

    for job in jobs:
        job.through = through
    try:
        yield
    finally:
        for job in jobs:
            job.through = real
