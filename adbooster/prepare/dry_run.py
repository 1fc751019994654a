"""The plan of a night without the night: no photo is fetched, no actor started; of local photos size and times are compared."""

import os
from collections import Counter

import numpy as np
import pyarrow.compute as pc

from adbooster.contracts import schema
from adbooster.contracts.redaction import redact
from adbooster.engine.pools import fit
from adbooster.prepare import rates
from adbooster.prepare.changes import Changes
from adbooster.prepare.config import PrepareConfig, PrepareReport
from adbooster.prepare.fetch import file_etag
from adbooster.prepare.plan import Plan, Tally


def dry_run(plan: Plan) -> PrepareReport:
    """What `prepare` would do: printed, and as its report."""
    tally, hosts = Tally(), Counter[str]()
    for part in plan:
        _compare_local(plan.config.feed_uri, part.changes)
        new, changed, _ = part.changes.counts()
        tally.add(part, new, changed)
        tally.counts["updated"] += part.changes.revalued(part.live, schema.SAMPLES.empty_table()).num_rows
        wanted = part.changes.wanted
        tally.rejects.update(wanted["reject"].drop_null().to_pylist())
        asked = wanted["image_uri"].filter(pc.is_null(wanted["reject"]))
        hosts.update(rates.by_host(asked, plan.config.feed_uri))
    fetching = rates.estimate(hosts, rates.newest(plan.root) if hosts else None)
    report = tally.report(plan, plan.base, fit(plan.config.pools()))
    print(redact("\n".join(_lines(plan.config, report, fetching))), flush=True)
    shown = fetching._replace(hosts=fetching.hosts[: rates.SHOWN])
    return report.model_copy(update={"fetching": shown._asdict()})


def _compare_local(feed_uri: str, changes: Changes) -> None:
    """Mark unchanged pictures as changed whose local files are others than last time, or gone."""
    is_local = pc.invert(pc.match_substring(changes.wanted["image_uri"], "://")).to_numpy()
    rows = np.flatnonzero(is_local & (changes.state == 2))
    uris = changes.wanted["image_uri"].take(rows).to_pylist()
    etags = changes.known["etag"].take(changes.at.take(rows)).to_pylist()
    for row, uri, etag in zip(rows, uris, etags, strict=True):
        path = os.path.join(os.path.dirname(feed_uri), uri)
        if etag is not None and "://" not in path and _stat_etag(path) != etag:
            changes.state[row] = 1


def _stat_etag(path: str) -> str | None:
    try:
        return file_etag(os.stat(path))
    except (OSError, ValueError):
        return None


def _lines(config: PrepareConfig, report: PrepareReport, fetching: rates.Estimate) -> list[str]:
    lines = [f"feed {config.feed_uri}, read as {report.feed_format}"]
    for name in ("rows", "pictures", "new", "changed", "unchanged", "updated", "retired"):
        lines.append(f"{name:>10} {getattr(report, name):>10,}")
    lines += [f"  rejected {n:>10,} {word} (by the feed alone)" for word, n in report.rejects.items()]
    lines += [*report.notes, *rates.lines(fetching)]
    for name, pool in config.pools().items():
        lines.append(f"pool {name}: {pool.actors} actors x {pool.cpus:g} CPUs, {pool.gpus:g} GPUs, batch {pool.batch}")
    for row in report.pools:
        verdict = "fits" if row["asked"] <= row["there"] else "DOES NOT FIT"
        lines.append(f"{row['resource']}: asked {row['asked']:g}, in the cluster {row['there']:g}: {verdict}")
    return [*lines, "photos behind http(s) and object storage are compared when the job runs; no actor was started"]
