"""The limits of hosts as one Ray actor that all fetchers of all nodes ask."""

import logging
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, NamedTuple
from uuid import uuid4

import ray
from ray.exceptions import RayError

from adbooster.engine.cluster import beside_driver
from adbooster.engine.host_limits import Ask, Grant, HostLimits, Limits

log = logging.getLogger(__name__)
ANSWER_S = 5.0  # an actor that is busy starting again is not waited for


class Handle(NamedTuple):
    """Where the fetchers of one job ask, and within which limits."""

    actor: Any  # Ray does not type its handles
    job: str
    limits: Limits


class Permits:
    """HostLimits by job; lives in a Ray actor of its own. One that is started again knows nobody, and begins anew."""

    def __init__(self) -> None:
        self.jobs: dict[str, HostLimits] = {}

    def exchange(self, job: str, limits: Limits, fetcher: str, asks: Mapping[str, Ask]) -> dict[str, Grant]:
        if job not in self.jobs:
            self.jobs[job] = HostLimits(limits)
        return self.jobs[job].exchange(fetcher, asks)

    def measured(self, job: str) -> dict[str, dict[str, Any]]:
        """As of HostLimits; forgotten here."""
        limits = self.jobs.pop(job, None)
        return limits.measured() if limits else {}


@cache
def _actor(ray_job: str) -> Any:
    """One for all jobs of this driver: a Ray actor is a process, and takes seconds to start."""
    return beside_driver(Permits)


def start(limits: Limits) -> Handle:
    return Handle(_actor(ray.get_runtime_context().get_job_id()), uuid4().hex, limits)


def answers(handle: Handle) -> Callable[[Mapping[str, Ask]], dict[str, Grant] | None]:
    """What one fetcher asks, a function of its `Ask`s by host; it gives None while the actor is lost."""
    return partial(_exchange, handle, uuid4().hex)


def _exchange(handle: Handle, fetcher: str, asks: Mapping[str, Ask]) -> dict[str, Grant] | None:
    try:
        return ray.get(handle.actor.exchange.remote(handle.job, handle.limits, fetcher, asks), timeout=ANSWER_S)
    except RayError as e:
        log.warning("the limits of hosts cannot be asked for now; each fetcher keeps to its share: %s", e)
        return None


def measured(handle: Handle) -> dict[str, dict[str, Any]]:
    """What all fetchers of a job have seen, by host; empty where it is lost."""
    try:
        return ray.get(handle.actor.measured.remote(handle.job), timeout=ANSWER_S)
    except RayError as e:  # no reason to end a night
        log.warning("what was measured of hosts is lost: %s", e)
        return {}
