"""Fetchers of one night keep to the limits of a host together, and to their share where nobody answers for all."""

import asyncio
import os
import time
from itertools import pairwise

import pyarrow as pa
import pytest
import ray

from adbooster.contracts import schema
from adbooster.contracts.settings import Pool
from adbooster.engine import permits
from adbooster.engine.cluster import beside_driver
from adbooster.engine.host_limits import Ask, Limits, Seen
from adbooster.engine.isolation import Failures, Isolated, StageProcess, pickled
from adbooster.engine.pools import dataset, through
from adbooster.prepare.changes import MadeBy
from adbooster.prepare.config import Http, Rules, Source
from adbooster.prepare.hosts import Hosts, SharedLimits
from adbooster.prepare.stages import Fetcher
from tests.conftest import row


class NamedFetcher(Fetcher):
    """One that tells the server which process it is."""

    def __init__(self, source: Source, **how):
        http = source.http.model_copy(update={"user_agent": f"fetcher {os.getpid()}"})
        super().__init__(source=source.model_copy(update={"http": http}), **how)


def slow_pictures(misbehaving, seconds, count):
    """Planned pictures of one host, each of which it takes so long for."""
    uris = [f"{misbehaving.url}/slow/{seconds}/{n}" for n in range(count)]
    return [
        row(schema.PLANNED, sample_id=f"s{n}", product_id=f"P{n}", role="main", image_uri=uri)
        for n, uri in enumerate(uris)
    ]


@pytest.mark.parametrize("per_host", [1, 3])
def test_two_fetchers_keep_to_one_limit(local_ray, root, misbehaving, per_host):
    """Shares of their own would be two at once of one allowed, and two of three."""
    pictures = slow_pictures(misbehaving, 0.1, 24)
    http = Http(per_host=max(1, per_host // 2))
    source = Source(feed_uri="/nowhere/feed.tsv", allow_private_hosts=True, http=http)
    handle = permits.start(Limits(per_host, None, 30.0))
    assert permits.answers(handle)({}) == {}, "it has started"
    how = {"root": root, "source": source, "rules": Rules(), "made": MadeBy("a", "b", "c")}
    rows = dataset(pa.Table.from_pylist(pictures, schema.PLANNED), 6)
    failures = Failures(root, "r1", "failed_fetch")
    ds = through(rows, NamedFetcher, Pool(actors=2, batch=6), schema.FETCHED, failures, hosts=handle, **how)
    assert ds.materialize().count() == 24
    assert len({headers["User-Agent"] for headers in misbehaving.headers}) == 2, "both fetched"
    assert len(misbehaving.asked) == 24
    assert misbehaving.most_under_way == per_host
    measured = permits.measured(handle)[f"127.0.0.1:{misbehaving.port}"]
    assert (measured["requests"], measured["errors"]) == (24, 0)
    assert measured["latency_s"] >= 0.1


def test_a_lost_actor_is_no_answer(local_ray):
    handle = permits.Handle(beside_driver(permits.Permits), "job", Limits(8, None, 30.0))
    ask = permits.answers(handle)
    asks = {"cdn.example": Ask(10, 0, Seen())}
    grants = ask(asks)
    assert grants is not None
    assert grants["cdn.example"].slots == 8
    ray.kill(handle.actor)
    ends = time.monotonic() + 30
    while ask(asks) is not None:  # Ray does not wait for the end of what it kills
        assert time.monotonic() < ends, "a dead actor answers"
        time.sleep(0.05)
    assert permits.measured(handle) == {}


def test_a_fetcher_that_nobody_answers_keeps_to_its_share():
    shared = SharedLimits(Limits(2, None, 30.0))
    assert shared({"cdn.example": Ask(10, 0, Seen())})["cdn.example"].slots == 2


def test_waiting_for_a_host_counts_against_no_row(root, misbehaving):
    """Eight photos at one a second take longer than the six seconds that a batch may."""
    pictures = slow_pictures(misbehaving, 0, 8)
    source = Source(feed_uri="/nowhere/feed.tsv", allow_private_hosts=True, http=Http(requests_per_s=1))
    how = {"root": root, "source": source, "rules": Rules(), "made": MadeBy("a", "b", "c")}
    failures, process = Failures(root, "r1", "failed_fetch"), StageProcess()
    stage = Isolated("fetch", pickled(Fetcher, how), schema.FETCHED, Pool(row_timeout_s=3), failures, process)
    try:
        stage.build()
        began = time.monotonic()
        done = stage(pa.Table.from_pylist(pictures, schema.PLANNED))
    finally:
        process.end()
    assert time.monotonic() - began > 6
    assert "timed_out" not in done["reject"].to_pylist()
    assert len(misbehaving.asked) == 8, "each was fetched once, by one process"


def test_a_rate_holds_from_one_batch_to_the_next():
    begun = []
    hosts = Hosts(SharedLimits(Limits(1, 2, 30.0)), 5.0)

    async def batch() -> None:
        async with hosts.open(), hosts.permit("cdn.example"):
            begun.append(time.monotonic())

    async def night() -> None:
        for _ in range(3):
            await batch()

    asyncio.run(night())
    assert min(b - a for a, b in pairwise(begun)) >= 0.49
