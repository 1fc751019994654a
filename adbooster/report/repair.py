"""What a check of a root found wrong, and the repair of what a night can make again."""

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from adbooster.contracts import schema
from adbooster.contracts.naming import PLACE, row_keys
from adbooster.storage import tables
from adbooster.storage.buckets import Change, Snapshot
from adbooster.storage.objects import Root

LISTED = 100  # findings in the report; all are counted
LISTS = "fsck"  # requests that a repair leaves to be painted again
PROBLEMS = {
    "table_unreadable": "the table's log cannot be read, or is gone",
    "data_file": "a data file of the live version is gone, cut or cannot be read",
    "old_data_file": "a data file of an earlier version cannot be read",
    "lost": "a live row names an object that is not stored",
    "wrong_size": "an object's size is not the one that its row says",
    "wrong_content": "an object's content does not have the hash that is its name",
    "product_altered": "a lossless creative whose stored proof is not 0",
    "no_photo_or_mask": "a live creative whose photo, of a live sample, or whose product's mask, is not stored",
}


class Finding(BaseModel):
    """One thing that is wrong."""

    problem: str
    """a word of PROBLEMS"""
    table: str | None = None
    row: str | None = None
    """the id of the row"""
    file: str | None = None
    """relative to the root"""
    says: str | None = None


class Checked(BaseModel):
    """What was looked at, what is wrong, and what was repaired."""

    sample: float
    """share of the objects whose content was read"""
    rows: dict[str, int] = {}
    """live rows by table, of those that can be read"""
    objects: int = 0
    hashed: int = 0
    unnamed: int | None = 0
    """objects, older than a day, that no version names: a vacuum removes them; null: a table cannot be read"""
    young: int | None = 0
    """objects of the last day that no version names yet"""
    problems: dict[str, int] = {}
    findings: list[Finding] = []
    """the first ones"""
    repaired: dict[str, int] = {}
    """rows by table that were dropped or marked, and damaged objects that were removed"""
    repaint: int = 0
    """requests that the next night paints again"""
    repaint_in: str | None = None
    """where their ids are, one a line, relative to the root"""
    left: list[str] = []
    """what cannot be repaired here, and what to do"""
    unchecked: list[str] = []
    """catalogs of the root, whose tables were not looked at"""
    seconds: float = 0

    @property
    def clean(self) -> bool:
        return not self.problems


class Found:
    """Findings as they come: counted, the first ones kept, with what a repair needs to know of all of them."""

    def __init__(self, report: Checked):
        self.report, self.problems = report, Counter()
        self.requests: set[str] = set()
        self.rows: dict[str, set[str]] = {"deliveries": set()}
        self.samples: dict[str, set[str]] = {}  # by sample: which of its columns name what is lost
        self.damaged: list[str] = []
        # Damaged files that live rows of another catalog name, or may name, and which catalog; empty: the root itself.
        self.elsewhere: dict[str, str] = {}

    def add(self, problem: str, **facts: str | None) -> None:
        self.problems[problem] += 1
        if len(self.report.findings) < LISTED:
            self.report.findings.append(Finding(problem=problem, **facts))


def mend(root: Root, versions: dict[str, int | None], found: Found, run_id: str) -> None:
    """Damaged objects go, so that they are stored again; rows that need them go or are marked, each table in one commit."""
    report, metadata = found.report, {"run_id": run_id}
    ours = [file for file in found.damaged if file not in found.elsewhere]
    stuck = set(root.remove(ours))
    if removed := len(ours) - len(stuck):
        report.repaired["objects"] = removed
    report.left += [
        f"{file} is damaged and the storage does not allow it to be removed" for file in sorted(stuck)[:LISTED]
    ]
    report.left += [
        f"{file} is damaged and stays, as live rows of {called(name)} name it too, or cannot be read; before the next night "
        f"run adbooster fsck --repair {f'--catalog {name}' if name else 'without --catalog'}, with the same --sample"
        for file, name in sorted(found.elsewhere.items())[:LISTED]
    ]
    if found.requests:
        _drop_requests(root, versions["creatives"], found, metadata)
        report.repaint, report.repaint_in = len(found.requests), f"{LISTS}/{run_id}.txt"
        root.write(report.repaint_in, "".join(f"{name}\n" for name in sorted(found.requests)).encode())
    if found.samples:
        _mark_samples(root, versions["samples"], found, metadata)
    if gone := found.rows["deliveries"]:
        none = schema.DELIVERIES.empty_table()
        tables.merge(root, "deliveries", none, "delivery_id", versions["deliveries"], metadata, sorted(gone))
        report.repaired["deliveries"] = len(gone)


def called(catalog: str) -> str:
    """How a catalog is called; of an empty name, the root itself."""
    return f"catalog {catalog}" if catalog else "the root"


def _drop_requests(root: Root, base: int | None, found: Found, metadata: dict[str, str]) -> None:
    """All of a request's place goes, as a request of which any is live is not painted, and ranks have no gaps."""
    wanted = pa.array(sorted(found.requests), pa.string())
    snapshot = Snapshot(root, "creatives", base)
    with Change(root, "creatives", base, "creative_id", snapshot.parts) as change:
        for part in snapshot.parts:
            rows = snapshot.read(part, ["creative_id", "request_id", *PLACE])
            there, asked = row_keys(rows, PLACE), pc.is_in(rows["request_id"].combine_chunks(), wanted)
            gone = pc.or_(asked, pc.is_in(there, there.filter(asked).drop_null()))
            gone = rows["creative_id"].combine_chunks().filter(gone)
            change.replace(part, schema.CREATIVES.empty_table(), gone)
        change.commit(metadata)
        found.report.repaired["creatives"] = change.rows_removed


def _mark_samples(root: Root, base: int | None, found: Found, metadata: dict[str, str]) -> None:
    """A sample whose photo or mask is lost is rejected until the next prepare, which finds it changed and makes it again.

    One that has left the feed goes: nothing can make it again, and nothing needs it.
    """
    wanted = pa.array(sorted(found.samples), pa.string())
    snapshot = Snapshot(root, "samples", base)
    marked = 0
    with Change(root, "samples", base, "sample_id", snapshot.parts) as change:
        for part in snapshot.parts:
            rows = snapshot.read(part)
            rows = rows.filter(pc.is_in(rows["sample_id"], wanted)).to_pylist()
            retired = [row["sample_id"] for row in rows if row["retired_at"]]
            again = [row | _unmade(found.samples[row["sample_id"]]) for row in rows if not row["retired_at"]]
            change.replace(part, pa.Table.from_pylist(again, schema.SAMPLES), pa.array(retired, pa.string()))
            marked += len(rows)
        change.commit(metadata)
    found.report.repaired["samples"] = marked


def _unmade(lost: set[str]) -> dict[str, str | None]:
    """What to change in a row so that prepare fetches its photo, or makes its mask, as if it was new."""
    fields: dict[str, str | None] = {"fingerprint": "", "mask_uri": None, "mask_by": None}
    if "photo_uri" in lost:
        photo = ("photo_uri", "photo_sha256", "etag", "last_modified")
        return fields | dict.fromkeys(photo) | {"reject": "failed_fetch"}
    return fields | {"reject": "failed_mask"}
