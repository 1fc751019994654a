"""The output of `adbooster status` on a terminal."""

from datetime import UTC, datetime, timedelta

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from adbooster.night.state import Night, Status, Step

REPORTED_FIELDS = {  # fields of a step's report that the table shows
    "prepare": ("pictures", "new", "changed", "retired"),
    "cohorts": ("cohorts", "new_or_changed", "removed"),
    "finetune": ("weights_revision", "reused", "samples"),
    "canary": ("passed", "reasons"),
    "learn": ("outcomes", "lift", "retired"),
    "generate": ("requests", "painted", "published", "left", "coverage"),
    "deliver": ("rendered", "changed", "removed"),
    "evaluate": ("creatives", "looked"),
    "maintain": ("compacted", "errors"),
}


def show(status: Status, console: Console) -> None:
    """The lock, what is live, a table of each night's steps, and the root's catalogs."""
    for line in _lines(status):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for night in status.nights:
        console.print(_table(night))
    if status.progress:
        console.print(f"{status.progress['line']} (at {status.progress['at']})", markup=False, highlight=False)
    if status.catalogs:
        console.print(_catalogs(status))


def _lines(status: Status) -> list[str]:
    lock, live = status.lock, "nothing is live"
    if status.live_version is not None:
        live = f"live: tables/creatives version {status.live_version} since {_time(status.live_since)} UTC"
        live += f", run {status.live_run_id}" if status.live_run_id else ""
    if lock is None or lock.released:
        held = "no night holds the lock"
    else:
        what = "its process is gone" if lock.gone else f"expires {_time(lock.expires_at)}"
        held = f"night {lock.run_id} holds the lock since {_time(lock.since)} UTC: process {lock.pid} on {lock.host}; {what}"
    if status.catalogs and not status.nights and status.live_version is None:
        return [status.root_uri]
    return [status.root_uri, live, held] + ([] if status.nights else ["no night was run here"])


def _catalogs(status: Status) -> Table:
    table = Table("catalog", "live version", "since (UTC)", "newest night", "state")
    for c in status.catalogs:
        version = "nothing" if c.live_version is None else str(c.live_version)
        table.add_row(c.catalog, version, _time(c.live_since), escape(c.night or ""), c.state or "")
    return table


def _table(night: Night) -> Table:
    title = f"night {night.run_id}: {night.state}, begun {_time(night.started_at)} UTC"
    title += f", deadline {night.deadline:%Y-%m-%d %H:%M %z}" if night.deadline else ""
    title += f", {night.gpu_hours:g} GPU-hours" if night.gpu_hours is not None else ""
    title += f", resumed {night.resumed} times" if night.resumed else ""
    table = Table("step", "state", "begun (UTC)", "took", "what", title=escape(title), title_justify="left")
    for step in night.steps:
        table.add_row(step.step, step.state, _time(step.started_at), _took(step), escape(_what(step)))
    return table


def _what(step: Step) -> str:
    if step.error or step.why:
        return step.error or step.why or ""
    report = step.report or {}
    names = REPORTED_FIELDS.get(step.step, ())
    return ", ".join(f"{n.replace('_', ' ')} {report[n]}" for n in names if report.get(n) not in (None, [], ""))


def _took(step: Step) -> str:
    if step.started_at is None:
        return ""
    seconds = ((step.ended_at or datetime.now(UTC)) - step.started_at).total_seconds()
    return str(timedelta(seconds=round(seconds)))


def _time(at: datetime | None) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}" if at else ""
