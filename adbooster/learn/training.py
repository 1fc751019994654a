"""Outcomes, marks and filled sheets to heads: rewards/<revision>/ below the root, written once for the same examples."""

import logging
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.contracts.naming import digest
from adbooster.experiments.config import Allocation
from adbooster.experiments.outcomes import of_creatives
from adbooster.experiments.robots import human_clicks
from adbooster.measure import vectors
from adbooster.reward import sheets
from adbooster.reward.config import Heads, HeadsReport, Trained, UsabilityTraining
from adbooster.reward.features import REWARD_FIGURES, USABILITY_FIGURES, columns, figures_of
from adbooster.reward.heads import CARD, Card, Head
from adbooster.reward.training import Examples, train_reward
from adbooster.reward.usability import Verdicts, train_usability
from adbooster.storage import tables
from adbooster.storage.inputs import read_input, read_inputs
from adbooster.storage.model_store import content_hash, local_copy
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)
FOLDER = "rewards"
_METHOD = "3"  # raise it to train every head anew
MAX_SHEET_BYTES = 16 << 20


class Shown(NamedTuple):
    """What a creative brought over all days; `propensity` is that by which 1 / propensity is right of them together."""

    impressions: float
    clicks: float
    propensity: float
    family: str


class Judged(NamedTuple):
    """What people said of a creative: share of verdicts that rejected it, and as how many marks they count."""

    unusable: float
    weight: float


def train(
    config: Heads,
    root: Root,
    run_id: str,
    signing_key_env: str = "",
    max_ctr_factor: float = Allocation().max_ctr_factor,
) -> HeadsReport:
    """Train the heads that are switched on; what there is too little of for one is said in the notes.

    max_ctr_factor  as Allocation.max_ctr_factor
    raises          ConfigError for sheets or a key that cannot be read
    """
    if not (config.reward.on or config.usability.on):
        return HeadsReport()
    model = content_hash(local_copy(config.rank_model))
    shown = _shown(root, max_ctr_factor) if config.reward.on else {}
    marks = _marks(root)
    judged = _judged(config.usability, marks, signing_key_env) if config.usability.on else {}
    liked = _chosen({*shown, *marks}, config.reward.most) if config.reward.on else set()
    usable = _chosen(set(judged), config.usability.most) if config.usability.on else set()
    some = sorted(liked | usable)
    known = _embedded(config, root, run_id, model, some)
    rows = known.filter(pc.is_valid(known["creative_id"])).sort_by("creative_id").to_pylist()
    texts = {row["text"]: row["vector"] for row in known.filter(pc.is_null(known["creative_id"])).to_pylist()}
    report = HeadsReport(creatives=len(rows), unknown=len(some) - len(rows))
    if config.reward.on:
        mine = [row for row in rows if row["creative_id"] in liked]
        examples, facts = _reward_examples(mine, texts, shown, marks, _families(root))
        name = digest("reward", _METHOD, config.reward.model_dump_json(), model, *facts)
        report = _with(report, "reward", root, name, lambda: train_reward(examples, config.reward, model, name))
    if config.usability.on:
        verdicts, facts = _verdicts([row for row in rows if row["creative_id"] in usable], judged)
        name = digest("usability", _METHOD, config.usability.model_dump_json(), model, *facts)
        report = _with(
            report, "usability", root, name, lambda: train_usability(verdicts, config.usability, model, name)
        )
    return report


def _with(
    report: HeadsReport, kind: str, root: Root, made_of: str, make: Callable[[], tuple[Head, Any]]
) -> HeadsReport:
    """The report with a head that the same examples have trained before, or that is trained and written now."""
    try:
        trained = _kept(root, made_of) or _written(root, make()[0])
    except ConfigError as e:  # too few examples: that is how things are, and no fault of the settings
        return report.model_copy(update={"notes": [*report.notes, f"no {kind} head was trained: {e}"]})
    return report.model_copy(update={kind: trained})


def _kept(root: Root, made_of: str) -> Trained | None:
    for revision in root.folders(FOLDER):
        try:
            card = Card.model_validate_json(root.read(f"{FOLDER}/{revision}/{CARD}"))
        except (FileNotFoundError, ValidationError):  # cut off before its card was written, or not of ours
            continue
        if card.made_of == made_of:
            return _trained(root, revision, card, new=False)
    return None


def _written(root: Root, head: Head) -> Trained:
    with tempfile.TemporaryDirectory(prefix="adbooster-head-") as scratch:
        head.save(Path(scratch))
        revision = content_hash(Path(scratch))
    for name, content in head.files().items():  # the card last: a head without one is none
        root.write(f"{FOLDER}/{revision}/{name}", content)
    log.info("a %s head was written to %s", head.card.kind, root.address(f"{FOLDER}/{revision}"))
    return _trained(root, revision, head.card, new=True)


def _trained(root: Root, revision: str, card: Card, new: bool) -> Trained:
    figures = card.reward or card.usability
    if figures is None:
        raise ConfigError(f"the head {revision} has no figures")
    return Trained(uri=root.address(f"{FOLDER}/{revision}"), revision=revision, new=new, figures=figures)


def _chosen(names: set[str], most: int) -> set[str]:
    """`most` of them, the same ones while they are there."""
    return set(sorted(names, key=lambda name: digest("head", name))[:most])


def _shown(root: Root, max_ctr_factor: float) -> dict[str, Shown]:
    """By creative what it brought, without the clicks of robots; original pictures are left out."""
    names = [
        "creative_id",
        "product_id",
        "cohort_id",
        "control",
        "margin",
        "impressions",
        "clicks",
        "propensity",
        "family",
    ]
    rows = of_creatives(tables.read(root, "outcomes", names))
    rows = rows.filter(pc.greater(rows["impressions"], 0))
    clicks = pa.array(human_clicks(rows, max_ctr_factor))
    rows = rows.set_column(rows.schema.get_field_index("clicks"), "clicks", clicks)
    known = pc.greater(rows["propensity"], 0)
    seen = pc.if_else(pc.fill_null(known, False), rows["impressions"], 0)
    weighed = pc.fill_null(pc.divide(pc.cast(seen, pa.float64()), pc.if_else(known, rows["propensity"], None)), 0.0)
    rows = rows.append_column("seen", seen).append_column("weighed", weighed)
    # In one order and one thread, so that the same outcomes give the same sums to the last digit.
    rows = rows.sort_by([("creative_id", "ascending"), ("impressions", "ascending"), ("propensity", "ascending")])
    sums = rows.group_by("creative_id", use_threads=False).aggregate(
        [(name, "sum") for name in ("impressions", "clicks", "seen", "weighed")] + [("family", "max")]
    )
    return {
        r["creative_id"]: Shown(
            float(r["impressions_sum"]),
            float(r["clicks_sum"]),
            round(r["seen_sum"] / r["weighed_sum"], 6) if r["weighed_sum"] else float("nan"),
            r["family_max"] or "",
        )
        for r in sums.to_pylist()
    }


def _marks(root: Root) -> dict[str, bool]:
    """By creative whether a person approved it, or rejected it."""
    rows = tables.read(root, "marks", ["creative_id", "mark"]).to_pylist()
    return {r["creative_id"]: r["mark"] == "approved" for r in rows if r["mark"] in ("approved", "rejected")}


def _judged(settings: UsabilityTraining, marks: dict[str, bool], signing_key_env: str) -> dict[str, Judged]:
    """By creative what people said of it: marks, and what most preferred on filled sheets where there is no mark."""
    found = {}
    if settings.sheets_uri:
        files = read_inputs(settings.sheets_uri, "filled sheet", ".csv", MAX_SHEET_BYTES, signing_key_env)
        key = read_input(settings.key_uri, "key of the sheet", MAX_SHEET_BYTES, signing_key_env)
        texts = {file.uri: file.content.decode("utf-8", "replace") for file in files}
        for name, (won, lost) in sheets.preferred(texts, key.content.decode("utf-8", "replace")).items():
            if won != lost:
                found[name] = Judged(float(lost > won), settings.sheet_weight)
    return found | {name: Judged(float(not approved), 1.0) for name, approved in marks.items()}


def _families(root: Root) -> dict[str, str]:
    rows = tables.read(root, "cohorts", ["cohort_id", "family"]).to_pylist()
    return {row["cohort_id"]: row["family"] or "" for row in rows}


def _embedded(config: Heads, root: Root, run_id: str, model: str, wanted: list[str]) -> pa.Table:
    """The vectors (schema.VECTORS) of these creatives and of their texts; originals are left out."""
    names = pa.array(wanted, pa.string())
    there = pc.field("creative_id").isin(names) & (pc.field("model") == model)
    stored = tables.read(root, "vectors", where=there)
    left = pc.filter(names, pc.invert(pc.is_in(names, stored["creative_id"].combine_chunks())))
    facts = _facts(root, left)
    photos = _photos(root)
    asked = []
    for row in facts.to_pylist():
        photo = photos.get((row["product_id"], row["photo_sha256"]), {})
        name = vectors.vector_id(row["creative_id"], row["sha256"], model)
        asked.append({n: row.get(n) for n in vectors.FACTS} | photo | {"vector_id": name, "model": model})
    texts = sorted({row["text"] for row in asked} | set(stored["text"].to_pylist()))
    asked += [{"vector_id": vectors.text_id(text, model), "text": text, "model": model} for text in texts]
    rows = schema.fill(pa.Table.from_pylist(asked, schema.TO_EMBED), schema.TO_EMBED)
    made = vectors.embed(root, run_id, config.rank_model, config.device, config.threads, rows, config.embed)
    return pa.concat_tables([stored, made])


def _facts(root: Root, wanted: pa.Array) -> pa.Table:
    """Painted creatives (columns of schema.CREATIVES) of these ids: live ones, and others from earlier versions of the table."""
    names = [*vectors.FACTS, "photo_sha256", "sha256", "fallback"]
    rows = tables.ever(root, "creatives", wanted, sorted(names, key=lambda name: name != "creative_id"))
    whole = pc.and_(pc.and_(pc.is_valid(rows["layout"]), pc.is_valid(rows["clip_score"])), pc.is_valid(rows["text"]))
    return rows.filter(pc.and_(whole, pc.invert(pc.fill_null(rows["fallback"], True))))


def _photos(root: Root) -> dict[tuple[str, str], dict[str, str]]:
    """Photo and mask of each product's main picture, by product and the photo's hash."""
    names = ["product_id", "photo_sha256", "photo_uri", "mask_uri", "role"]
    rows = tables.read(root, "samples", names, where=pc.field("role") == "main").to_pylist()
    return {(r["product_id"], r["photo_sha256"]): {n: r[n] for n in ("photo_uri", "mask_uri")} for r in rows}


def _reward_examples(
    rows: list[dict], texts: dict, shown: dict[str, Shown], marks: dict[str, bool], families: dict[str, str]
) -> tuple[Examples, list[str]]:
    """A row for what a creative brought and one for what people said of it, and what these say, as texts."""
    rows = [row for row in rows if row["text"] in texts]
    clicked = [(row, shown[row["creative_id"]], np.nan) for row in rows if row["creative_id"] in shown]
    nothing = Shown(0.0, 0.0, float("nan"), "")
    marked = [(row, nothing, float(marks[row["creative_id"]])) for row in rows if row["creative_id"] in marks]
    both = [*clicked, *marked]
    outcomes = [outcome for _, outcome, _ in both]
    rows = [row for row, _, _ in both]
    examples = Examples(
        image_vectors=_stacked(row["vector"] for row in rows),
        text_vectors=_stacked(texts[row["text"]] for row in rows),
        figures=columns(map(_figures, rows), REWARD_FIGURES),
        impressions=np.array([o.impressions for o in outcomes]),
        clicks=np.array([o.clicks for o in outcomes]),
        propensity=np.array([o.propensity for o in outcomes]),
        groups=np.array([row["product_id"] for row in rows], str),
        families=np.array([o.family or families.get(row["cohort_id"], "") for row, o, _ in both], str),
        clip_scores=np.array([row["clip_score"] for row in rows], float),
        cohorts=np.array([row["cohort_id"] for row in rows], str),
        approved=np.array([mark for _, _, mark in both], float),
        places=np.array([digest(row["product_id"], row["cohort_id"], row["placement"]) for row in rows], str),
        variants=np.array([row["creative_id"] for row in rows], str),
    )
    return examples, [f"{row['vector_id']} {tuple(outcome)} {mark}" for row, outcome, mark in both]


def _verdicts(rows: list[dict], judged: dict[str, Judged]) -> tuple[Verdicts, list[str]]:
    rows = [row for row in rows if row["creative_id"] in judged and row["scene_vector"] is not None]
    said = [judged[row["creative_id"]] for row in rows]
    verdicts = Verdicts(
        image_vectors=_stacked(row["vector"] for row in rows),
        scene_vectors=_stacked(row["scene_vector"] for row in rows),
        figures=columns(map(_figures, rows), USABILITY_FIGURES),
        unusable=np.array([j.unusable for j in said]),
        weights=np.array([j.weight for j in said]),
        groups=np.array([row["product_id"] for row in rows], str),
        cohorts=np.array([row["cohort_id"] for row in rows], str),
        creative_ids=np.array([row["creative_id"] for row in rows], str),
    )
    return verdicts, [f"{row['vector_id']} {tuple(verdict)}" for row, verdict in zip(rows, said, strict=True)]


def _figures(row: dict) -> dict[str, float | None]:
    return figures_of(row["layout"], (row["width"], row["height"]), row["light"] or {}, row["gates"])


def _stacked(found: Iterable) -> np.ndarray:
    known = [np.asarray(v, np.float64) for v in found]
    return np.stack(known) if known else np.zeros((0, 1))
