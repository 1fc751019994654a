import json

import pyarrow as pa

from adbooster.prepare import rates
from adbooster.prepare.job import prepare
from tests.prepare.test_prepare import config, with_pictures

URIS = [
    "https://cdn.example/a.jpg",
    "HTTPS://CDN.example/b.jpg?x=1",
    "http://user:secret@cdn.example:8080/c.jpg",
    "pictures/d.jpg",
    "/e.jpg",
    "s3://bucket/f.jpg",
]


def test_pictures_are_counted_by_the_host_that_is_asked():
    uris = pa.chunked_array([URIS])
    assert rates.by_host(uris, "/shop/feed.tsv") == {"cdn.example": 2, "cdn.example:8080": 1}
    with_base = {"cdn.example": 2, "cdn.example:8080": 1, "shop.example": 2}
    assert rates.by_host(uris, "https://shop.example/feed.tsv") == with_base


def test_an_estimate_says_what_it_is_measured_on(root):
    pictures = {"slow.example": 100, "fast.example": 3000}
    unknown = rates.estimate(pictures, rates.newest(root))
    assert (unknown.requests, unknown.seconds, unknown.measured_on) == (3100, None, None)
    assert "no run here has measured" in rates.lines(unknown)[-1]

    root.write("runs/old/fetching.json", json.dumps({"at": "2026-11-01T00:00:00", "hosts": {}}).encode())
    root.write("runs/broken/fetching.json", b"[1]")
    rates.write(root, "last", {"fast.example": {"requests_per_s": 100.0}})
    partly = rates.estimate(pictures, rates.newest(root))
    assert (partly.seconds, partly.measured_on) == (None, "last")
    assert [row["seconds"] for row in partly.hosts] == [30.0, None]

    rates.write(root, "last", {"fast.example": {"requests_per_s": 100.0}, "slow.example": {"requests_per_s": 0.5}})
    whole = rates.estimate(pictures, rates.newest(root))
    assert whole.seconds == 200.0, "hosts are asked at the same time"
    assert rates.lines(whole)[-1] == "together about 200 s, at the rates of run last"


def test_an_unchanged_night_asks_for_changes_only_and_is_what_the_next_is_estimated_on(
    warm_ray, root, tiny_feed, misbehaving, capsys
):
    names = [f"teapot-{n}" for n in range(3)]
    misbehaving.files |= dict.fromkeys(names, (tiny_feed.parent / "teapot.png").read_bytes())
    with_pictures(tiny_feed, *(f"{misbehaving.url}/etag/{name}" for name in names))
    known = {"allow_private_hosts": True, "device": "cuda"}  # whoever needs a model fails
    prepare(config(root, tiny_feed, allow_private_hosts=True))
    second = prepare(config(root, tiny_feed, run_id="r2", **known))
    assert (second.unchanged, second.fetching) == (3, None)
    host = f"127.0.0.1:{misbehaving.port}"
    kept = json.loads(root.read("runs/r2/fetching.json"))["hosts"][host]
    assert (kept["requests"], kept["unchanged"]) == (3, 3)

    asked = len(misbehaving.asked)
    planned = prepare(config(root, tiny_feed, run_id="dry", dry_run=True, **known))
    assert planned.fetching is not None
    assert (planned.fetching["requests"], planned.fetching["measured_on"]) == (3, "r2")
    assert planned.fetching["hosts"][0]["host"] == host
    assert planned.fetching["seconds"] is not None
    assert "at the rates of run r2" in capsys.readouterr().out
    assert len(misbehaving.asked) == asked
