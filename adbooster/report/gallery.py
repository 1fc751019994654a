"""What the page shows of a run, as one JSON document: facts of a sample of what is live, small pictures, and counts of all.

It lies beside the page (`runs/<run_id>/gallery.json`), so that the page can be made again with the figures of
`jobs.evaluate` without opening a picture. Small pictures are part of the document as long as there are few, so that
the page is one file that can be mailed or opened by a presigned address; beyond INLINE_MOST creatives they are files in
`runs/<run_id>/thumbs/`, beside the page.
"""

import base64
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts import schema
from adbooster.contracts.text import interest
from adbooster.painting import candidates
from adbooster.pictures import images
from adbooster.storage import tables
from adbooster.storage.buckets import Scan, Snapshot
from adbooster.storage.objects import Root, each

INLINE_MOST = 400  # creatives; about 20 kB each
PRODUCT_PX = 320
DECODERS = 8  # photos open at one time, each up to images.MAX_PIXELS
BINS = 32


def write(root: Root, run_id: str, live: Scan, numbers: dict, most: int) -> dict:
    """Keep runs/<run_id>/gallery.json and return what it holds.

    live  gives the rows of schema.CREATIVES; numbers  the job's report; most  requests whose creatives are shown
    """
    data = collect(root, run_id, live, most) | {"numbers": numbers}
    root.write(_path(run_id), json.dumps(data).encode())
    return data


def kept(root: Root, run_id: str) -> bool:
    """Whether the run has a page of its own."""
    return root.exists(_path(run_id))


def read(root: Root, run_id: str, most: int = 300) -> dict:
    """What `write` kept for the run; for a run without it, what is live now."""
    if root.exists(_path(run_id)):
        return json.loads(root.read(_path(run_id)))
    live = Snapshot(root, "creatives", tables.version(root, "creatives"))
    return collect(root, run_id, live.scan, most) | {"numbers": {}}


def _path(run_id: str) -> str:
    return f"runs/{run_id}/gallery.json"


def collect(root: Root, run_id: str, live: Scan, most: int) -> dict:
    """The document without the job's numbers: what the rows are for page/*.js, which read it."""
    lowest, figures = pa.array([], pa.string()), _Figures()
    for some in live(["request_id", *_Figures.COLUMNS]):
        lowest = candidates.lowest(lowest, some["request_id"], most)
        figures.add(some)
    wanted = (some.filter(pc.is_in(some["request_id"], lowest)) for some in live(schema.CREATIVES.names))
    shown = pa.concat_tables([schema.CREATIVES.empty_table(), *wanted])
    order = [(c, "ascending") for c in ("product_id", "cohort_id", "placement", "rank")]
    rows = shown.take(pc.sort_indices(shown, sort_keys=order)).to_pylist()
    pictures = Pictures(root, run_id, inline=len(rows) <= INLINE_MOST)
    cohorts = _cohorts(root, rows)
    products = _products(root, rows, pictures)
    at = [{row["id"]: i for i, row in enumerate(some)} for some in (products, cohorts)]
    kept = candidates.read(root, {r["request_id"]: r["run_id"] for r in rows if r["run_id"]})
    large = _winners(root, rows, kept, pictures)
    marks = tables.read(root, "marks", ["creative_id", "mark"])
    approved = set(marks.filter(pc.equal(marks["mark"], "approved"))["creative_id"].to_pylist())
    seeds: dict[str, set[str]] = defaultdict(set)  # of the request's live creatives
    for row in rows:
        seeds[row["request_id"]].add(str(row["seed"]))
    shown_rows = []
    for row, thumb in zip(rows, large, strict=True):
        entry = _creative(row, kept.get(row["request_id"]), seeds[row["request_id"]], pictures)
        entry |= {"product": at[0][row["product_id"]], "cohort": at[1][row["cohort_id"]], "thumb": thumb}
        entry |= {"fresh": row["run_id"] == run_id, "mark": "approved" if row["creative_id"] in approved else None}
        shown_rows.append(entry)
    return {
        "run_id": run_id,
        "made_at": datetime.now(UTC).isoformat(timespec="minutes"),
        "live": figures.live,
        "fallbacks": figures.originals,
        "proof": figures.proof(),
        "cohorts": cohorts,
        "products": products,
        "creatives": shown_rows,
        "histogram": figures.histogram(),
        "rejects": {"photos": _rejected_photos(root), "fallbacks": dict(_by_count(figures.fallbacks))},
        "pictures": pictures.close(),
    }


class Pictures:
    """Small pictures by content: each once, as an address that the page can show."""

    def __init__(self, root: Root, run_id: str, inline: bool):
        self.root, self.folder, self.inline = root, f"runs/{run_id}/thumbs", inline
        self.numbers: dict[str, int] = {}
        self.files: dict[str, bytes] = {}

    def add(self, webp: bytes | str) -> int:
        """The number of a picture, given as WebP or as its base64."""
        text = webp if isinstance(webp, str) else base64.b64encode(webp).decode()
        if self.inline:
            return self.numbers.setdefault(f"data:image/webp;base64,{text}", len(self.numbers))
        content = base64.b64decode(text)
        name = f"thumbs/{hashlib.sha256(content).hexdigest()[:32]}.webp"
        self.files[name] = content
        return self.numbers.setdefault(name, len(self.numbers))

    def close(self) -> list[str]:
        """All addresses, in the order of their numbers; files are written when this returns."""
        each(lambda item: self.root.write(f"{self.folder}/{item[0].split('/')[1]}", item[1]), self.files.items())
        return list(self.numbers)


def _cohorts(root: Root, rows: list[dict]) -> list[dict]:
    """The cohorts of the rows; one that is gone from its table is described by the text of its creatives."""
    known = tables.read(root, "cohorts", ["cohort_id", "family", "query", "context"]).to_pylist()
    texts = {c["cohort_id"]: (c["family"], interest(c["query"] or "", c["context"] or "")) for c in known}
    wanted = {r["cohort_id"]: r["text"] for r in rows}
    cohorts = {name: texts.get(name, ("", text or "")) for name, text in wanted.items()}
    return [
        {"id": name, "family": cohorts[name][0] or "", "text": cohorts[name][1] or name} for name in sorted(cohorts)
    ]


def _products(root: Root, rows: list[dict], pictures: Pictures) -> list[dict]:
    """The products of the rows with small pictures of their photo and mask."""
    columns = ["product_id", "role", "title", "category", "photo_uri", "mask_uri"]
    samples = tables.read(root, "samples", columns)
    wanted = sorted({r["product_id"] for r in rows})
    mains = samples.filter(
        pc.and_(pc.equal(samples["role"], "main"), pc.is_in(samples["product_id"], pa.array(wanted, pa.string())))
    )
    main_rows = {r["product_id"]: r for r in mains.to_pylist()}
    products = [{"product_id": name} | main_rows.get(name, dict.fromkeys(columns[1:])) for name in wanted]
    photos = thumbnails(root, [r["photo_uri"] for r in products], PRODUCT_PX)
    masks = thumbnails(root, [r["mask_uri"] for r in products], PRODUCT_PX)
    return [
        {
            "id": row["product_id"],
            "title": row["title"] or "",
            "category": row["category"] or "",
            "photo_uri": row["photo_uri"],
            "photo": pictures.add(photo) if photo else None,
            "mask": pictures.add(mask) if mask else None,
        }
        for row, photo, mask in zip(products, photos, masks, strict=True)
    ]


def _winners(root: Root, rows: list[dict], kept: dict[str, dict], pictures: Pictures) -> list[int | None]:
    """A small picture of every creative: the one that was kept when it was painted, or one made of its file."""
    kept_thumbs = [kept.get(r["request_id"], {}).get("winners", {}).get(str(r["seed"])) for r in rows]
    missing = sorted({r["uri"] for r, known in zip(rows, kept_thumbs, strict=True) if not known and r["uri"]})
    made = dict(zip(missing, thumbnails(root, missing, candidates.WINNER_PX), strict=True))
    thumbs = [known or made.get(r["uri"]) for r, known in zip(rows, kept_thumbs, strict=True)]
    return [pictures.add(thumb) if thumb else None for thumb in thumbs]


def thumbnails(root: Root, uris: Sequence[str | None], side_px: int) -> list[bytes | None]:
    """Small pictures of stored ones; null where there is none, as a later vacuum may have removed it."""

    def thumbnail(uri: str | None) -> bytes | None:
        try:
            return images.encode_thumbnail(images.decode(root.read(uri)), side_px) if uri else None
        except (FileNotFoundError, images.UnreadableImage):
            return None

    with ThreadPoolExecutor(DECODERS) as threads:
        return list(threads.map(thumbnail, uris))


def _creative(row: dict, kept: dict | None, live: set[str], pictures: Pictures) -> dict:
    plain = ("creative_id", "request_id", "placement", "rank", "prompt", "negative_prompt", "prompt_style", "sha256")
    plain += ("uri", "width", "height", "fallback", "fallback_reason", "run_id")
    entry = {name: row[name] for name in plain}
    entry |= {name: _rounded(row[name]) for name in ("clip_score", "neutral_score", "margin")}
    entry["seed"] = str(row["seed"])
    figures = (row["gates"] or {}) | (row["light"] or {})
    entry["gates"] = {k: _rounded(v) for k, v in figures.items() if v is not None}
    if kept:
        words = {seed: kept["words"].get(seed, "duplicate_background") for seed in kept["winners"].keys() - live}
        entry["candidates"] = [_candidate(c, entry["seed"], words, pictures) for c in kept["candidates"]]
    else:
        entry["candidates"] = [{"score": _rounded(s)} for s in row["candidate_scores"] or ()]
    return entry


def _candidate(candidate: dict, won: str, stepped_back: dict[str, str], pictures: Pictures) -> dict:
    """stepped_back  words of those that won their round and are not live"""
    entry = {name: candidate[name] for name in ("seed", "score", "word")}
    entry["word"] = stepped_back.get(candidate["seed"], entry["word"])
    figures = {k: _rounded(v) for k, v in candidate["figures"].items()}
    return entry | {"figures": figures, "thumb": pictures.add(candidate["thumb"]), "won": candidate["seed"] == won}


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


class _Figures:
    """What the page says of all that is live, added up."""

    COLUMNS = ("rank", "clip_score", "neutral_score", "fallback", "fallback_reason", "gates")

    def __init__(self) -> None:
        self.live = self.lossy = self.originals = 0
        self.fallbacks = Counter[str]()
        self.scores: list[list[np.ndarray]] = [[], []]  # of winners, and of their products on white
        self.worst: list[tuple[int | None, float | None]] = []

    def add(self, rows: pa.Table) -> None:
        """rows  with COLUMNS"""
        self.live += rows.num_rows
        fallbacks = rows.filter(pc.fill_null(rows["fallback"], False))
        self.fallbacks += schema.counted(fallbacks["fallback_reason"])
        self.originals += fallbacks.num_rows
        best = rows.filter(pc.equal(rows["rank"], 0))
        for scores, name in zip(self.scores, ("clip_score", "neutral_score"), strict=True):
            scores.append(best[name].drop_null().to_numpy())
        differences, psnr = (pc.struct_field(rows["gates"], name) for name in ("product_max_diff", "psnr_db"))
        self.lossy += len(psnr) - psnr.null_count
        self.worst.append((pc.max(differences).as_py(), pc.min(psnr).as_py()))

    def histogram(self) -> dict:
        """Winners and their products on white, counted in BINS equal bins of the CLIP score; empty without creatives."""
        scores = [np.concatenate([np.zeros(0, np.float32), *some]) for some in self.scores]
        if not all(len(s) for s in scores):
            return {}
        low, high = min(float(s.min()) for s in scores), max(float(s.max()) for s in scores)
        edges = np.linspace(low, max(high, low + 1e-3), BINS + 1)
        winners, neutral = (np.histogram(s, edges)[0].tolist() for s in scores)
        return {"edges": [round(e, 4) for e in edges.tolist()], "winners": winners, "neutral": neutral}

    def proof(self) -> dict:
        """How far the product in any live file is from its photo: levels of 255, and dB where files are lossy."""
        if not self.live:
            return {}
        differences, psnr = ([v for v in values if v is not None] for values in zip(*self.worst, strict=True))
        return {"max_diff": max(differences, default=None), "lossy": self.lossy, "min_psnr_db": min(psnr, default=None)}


def _rejected_photos(root: Root) -> dict[str, int]:
    """Pictures of the feed that are not used, by word."""
    samples = tables.read(root, "samples", ["reject", "retired_at"])
    return dict(_by_count(schema.counted(samples.filter(pc.is_null(samples["retired_at"]))["reject"])))


def _by_count(words: Counter[str]) -> list[tuple[str, int]]:
    return sorted(words.items(), key=lambda c: (-c[1], c[0]))
