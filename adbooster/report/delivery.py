"""What the page shows of deliveries, as one JSON document: a sample of creatives in all their slots, and counts of all.

It lies beside the page (`runs/<run_id>/delivery.json`), so that the page can be made again without opening a picture. Whatever
is delivered, it holds at most MOST creatives, MOST_SLOTS slots and EMBEDDED_BYTES of small pictures.
"""

import base64
import json
from collections import defaultdict
from collections.abc import Iterable, Set
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from adbooster.channels.presets import Channel
from adbooster.contracts import schema
from adbooster.contracts.text import interest
from adbooster.painting import candidates
from adbooster.report import gallery, published, withdrawn
from adbooster.report.published import Published
from adbooster.storage import tables
from adbooster.storage.objects import Root

MOST = 200  # creatives
MOST_SLOTS = 1200  # of them together
EMBEDDED_BYTES = 8 << 20  # of small pictures, as base64
SLOT_PX = 224
MASTER_PX = 240
LOOKED_BACK = 5  # commits whose run may have small pictures already
_WEBP = "data:image/webp;base64,"
_SHOWN = ("channel", "slot", "reason", "made_by", "frame", "uri", "width_px", "height_px", "size_bytes", "format")
_SHOWN += (
    "quality",
    "psnr_db",
    "delta_e_mean",
    "delta_e_p99",
    "digital_source_type",
    "signed_by",
    "seam",
    "refused_why",
)
_SHOWN += ("run_id",)
SHOWN = [name for name in _SHOWN if name in schema.DELIVERIES.names]
_SLOT = {"ratio", "min_px", "wanted_px", "formats", "max_bytes", "safe_area"}


def write(root: Root, run_id: str, numbers: dict, most: int = MOST) -> dict:
    """Keep runs/<run_id>/delivery.json and return what it holds.

    numbers  the report of jobs.deliver, with its setting `require`; most  creatives that are shown
    """
    data = collect(root, most) | {"numbers": numbers}
    root.write(_path(run_id), json.dumps(data).encode())
    return data


def read(root: Root, run_id: str) -> dict | None:
    """What `write` kept for the run; None for a run that delivered nothing."""
    return json.loads(root.read(_path(run_id))) if root.exists(_path(run_id)) else None


def _path(run_id: str) -> str:
    return f"runs/{run_id}/delivery.json"


def collect(root: Root, most: int = MOST) -> dict:
    """The document without the job's numbers: what the rows are for page/delivery.js, which reads it."""
    version = tables.version(root, "deliveries")
    all_rows = tables.read(root, "deliveries", ["creative_id", "channel", "reason", "made_by"], version)
    originals = pc.is_in(all_rows["reason"], pa.array(["holdout", "original"]))
    painted = all_rows.filter(pc.invert(originals))["creative_id"]
    ids = _chosen(root, painted, most)
    columns = ["creative_id", "product_id", "cohort_id", "placement", *SHOWN]
    shown = tables.read(root, "deliveries", columns, version, pc.field("creative_id").isin(ids))
    order = [(c, "ascending") for c in ("product_id", "cohort_id", "placement", "creative_id", "channel", "slot")]
    rows = shown.sort_by(order).to_pylist()[:MOST_SLOTS]
    products, cohorts = ({r[name] for r in rows} for name in ("product_id", "cohort_id"))
    counts = _counts(all_rows)
    of = {name: published.read(root, name, products, cohorts) for name in counts}
    pictures = _Small(root)
    withdrawals = withdrawn.collect(root, version)
    for file in withdrawals.get("files", ()):
        addresses = (of[name].url(file["uri"]) for name in file["channels"] if name in of)
        file["urls"] = sorted({address for address in addresses if address})
    return {
        "made_at": datetime.now(UTC).isoformat(timespec="minutes"),
        "version": version,
        "delivered": len(pc.unique(painted)),
        "channels": [_channel(name, counts[name], of[name]) for name in sorted(counts)],
        "slots": {f"{name}/{slot}": facts for name in of for slot, facts in _slots(of[name]).items()},
        "creatives": _creatives(root, rows, of, pictures),
        "withdrawn": withdrawals,
        "pictures": pictures.addresses,
    }


def _chosen(root: Root, creative_ids: pa.ChunkedArray, most: int) -> pa.Array:
    """Creatives that are shown: of the requests that the gallery shows, as many as MOST_SLOTS has room for."""
    ids = pc.unique(creative_ids)
    if not len(ids):
        return pa.array([], pa.string())
    live = tables.read(root, "creatives", ["creative_id", "request_id"])
    at = pc.index_in(ids, live["creative_id"].combine_chunks())
    names = pc.coalesce(live["request_id"].combine_chunks().take(at), ids)
    room = min(most, max(1, MOST_SLOTS * len(ids) // len(creative_ids)))
    last = candidates.shown_up_to(pa.chunked_array([pc.unique(names)]), room)
    return ids.filter(pc.less_equal(names, last))


def _counts(rows: pa.Table) -> dict[str, dict]:
    """By channel: slots wanted and filled, filled by how, empty by reason."""
    counts: dict[str, dict] = defaultdict(lambda: {"wanted": 0, "filled": 0, "made_by": {}, "empty": {}})
    for row in rows.group_by(["channel", "reason", "made_by"]).aggregate([([], "count_all")]).to_pylist():
        one, n = counts[row["channel"]], row["count_all"]
        one["wanted"] += n
        one["filled"] += 0 if row["reason"] else n
        kind, word = ("empty", row["reason"]) if row["reason"] else ("made_by", row["made_by"] or "unknown")
        one[kind][word] = one[kind].get(word, 0) + n
    return counts


def _channel(name: str, counts: dict, of: Published) -> dict[str, Any]:
    told = ("kind", "entries", "added", "changed", "removed", "run_id", "published_at", "deliveries_version")
    feed = {key: of.pointer[key] for key in told if key in of.pointer} | {"problem": of.problem}
    return {"name": name} | counts | {"feed": feed, "settings": of.settings is not None}


def _slots(of: Published) -> dict[str, dict]:
    channel: Channel | None = of.settings.channel if of.settings else None
    return {n: slot.model_dump(mode="json", include=_SLOT) for n, slot in channel.slots.items()} if channel else {}


class _Small:
    """Small pictures as addresses that the page can show, each once, as many as EMBEDDED_BYTES have room for."""

    def __init__(self, root: Root):
        self.root, self.addresses, self.room, self.made = root, [], EMBEDDED_BYTES, _made_before(root)

    def add(self, uris: Iterable[str | None], side_px: int) -> dict[str, int]:
        """The numbers of those that have a picture, by uri."""
        wanted = list(dict.fromkeys(uri for uri in uris if uri))
        missing = [uri for uri in wanted if uri not in self.made]
        for uri, webp in zip(missing, gallery.thumbnails(self.root, missing, side_px), strict=True):
            self.made[uri] = _WEBP + base64.b64encode(webp).decode() if webp else ""
        numbers = {}
        for uri in wanted:
            address = self.made[uri]
            if address and len(address) <= self.room:
                numbers[uri] = len(self.addresses)
                self.addresses.append(address)
                self.room -= len(address)
        return numbers


def _made_before(root: Root) -> dict[str, str]:
    """Small pictures by uri of the last run that changed what is delivered: mostly it shows the same."""
    for commit in tables.history(root, "deliveries")[:LOOKED_BACK]:
        try:
            data = read(root, commit.run_id or "") or {}
            shown = [part for c in data.get("creatives", []) for part in (c, *c["slots"])]
            found = {part["uri"]: data["pictures"][part["thumb"]] for part in shown if part.get("thumb") is not None}
        except (*published.UNREADABLE, IndexError):
            continue
        if found and all(address.startswith(_WEBP) for address in found.values()):
            return found
    return {}


def _creatives(root: Root, rows: list[dict], of: dict[str, Published], pictures: _Small) -> list[dict]:
    """Creatives with all their slots; those of the rows are one after another."""
    slots: dict[str, list[dict]] = defaultdict(list)
    for row in rows:
        slots[row["creative_id"]].append(row)
    where = pc.field("creative_id").isin(pa.array(list(slots), pa.string()))
    live = tables.read(root, "creatives", ["creative_id", "uri", "width", "height", "layout"], where=where).to_pylist()
    masters = {m["creative_id"]: m for m in live}
    marks = tables.read(root, "marks", ["creative_id", "mark"], where=where).to_pylist()
    said = {m["creative_id"]: m["mark"] for m in marks if m["mark"] in ("approved", "rejected")}
    titles, texts = _titles(root, rows), _texts(root, rows)
    large = pictures.add([m["uri"] for m in masters.values()], MASTER_PX)
    small = pictures.add([row["uri"] for row in rows], SLOT_PX)
    found = []
    for name, mine in slots.items():
        product, cohort, master = mine[0]["product_id"], mine[0]["cohort_id"], masters.get(name, {})
        feed = {c: e for c in sorted({r["channel"] for r in mine}) if (e := of[c].entry(product, cohort)) is not None}
        uris = {row["uri"] for row in mine if row["uri"]}
        in_feed = {c: published.named(e, uris) for c, e in feed.items()}
        found.append(
            {"creative_id": name, "placement": mine[0]["placement"], "mark": said.get(name)}
            | {"product": {"id": product, "title": titles.get(product, "")}}
            | {"cohort": {"id": cohort, "text": texts.get(cohort, "")}}
            | {key: master.get(key) for key in ("uri", "width", "height", "layout")}
            | {"thumb": large.get(master.get("uri", ""))}
            | {"slots": [_slot(row, of[row["channel"]], small, in_feed) for row in mine]}
            | {"feed": {channel: published.facts(entry, cohort, uris) for channel, entry in feed.items()}}
        )
    return found


def _slot(row: dict, of: Published, small: dict[str, int], in_feed: dict[str, Set[str]]) -> dict[str, Any]:
    entry = {name: round(row[name], 3) if isinstance(row[name], float) else row[name] for name in SHOWN}
    if row["uri"] is None:
        return entry
    address = {"thumb": small.get(row["uri"]), "url": of.url(row["uri"])}
    return entry | address | {"in_feed": None if of.problem else row["uri"] in in_feed.get(row["channel"], ())}


def _titles(root: Root, rows: list[dict]) -> dict[str, str]:
    wanted = pa.array(sorted({r["product_id"] for r in rows}), pa.string())
    where = pc.field("product_id").isin(wanted) & (pc.field("role") == "main")
    samples = tables.read(root, "samples", ["product_id", "role", "title"], where=where).to_pylist()
    return {s["product_id"]: s["title"] or "" for s in samples}


def _texts(root: Root, rows: list[dict]) -> dict[str, str]:
    where = pc.field("cohort_id").isin(pa.array(sorted({r["cohort_id"] for r in rows}), pa.string()))
    known = tables.read(root, "cohorts", ["cohort_id", "query", "context"], where=where).to_pylist()
    return {c["cohort_id"]: interest(c["query"] or "", c["context"] or "") for c in known}
