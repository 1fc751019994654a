"""The output of `adbooster audit` on a terminal."""

from collections.abc import Iterator
from typing import Any

from adbooster.contracts.text import clean
from adbooster.report.audit import Audit, Commit


def lines(found: Audit) -> Iterator[str]:
    """One line a part of the chain, then one a decision; texts of feeds and files without control characters."""
    yield f"creative {found.creative_id}: {'live' if found.live else 'not live'}"
    parts = {"product": found.product, "sample": found.sample, "cohort": found.cohort, "request": found.request}
    parts |= {"file": found.file, "weights": found.weights, "run": found.run}
    for name, facts in parts.items():
        yield f"{name:>9}  {_facts(facts)}"
    for name, commit in (("published", found.published), ("retired", found.retired)):
        if commit:
            yield f"{name:>9}  {_commit(commit)}"
    for d in found.decisions:
        who = f"by {clean(d.marked_by)}" if d.marked_by else "by nobody named"
        when = f" at {clean(d.marked_at)}" if d.marked_at else ""
        signed = "signed" if d.signed else "not signed"
        yield (
            f"{d.mark:>9}  {who}{when}, in {clean(d.file_uri or '')} (sha256 {d.file_sha256}, {signed}), "
            f"read {d.read_at:%Y-%m-%d %H:%M:%S} UTC by run {d.run_id}"
        )
    if not found.decisions:
        yield "nobody has approved or rejected it in a file that tables/decisions knows"


def _facts(facts: dict[str, Any] | None) -> str:
    if facts is None:
        return "not in the tables any more"
    return ", ".join(f"{n} {clean(str(v))}" for n, v in facts.items() if v not in (None, "", []))


def _commit(commit: Commit) -> str:
    by = f" by run {commit.run_id}" if commit.run_id else ""
    return f"version {commit.version} ({commit.operation}) at {commit.time:%Y-%m-%d %H:%M:%S} UTC{by}"
