"""What a run achieved: its uplift by family, and report.html, one static page that asks no address outside for anything.

The page is made of the files in page/ and of the run's data as JSON in it. All text of feeds and cohorts is data, which
the page's script shows as text; a content security policy in the page allows its own script and style and nothing else.
"""

import base64
import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from adbooster import gallery
from adbooster.objects import Root

PAGE = Path(__file__).parent / "page"
SCRIPTS = (
    "parts.js",
    "plots.js",
    "results.js",
    "marks.js",
    "gallery.js",
    "detail.js",
    "page.js",
)  # one script, in this order
NORMAL_95 = 1.959964


class Uplift(BaseModel):
    """CLIP scores of the winners against the product on white, means over requests."""

    creatives: int
    clip_score: float
    neutral_score: float
    difference: float
    uplift_share: float | None
    """clip_score / neutral_score - 1; null where the neutral score is not positive"""
    low: float | None = None
    """of the 95 % interval of `uplift_share`: ratio of means, paired, linearised (Cochran, 1977, section 6.3)"""
    high: float | None = None


def uplift(creatives: pa.Table, families: dict[str, str]) -> dict[str, Uplift]:
    """By family and over `all`: the winners' mean CLIP score against the product's own picture on white."""
    best = creatives.select(["cohort_id", "clip_score", "neutral_score"]).filter(pc.equal(creatives["rank"], 0))
    family = pa.array([families[c] for c in best["cohort_id"].to_pylist()], pa.string())
    groups = {f: best.filter(pc.equal(family, f)) for f in sorted(set(families.values()))}
    return {name: _uplift(rows) for name, rows in {**groups, "all": best}.items() if rows.num_rows}


def _uplift(rows: pa.Table) -> Uplift:
    scores, neutrals = (rows[c].to_numpy().astype(float) for c in ("clip_score", "neutral_score"))
    score, neutral = float(np.mean(scores)), float(np.mean(neutrals))
    told = Uplift(
        creatives=rows.num_rows,
        clip_score=round(score, 4),
        neutral_score=round(neutral, 4),
        difference=round(score - neutral, 4),
        uplift_share=round(score / neutral - 1, 4) if neutral > 0 else None,
    )
    if neutral > 0 and rows.num_rows > 1:
        ratio = score / neutral
        half = NORMAL_95 * float(np.std(scores - ratio * neutrals, ddof=1)) / neutral / rows.num_rows**0.5
        told.low, told.high = round(ratio - 1 - half, 4), round(ratio - 1 + half, 4)
    return told


def percent(share: float | None) -> str:
    return "not defined" if share is None else f"{share:+.1%}"


def write_report(root: Root, run_id: str, evaluation: dict | None = None) -> str:
    """Write runs/<run_id>/report.html and return its address.

    It shows what `gallery.write` kept for the run, or, for a run that painted nothing, what is live now. Call it again
    when there is an evaluation: the page is made anew from the same data, without opening a picture.
    evaluation  runs/<run_id>/evaluation.json as a dict; None: the one that lies there, if there is one
    """
    at = f"runs/{run_id}/evaluation.json"
    if evaluation is None and root.exists(at):
        evaluation = json.loads(root.read(at))
    data = gallery.read(root, run_id) | {"evaluation": evaluation}
    relative = f"runs/{run_id}/report.html"
    root.write(relative, page(data).encode())
    return f"{root.uri}/{relative}"


def page(data: dict) -> str:
    """The page for what gallery.collect gives, with `numbers` and `evaluation`."""
    style = (PAGE / "report.css").read_text()
    script = "'use strict';\n(() => {\n" + "".join((PAGE / name).read_text() for name in SCRIPTS) + "})();\n"
    parts = {
        "{{policy}}": _policy(script, style),
        "{{style}}": style,
        "{{script}}": script,
        "{{data}}": embedded(data),
    }
    head, *rest = (PAGE / "report.html").read_text().split("{{")
    return head + "".join(parts["{{" + name + "}}"] + text for name, text in (p.split("}}", 1) for p in rest))


def embedded(data: dict) -> str:
    """JSON that can stand in a script element, whatever its texts hold; what is no number in JSON becomes null."""
    text = json.dumps(_finite(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value):
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _policy(script: str, style: str) -> str:
    """This script, this style, pictures of the document and of the files beside it; no network, frames or forms."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (script, style)]
    return (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; "
        "img-src data: 'self' file:; base-uri 'none'; form-action 'none'"
    )
