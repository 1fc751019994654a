"""What a run achieved: its uplift by family, and the gallery, one static page with every text escaped."""

import base64
import html

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from adbooster import images
from adbooster.objects import Root

THUMB_PX = 320

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>AdBooster {run}</title><style>
:root {{ color-scheme: light dark; --line: #8884; }}
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1500px; padding: 1.5rem; }}
h1 {{ font-size: 1.4rem; }} table {{ border-collapse: collapse; margin: 1rem 0; }}
td, th {{ padding: .25rem .9rem .25rem 0; text-align: right; border-bottom: 1px solid var(--line); }}
td:first-child, th:first-child {{ text-align: left; }}
section {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); gap: 1rem; margin: 1rem 0 2rem; }}
figure {{ margin: 0; border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }}
img {{ width: 100%; display: block; aspect-ratio: 1; object-fit: contain; }}
figcaption {{ padding: .5rem .7rem; font-size: .82rem; overflow-wrap: anywhere; }} small {{ opacity: .7; }}
</style><body><h1>Creatives of run {run}</h1><p>{summary}</p>
<table><tr><th>family<th>creatives<th>CLIP score<th>product on white<th>uplift</tr>{rows}</table>{sections}"""


class Uplift(BaseModel):
    """CLIP scores of the winners against the product on white, means over requests."""

    creatives: int
    clip_score: float
    neutral_score: float
    difference: float
    uplift_share: float | None
    """clip_score / neutral_score - 1; null where the neutral score is not positive"""


def uplift(creatives: pa.Table, families: dict[str, str]) -> dict[str, Uplift]:
    """By family and over `all`: the winners' mean CLIP score against the product's own picture on white."""
    best = creatives.select(["cohort_id", "clip_score", "neutral_score"]).filter(pc.equal(creatives["rank"], 0))
    family = pa.array([families[c] for c in best["cohort_id"].to_pylist()], pa.string())
    groups = {f: best.filter(pc.equal(family, f)) for f in sorted(set(families.values()))}
    return {name: _uplift(rows) for name, rows in {**groups, "all": best}.items() if rows.num_rows}


def _uplift(rows: pa.Table) -> Uplift:
    score, neutral = (float(np.mean(rows[c].to_numpy())) for c in ("clip_score", "neutral_score"))
    return Uplift(
        creatives=rows.num_rows,
        clip_score=round(score, 4),
        neutral_score=round(neutral, 4),
        difference=round(score - neutral, 4),
        uplift_share=round(score / neutral - 1, 4) if neutral > 0 else None,
    )


def write_gallery(root: Root, run_id: str, creatives: pa.Table, requests: pa.Table, numbers: dict, most: int) -> str:
    """Write runs/<run_id>/report.html and return its address.

    creatives  rows of schema.CREATIVES; requests the rows they answer; numbers the job's report; most: creatives shown
    """
    by = [(c, "ascending") for c in ("product_id", "cohort_id", "placement", "rank")]
    rows = _spread(creatives.take(pc.sort_indices(creatives, sort_keys=by)), most).to_pylist()
    asked = requests.filter(pc.is_in(requests["product_id"], pa.array([r["product_id"] for r in rows], pa.string())))
    told = asked.select(["product_id", "cohort_id", "placement", "family", "text", "photo_uri"]).to_pylist()
    texts = {(r["product_id"], r["cohort_id"], r["placement"]): r for r in told}
    shown = [r | texts[r["product_id"], r["cohort_id"], r["placement"]] for r in rows]
    sections = "".join(
        _section(root, product, [r for r in shown if r["product_id"] == product]) for product in _products(shown)
    )
    page = _PAGE.format(
        run=html.escape(run_id), summary=_summary(numbers, len(shown)), rows=_table(numbers), sections=sections
    )
    relative = f"runs/{run_id}/report.html"
    root.write(relative, page.encode())
    return f"{root.uri}/{relative}"


def _products(rows: list[dict]) -> list[str]:
    return list(dict.fromkeys(r["product_id"] for r in rows))


def _spread(rows: pa.Table, most: int) -> pa.Table:
    """At most `most` rows, evenly over the whole."""
    if rows.num_rows <= most:
        return rows
    return rows.take(pa.array([i * rows.num_rows // most for i in range(most)], pa.int64()))


def _summary(numbers: dict, shown: int) -> str:
    told = (
        "requests",
        "already_live",
        "painted",
        "rejected",
        "fallbacks",
        "published",
        "retired",
        "coverage",
        "seconds",
    )
    facts = ", ".join(f"{key.replace('_', ' ')} {numbers[key]}" for key in told)
    return html.escape(
        f"{facts}. {shown} creatives shown. Weights {numbers['weights_revision']}, recipe {numbers['recipe_id']}."
    )


def _table(numbers: dict) -> str:
    return "".join(
        f"<tr><td>{html.escape(family or '(none)')}<td>{u['creatives']}<td>{u['clip_score']:.3f}<td>{u['neutral_score']:.3f}"
        f"<td>{percent(u['uplift_share'])}</tr>"
        for family, u in numbers["uplift"].items()
    )


def percent(share: float | None) -> str:
    return "not defined" if share is None else f"{share:+.1%}"


def _section(root: Root, product_id: str, rows: list[dict]) -> str:
    photo = f"<figure>{_image(root, rows[0]['photo_uri'])}<figcaption>the photo</figcaption></figure>"
    return f"<h2>{html.escape(product_id)}</h2><section>{photo}{''.join(_figure(root, r) for r in rows)}</section>"


def _figure(root: Root, row: dict) -> str:
    note = (
        f"the original picture: {row['fallback_reason'] or 'nothing beat it'}"
        if row["fallback"]
        else f"{row['clip_score'] - row['neutral_score']:+.3f} over white"
    )
    return (
        f"<figure>{_image(root, row['uri'])}<figcaption>{html.escape(row['text'])}<br>"
        f"<small>{html.escape(row['family'])} · score {row['clip_score']:.3f} · {html.escape(note)}</small></figcaption></figure>"
    )


def _image(root: Root, uri: str) -> str:
    thumb = base64.b64encode(images.encode_thumbnail(images.decode(root.read(uri)), THUMB_PX)).decode()
    link = html.escape(f"../../{uri}")
    return f'<a href="{link}"><img loading="lazy" alt="" src="data:image/webp;base64,{thumb}"></a>'
