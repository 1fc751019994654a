"""What each channel is to be given: a creative for every slot of a product and cohort, its frame, and the file's name."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adbooster.channels import frames
from adbooster.channels.frames import Framed
from adbooster.channels.presets import Channel, Slot
from adbooster.contracts import schema
from adbooster.contracts.naming import PLACE, digest
from adbooster.contracts.recipe import placements
from adbooster.deliver.config import DeliverConfig
from adbooster.deliver.extending import Extensions, Models, known_files
from adbooster.deliver.sources import Withdrawn, read_withdrawn
from adbooster.experiments.holdout import control_id, held_out, original_id
from adbooster.experiments.variants import Draws, period
from adbooster.painting.brand_rules import read_brand_rules
from adbooster.painting.requests import Pairs
from adbooster.pictures.layout import Box
from adbooster.provenance.signing import Signing, read_chain
from adbooster.storage import buckets, tables
from adbooster.storage.objects import Root

FOLDER = "staged/renditions"
CHUNK_ROWS = 8192
PART_ROWS = 250_000  # pairs that are looked through at one time for those that are held out
_CODE = "1"  # raise it to make every rendition again
# Reasons that hold as long as creative, slot and settings do; what ended in another one is tried again.
LASTING = ("needs_extension", "too_small", "product_outside", "over_budget", "product_altered", "missing_mask")
_OF_CREATIVES = [
    "creative_id",
    *PLACE,
    "rank",
    "prompt",
    "negative_prompt",
    "text",
    "photo_sha256",
    "layout",
    "recipe_id",
]
_OF_CREATIVES += ["arm", "weights_revision", "uri", "sha256", "width", "height"]
_FILE = [name for name in schema.RENDITIONS.names if name not in ("rendition_id", "reject", "width_px", "height_px")]


class Sides(NamedTuple):
    """Pairs that are wanted (product_id, cohort_id, available): those that have creatives, and those that are held out."""

    painted: pa.Table
    held_out: pa.Table


@dataclass(frozen=True)
class Plan:
    """One run's work, planned on one version of tables/deliveries.

    base       that version; None if there is no table
    live       its rows (schema.DELIVERIES), those of other channels too
    wanted     what there should be of the run's channels (schema.DELIVERIES), without what only a file can tell
    kept       live rows (schema.DELIVERIES) that stay as they are: the mask for another file is gone with its photo
    requests   files to be made for `wanted`, each once (schema.RENDITION_REQUESTS)
    extensions  creatives to be extended first, each frame once (schema.EXTENSION_REQUESTS), with `models`; their slots are
               `to_extend`. `extensions_wanted` counts those that are there as well
    known      files that are delivered or staged already (schema.RENDITIONS)
    creatives  how many are live and may be shown; `left_out` of them by reason
    sides      the pairs that are compared; none where none is held out
    held_out   how many pairs of which `wanted` says that they keep the original picture
    day        that variants are drawn for
    withdrawn  what was withdrawn when it was planned; `withdrawn_from` are products and cohorts of which nothing else is live
    """

    base: int | None
    live: pa.Table
    wanted: pa.Table
    kept: pa.Table
    requests: pa.Table
    extensions: pa.Table
    models: Models | None
    extensions_wanted: int
    known: pa.Table
    creatives_version: int | None
    creatives: int
    left_out: dict[str, int]
    sides: Sides
    held_out: int
    day: date
    withdrawn: Withdrawn
    withdrawn_from: frozenset[str]

    @property
    def to_render(self) -> pa.Table:
        """Requests whose file is neither delivered nor staged."""
        return self.requests.filter(pc.invert(pc.is_in(self.requests["rendition_id"], self.known["rendition_id"])))


def plan(config: DeliverConfig, root: Root, channels: Iterable[Channel], before: Plan | None = None) -> Plan:
    """Read the tables and decide each slot of each product and cohort; no picture is opened.

    before  the plan after which this run has extended creatives: what failed is not asked for again
    """
    base, version = tables.version(root, "deliveries"), tables.version(root, "creatives")
    live = tables.read(root, "deliveries", version=base)
    day = before.day if before else config.variants.day or datetime.now().astimezone().date()
    allocations = tables.read(root, "allocations", ["level", "creative_id", "weight"])
    number, drawn_for = period(day, config.variants.redraw_days), _drawn_for(day, config.variants.redraw_days)
    draws = Draws(allocations, config.variants.seed, number, _drawn(live, drawn_for))
    creatives, withdrawn = tables.read(root, "creatives", version=version), read_withdrawn(root)
    words = _left_out(config, root, creatives, withdrawn)
    groups, left_out = _deliverable(root, creatives, words, draws)
    withdrawn_from = _withdrawn_from(creatives, words)
    maskless, signer = _maskless(live, groups), _signed_as(config.signing) if config.signing else None
    extensions = None
    if config.extend:
        models = (before and before.models) or Models(
            config, config.extend, root, creatives.select(["weights_revision"])
        )
        models.tried |= set(before.extensions["extension_id"].to_pylist()) if before else set()
        extensions = Extensions(models, live, config.run_id if before else "")
    wanted, kept, named = _Rows(schema.DELIVERIES), _Rows(schema.DELIVERIES), set()
    extensions_wanted: set[str] = set()
    requests, to_extend = _Rows(schema.RENDITION_REQUESTS), _Rows(schema.EXTENSION_REQUESTS)
    slots = [(channel, name, slot) for channel in channels for name, slot in channel.slots.items()]
    for rows in groups:  # so that the files of one creative follow each other
        for channel, name, slot in slots:
            row, request, asked = _slot(config, rows, channel, name, slot, extensions, signer)
            row["drawn_for"] = drawn_for if row["propensity"] < 1 else None
            extensions_wanted |= {row["extension_id"]} if row["extension_id"] else set()
            stays = maskless.get(row["delivery_id"])
            if stays and row["reason"] == "missing_mask" and _still_right(row, stays, slot):
                kept.add(stays | {name: row[name] for name in ("propensity", "arm", "drawn_for")})
                continue
            wanted.add(row)
            if request and request["rendition_id"] not in named:
                named.add(request["rendition_id"])
                requests.add(request)
            if asked and asked["extension_id"] not in named:
                named.add(asked["extension_id"])
                to_extend.add(asked)
    sides = before.sides if before else _sides(config, root, day)
    shown = {(rows[0]["product_id"], rows[0]["cohort_id"]) for rows in groups}
    originals = _originals(sides, shown, withdrawn)
    for word, pairs in originals.items():
        for pair in pairs:
            for channel, name, _ in slots:
                wanted.add(_original(word, *pair, channel, name, config.run_id))
    files = requests.table()
    return Plan(
        base=base,
        live=live,
        wanted=wanted.table(),
        kept=kept.table(),
        requests=files,
        extensions=to_extend.table(),
        models=extensions.models if extensions else None,
        extensions_wanted=len(extensions_wanted),
        known=known_renditions(root, live, files["rendition_id"]),
        creatives_version=version,
        creatives=sum(map(len, groups)) + sum(left_out.values()),
        left_out=left_out,
        sides=sides,
        held_out=len(originals["holdout"]),
        day=day,
        withdrawn=withdrawn,
        withdrawn_from=withdrawn_from,
    )


def _maskless(live: pa.Table, groups: list[list[dict]]) -> dict[str, dict]:
    """Live rows with a file, by delivery_id, of creatives whose mask is not known: their product has a new photo."""
    of = [c["creative_id"] for rows in groups for c in rows if c["mask_uri"] is None]
    mine = pc.and_(pc.is_in(live["creative_id"], pa.array(of, pa.string())), pc.is_null(live["reason"]))
    return {row["delivery_id"]: row for row in live.filter(mine).to_pylist()}


def _still_right(row: dict, live: dict, slot: Slot) -> bool:
    """Whether a live row shows the same of the same creative's file as a row that is wanted, as the slot takes it."""
    same = ("creative_id", "master_sha256", "frame", "width_px", "height_px")
    fits = live["size_bytes"] <= slot.max_bytes and live["format"] in slot.formats
    return fits and all(row[n] == live[n] for n in same)


class _Rows:
    """Rows that become Arrow's while they are collected: as Python's they take ten times the memory."""

    def __init__(self, wanted: pa.Schema):
        self.schema, self.rows, self.tables = wanted, [], [wanted.empty_table()]

    def add(self, row: dict) -> None:
        self.rows.append(row)
        if len(self.rows) >= CHUNK_ROWS:
            self.table()

    def table(self) -> pa.Table:
        if self.rows:
            self.tables.append(pa.Table.from_pylist(self.rows, self.schema))
            self.rows = []
        return pa.concat_tables(self.tables)


def _drawn_for(day: date, redraw_days: int) -> date | None:
    """The first day of the period that draws of a day hold for; None where they hold for the day alone."""
    return date.fromordinal(max(1, period(day, redraw_days) * redraw_days)) if redraw_days > 1 else None


def _drawn(live: pa.Table, drawn_for: date | None) -> dict[tuple, tuple[str, float]]:
    """By PLACE the creative that live rows show since it was drawn for a period, and its probability then."""
    if drawn_for is None:
        return {}
    rows = live.filter(pc.equal(live["drawn_for"], pa.scalar(drawn_for)))
    rows = rows.select([*PLACE, "creative_id", "propensity"]).to_pylist()
    return {tuple(r[name] for name in PLACE): (r["creative_id"], r["propensity"]) for r in rows}


def _sides(config: DeliverConfig, root: Root, day: date) -> Sides:
    """The pairs that are wanted, where some of them are held out."""
    none = pa.schema([("product_id", pa.string()), ("available", pa.bool_()), ("cohort_id", pa.string())]).empty_table()
    sides = [none], [none]
    if config.holdout.share:
        uri, key = config.brand_rules_uri, config.signing_key_env
        brand = (read_brand_rules(uri, key), config.brand_rules_day or day) if uri else None
        pairs = Pairs(root, config.targeting, config.rank_model, key, brand, config.holdout)
        for part in buckets.parts(pairs.most, PART_ROWS):
            found = pairs.of(part)
            for side, rows in zip(sides, (found.painted, found.held_out), strict=True):
                side.append(rows)
    return Sides(*map(pa.concat_tables, sides))


def _originals(sides: Sides, shown: set[tuple[str, str]], withdrawn: Withdrawn) -> dict[str, list[tuple[str, str]]]:
    """By reason the pairs that show the shop's own picture: held-out ones, and others that have no creative to show.

    A product that cannot be bought and of which no creative is shown is on neither side, nor is what was withdrawn.
    shown  pairs that have creatives
    """
    alive = {product_id for product_id, _ in shown}
    found = {}
    for word, rows in (("original", sides.painted), ("holdout", sides.held_out)):
        columns = (rows[name].to_pylist() for name in ("product_id", "cohort_id", "available"))
        found[word] = [
            (product_id, cohort_id)
            for product_id, cohort_id, available in zip(*columns, strict=True)
            if (product_id in alive or available is not False)
            and product_id not in withdrawn.product
            and cohort_id not in withdrawn.cohort
            and (word == "holdout" or (product_id, cohort_id) not in shown)
        ]
    return found


def _original(word: str, product_id: str, cohort_id: str, channel: Channel, slot: str, run_id: str) -> dict[str, Any]:
    """The row of a slot that shows a pair's original picture, which the channel has from the shop."""
    named = control_id if word == "holdout" else original_id
    return {
        "delivery_id": digest(product_id, cohort_id, channel.name, slot),
        "creative_id": named(product_id, cohort_id),
        "product_id": product_id,
        "cohort_id": cohort_id,
        "channel": channel.name,
        "slot": slot,
        "reason": word,
        "propensity": 1.0,
        "run_id": run_id,
    }


def _left_out(config: DeliverConfig, root: Root, creatives: pa.Table, withdrawn: Withdrawn) -> pa.ChunkedArray:
    """Of each live creative why it is not delivered; null: it may be."""
    samples = tables.read(root, "samples", ["product_id", "role", "photo_sha256", "retired_at"])
    mains = pc.and_(pc.is_valid(samples["photo_sha256"]), pc.equal(samples["role"], "main"))
    gone = samples["product_id"].filter(pc.and_(mains, pc.is_valid(samples["retired_at"])))
    marks = tables.read(root, "marks", ["creative_id", "mark"])

    def said(word: str) -> pa.ChunkedArray:
        return pc.is_in(creatives["creative_id"], marks["creative_id"].filter(pc.equal(marks["mark"], word)))

    nothing = pa.chunked_array([pa.array(np.zeros(creatives.num_rows, bool))])
    reasons = {
        "original": pc.or_(pc.fill_null(creatives["fallback"], False), pc.is_null(creatives["layout"])),
        "holdout": held_out(creatives["product_id"], creatives["cohort_id"], config.holdout),
        "retired": pc.is_in(creatives["product_id"], gone),
        "withdrawn": withdrawn.among(creatives),
        "replaced": said("retired"),
        "rejected": nothing if config.require == "any" else said("rejected"),
        "not_approved": pc.invert(said("approved")) if config.require == "approved" else nothing,
    }
    words = pa.chunked_array([pa.nulls(creatives.num_rows, pa.string())])
    for word, covers in reversed(reasons.items()):  # the first that holds
        words = pc.if_else(covers, word, words)
    return words


def _withdrawn_from(creatives: pa.Table, words: pa.ChunkedArray) -> frozenset[str]:
    """Products and cohorts of which all that would be delivered was withdrawn."""
    of = pc.fill_null(words, "")
    out = pc.equal(of, "withdrawn")
    others = pc.invert(pc.is_in(of, pa.array(["withdrawn", "original", "holdout"])))
    ids = [{v for n in ("product_id", "cohort_id") for v in creatives[n].filter(m).to_pylist()} for m in (out, others)]
    return frozenset(ids[0] - ids[1])


def _deliverable(
    root: Root, creatives: pa.Table, words: pa.ChunkedArray, draws: Draws
) -> tuple[list[list[dict]], dict[str, int]]:
    """Creatives that are delivered by product and cohort, one a placement, each with mask, photo, the probability with which it
    was drawn and `leader`, the best of its place's variants; why others are not.

    words  of each creative why it is left out, as `_left_out` gives them
    """
    allowed = pc.is_null(words)
    may = creatives.filter(allowed)
    candidates = may.filter(pa.array(draws.candidates(may)))
    left_out = Counter(words.filter(pa.array(draws.candidates(creatives))).drop_null().to_pylist())
    columns = ["product_id", "role", "photo_sha256", "photo_uri", "mask_uri"]
    samples = tables.read(root, "samples", columns).to_pylist()
    photos = {(r["product_id"], r["photo_sha256"]): r for r in samples if r["role"] == "main" and r["photo_sha256"]}
    variants: dict[tuple[str, ...], list[dict]] = defaultdict(list)
    for row in candidates.select(_OF_CREATIVES).to_pylist():
        variants[tuple(row[name] for name in PLACE)].append(row)
    groups: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for (product_id, cohort_id, _), rows in variants.items():
        row, propensity = draws.of(rows)
        photo = photos.get((product_id, row["photo_sha256"]), {})
        leader = min(rows, key=lambda r: (r["rank"] or 0, r["creative_id"]))
        more = {name: photo.get(name) for name in ("mask_uri", "photo_uri")}
        groups[product_id, cohort_id].append(row | more | {"propensity": propensity, "leader": leader})
        left_out["not_drawn"] += len(rows) - 1
    return [groups[key] for key in sorted(groups)], {word: n for word, n in left_out.items() if n}


class _Choice(NamedTuple):
    """What a slot shows, or why it is empty.

    asked    the request of an extension that is to be painted first
    refused  extensions that would have come first
    """

    shown: Framed
    creative: dict
    made_by: str | None
    reason: str | None
    extension: dict[str, Any] | None = None
    asked: dict[str, Any] | None = None
    refused: tuple[dict[str, Any], ...] = ()


def _slot(
    config: DeliverConfig,
    creatives: list[dict],
    channel: Channel,
    name: str,
    slot: Slot,
    extensions: Extensions | None,
    signer: dict[str, str] | None,
) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any] | None]:
    """The row of a slot for one product and cohort, the request for its file and that for an extension, where there is one."""
    chosen = _choice(creatives, slot, extensions)
    creative, reason = chosen.creative, chosen.reason
    request = _request(config, creative, channel, slot, chosen, signer)
    extension = chosen.extension or dict.fromkeys(schema.EXTENSIONS.names)
    place = {n: creative[n] for n in ("creative_id", "product_id", "cohort_id", "placement", "propensity", "arm")}
    row = place | {
        "delivery_id": digest(creative["product_id"], creative["cohort_id"], channel.name, name),
        "channel": channel.name,
        "slot": name,
        "rendition_id": request["rendition_id"],
        "master_sha256": creative["sha256"],
        "frame": vars(chosen.shown.frame) if chosen.shown.frame else None,
        "width_px": request["width_px"],
        "height_px": request["height_px"],
        "made_by": chosen.made_by,
        **{n: extension[n] for n in ("extension_id", "extended_uri", "extended_sha256", "seam")},
        "refused_extensions": [e["extension_id"] for e in chosen.refused] or None,
        "refused_why": [e["reject"] for e in chosen.refused] or None,
        "reason": reason,
        "digital_source_type": None if reason else channel.digital_source_type,
        "run_id": config.run_id,
    }
    return row, None if reason else request, chosen.asked


def _choice(creatives: list[dict], slot: Slot, extensions: Extensions | None) -> _Choice:
    """Of the creatives of a product and cohort, one a placement, the one that a slot shows, and how.

    Without extensions that of which the slot shows the largest part. With them a crop of the main one, that of the first
    placement; else its extension, so that all slots show one scene; else the same of the others. Which placement comes first
    follows from the best variant of each and not from what was drawn, so that the probability of the draw is that of the slot.
    """
    order = {name: i for i, name in enumerate(placements())}
    main = min(creatives, key=lambda c: (order.get(c["placement"], len(order)), c["leader"]["creative_id"]))
    first = main["leader"] if extensions else None
    ordered = sorted(creatives, key=lambda c: _preference(_framed(c["leader"], slot), c["leader"], first), reverse=True)
    framed = [(_framed(creative, slot), creative) for creative in ordered]
    refused: list[dict[str, Any]] = []
    for shown, creative in framed:
        if shown.reason is None or (shown.reason == "needs_extension" and extensions and not creative["mask_uri"]):
            how = "crop" if creative is main else "placement"
            reason = None if creative["mask_uri"] else "missing_mask"
            return _Choice(shown, creative, None if reason else how, reason, refused=tuple(refused))
        if shown.reason == "needs_extension" and extensions and shown.frame:
            extension = extensions.of(creative, shown.frame)
            if extension["extended_uri"]:
                return _Choice(shown, creative, "extension", None, extension, refused=tuple(refused))
            if extension["reject"] is None:
                asked = extensions.request(creative, shown.frame)
                return _Choice(shown, creative, None, "to_extend", extension, asked, tuple(refused))
            refused.append(extension)
    shown, creative = framed[0]
    return _Choice(shown, creative, None, refused[0]["reject"] if refused else shown.reason, refused=tuple(refused))


def _framed(creative: dict, slot: Slot) -> Framed:
    return frames.frame((creative["width"], creative["height"]), Box(**creative["layout"]), slot)


def _preference(shown: Framed, creative: dict, main: dict | None) -> tuple:
    """The larger the better; `main`: a creative whose crop or extension comes before those of others."""
    box = shown.frame
    share = box.width_px * box.height_px / (creative["width"] * creative["height"]) if box else 0.0
    order = (None, "needs_extension", "too_small", "product_outside")
    first = creative is main and shown.reason in (None, "needs_extension")
    # Of frames that reach beyond the creative the smallest is best: least has to be painted.
    return first, -order.index(shown.reason), share if shown.reason is None else -share, creative["creative_id"]


def _request(
    config: DeliverConfig, creative: dict, channel: Channel, slot: Slot, chosen: _Choice, signer: dict[str, str] | None
) -> dict[str, Any]:
    """The request for a file (schema.RENDITION_REQUESTS), named by all that decides its bytes."""
    shown, extension = chosen.shown, chosen.extension if chosen.made_by == "extension" else None
    frame, layout = vars(shown.frame) if shown.frame else None, creative["layout"]
    if extension and frame:  # the picture of the whole frame is there: it is cut from that
        layout = layout | {"x_px": layout["x_px"] - frame["x_px"], "y_px": layout["y_px"] - frame["y_px"]}
        frame = frame | {"x_px": 0, "y_px": 0}
    said = config.provenance
    own = int(config.encoding.max_kb * 1000) if config.encoding.max_kb is not None else slot.max_bytes
    system, prompt = said.ai_system or None, creative["prompt"] if said.prompt else None
    request = {
        "master_uri": creative["uri"],
        "master_sha256": creative["sha256"],
        **{n: extension[n] if extension else None for n in ("extension_id", "extended_uri", "extended_sha256")},
        "mask_uri": creative["mask_uri"],
        "photo_uri": creative["photo_uri"] if signer else None,
        "layout": layout,
        "frame": frame,
        "width_px": shown.size[0] if shown.size else None,
        "height_px": shown.size[1] if shown.size else None,
        "formats": list(slot.formats),
        "max_bytes": min(slot.max_bytes, own),
        "digital_source_type": channel.digital_source_type,
        "ai_system": system,
        "ai_version": creative["weights_revision"] if system else None,
        "prompt": prompt,
        "prompt_writer": (said.prompt_writer or None) if prompt else None,
        "reject": None,
    }
    settings = [group.model_dump(mode="json") for group in (config.encoding, config.fidelity)]
    unnamed = ("master_uri", "photo_uri", "extended_uri", "extended_sha256", "reject")
    unnamed += () if extension else ("extension_id",)  # names of crops are older than extensions
    names = {k: v for k, v in request.items() if k not in unnamed}
    if signer:
        settings.append({"photo_uri": creative["photo_uri"]} | signer)
    return request | {"rendition_id": digest("rendition", _CODE, json.dumps([names, *settings], sort_keys=True))}


def _signed_as(signing: Signing) -> dict[str, str]:
    """What of the signer is in a file's name.

    Without a timestamp a file is valid as long as its certificate, so that another one signs all files anew; with a timestamp
    a renewed certificate of the same subject and issuer signs new files only.
    """
    chain = read_chain(signing)
    if signing.tsa_url is None:
        return {"certificate": chain.fingerprint}
    return {"subject": chain.leaf.subject.rfc4514_string(), "issuer": chain.leaf.issuer.rfc4514_string()}


def staged_folder(run_id: str) -> str:
    """Where a run stages renditions; relative to the root."""
    return f"runs/{run_id}/{FOLDER}"


def known_renditions(root: Root, live: pa.Table, wanted: pa.ChunkedArray, run_id: str = "") -> pa.Table:
    """What is known of the files that requests name (schema.RENDITIONS), each once: delivered, or staged and not published.

    run_id  a run that has ended: what failed in it counts as well; of other runs a reason that may pass does not
    """
    delivered = schema.fill(live.rename_columns({"reason": "reject"}), schema.RENDITIONS)
    return known_files(root, delivered, "rendition_id", staged_folder, LASTING, run_id, wanted)


def with_files(wanted: pa.Table, known: pa.Table) -> pa.Table:
    """Wanted rows (schema.DELIVERIES) with the files of their renditions (schema.RENDITIONS), or the reason why there is none."""
    asked = pc.is_null(wanted["reason"])
    at = pc.if_else(asked, pc.index_in(wanted["rendition_id"], known["rendition_id"].combine_chunks()), None)
    files = known.take(at.combine_chunks())
    missing = pc.and_(asked, pc.is_null(at))
    reason = pc.if_else(asked, pc.if_else(missing, "failed_delivery", files["reject"]), wanted["reason"])
    filled = pc.is_null(reason)
    columns = {name: wanted[name] for name in schema.DELIVERIES.names} | {name: files[name] for name in _FILE}
    columns["reason"] = reason
    for name in ("made_by", "digital_source_type"):
        columns[name] = pc.if_else(filled, wanted[name], None)
    return schema.check(pa.table(columns), schema.DELIVERIES)
