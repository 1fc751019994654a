"""How fast hosts gave photos in earlier runs, and how long tonight's requests would take at that."""

import json
import logging
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from adbooster.storage.objects import Root, each

log = logging.getLogger(__name__)
FILE = "fetching.json"
SHOWN = 20  # hosts, those with most pictures
_HTTP = r"^https?://(?:[^/?#]*@)?(?P<host>[^/?#@]+)"


class Measured(NamedTuple):
    """What one run measured of each host that it fetched from."""

    run_id: str
    hosts: dict[str, dict[str, Any]]
    """requests, unchanged, throttled, errors, requests_per_s, latency_s"""


def write(root: Root, run_id: str, hosts: dict[str, dict[str, Any]]) -> None:
    """Keep what a run measured as runs/<run_id>/fetching.json; nothing where it asked no host."""
    if hosts:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        root.write_json(f"runs/{run_id}/{FILE}", {"at": at, "hosts": hosts})


def newest(root: Root) -> Measured | None:
    """What the newest run measured that kept it; None if no run did."""
    runs = root.folders("runs")
    found = [
        (kept["at"], run, kept["hosts"])
        for run, kept in zip(runs, each(partial(_read, root), runs), strict=True)
        if kept
    ]
    if not found:
        return None
    _, run, hosts = max(found, key=lambda one: one[:2])
    return Measured(run, hosts)


def _read(root: Root, run_id: str) -> dict | None:
    try:
        kept = json.loads(root.read(f"runs/{run_id}/{FILE}"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        return None
    known = isinstance(kept, dict) and isinstance(kept.get("at"), str) and isinstance(kept.get("hosts"), dict)
    return kept if known else None


def by_host(image_uris: pa.ChunkedArray, feed_uri: str) -> dict[str, int]:
    """Pictures by the host that they are requested from; those in files and object storage are left out."""
    base = pc.struct_field(pc.extract_regex(pa.array([feed_uri.lower()]), _HTTP), "host")[0].as_py()
    lower = pc.ascii_lower(image_uris)
    hosts = pc.struct_field(pc.extract_regex(lower, _HTTP), "host")
    if base:  # relative links are the feed's own host's
        hosts = pc.if_else(pc.match_substring(lower, "://"), hosts, base)
    return {str(c["values"]): c["counts"] for c in pc.value_counts(hosts.drop_null()).to_pylist()}


class Estimate(NamedTuple):
    """What fetching would take; `seconds`: None where no run measured one of the hosts."""

    requests: int
    hosts: list[dict[str, Any]]
    """host, pictures, seconds, those with most pictures first"""
    seconds: float | None
    """of the slowest host; they are asked at the same time"""
    measured_on: str | None
    """run_id"""


def estimate(pictures: dict[str, int], measured: Measured | None) -> Estimate:
    """A request a picture, at the rate of the run in `measured`; redirects and tries again are in that rate."""
    known = measured.hosts if measured else {}
    rows = []
    for host, count in sorted(pictures.items(), key=lambda one: (-one[1], one[0])):
        rate = known.get(host, {}).get("requests_per_s")
        rows.append({"host": host, "pictures": count, "seconds": round(count / rate, 1) if rate else None})
    times = [row["seconds"] for row in rows]
    seconds = max(times) if times and None not in times else None
    return Estimate(sum(pictures.values()), rows, seconds, measured.run_id if measured and rows else None)


def lines(found: Estimate) -> list[str]:
    """The estimate, for people."""
    if not found.requests:
        return ["no picture is behind http(s)"]
    text = [f"{found.requests:,} requests to {len(found.hosts)} hosts, one a picture; known ones ask for changes only"]
    for row in found.hosts[:SHOWN]:
        time = "not measured yet" if row["seconds"] is None else f"about {row['seconds']:,.0f} s"
        text.append(f"{row['pictures']:>10,} {row['host']}: {time}")
    if len(found.hosts) > SHOWN:
        text.append(f"{len(found.hosts) - SHOWN} more hosts")
    if found.measured_on is None:
        return [*text, "how long they take is not known: no run here has measured its requests"]
    whole = "not known: some hosts were not asked then" if found.seconds is None else f"about {found.seconds:,.0f} s"
    return [*text, f"together {whole}, at the rates of run {found.measured_on}"]
