"""report.html: the results of a run and its gallery on one static page that makes no network request.

The page is made of the files in page/ and of the run's data as JSON in it. All text of feeds and cohorts is data, which
the page's script shows as text; a content security policy in the page allows its own script and style and nothing else.
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from adbooster.report import delivery, gallery
from adbooster.storage.objects import Root

PAGE = Path(__file__).parent / "page"
SCRIPTS = (
    "parts.js",
    "plots.js",
    "results.js",
    "learning.js",
    "marks.js",
    "gallery.js",
    "detail.js",
    "delivery.js",
    "page.js",
)  # one script, in this order


def write_report(root: Root, run_id: str, evaluation: dict | None = None) -> str:
    """Write runs/<run_id>/report.html and return its address.

    It shows what `gallery.write` kept for the run, or, for a run that painted nothing, what is live now, what
    `delivery.write` kept, and runs/<run_id>/learning.json, where there is one. Call it again when there is an evaluation or a delivery: the page is made anew from the same
    data, without opening a picture.
    evaluation  runs/<run_id>/evaluation.json as a dict; None: the one that lies there, if there is one
    """
    at = f"runs/{run_id}/evaluation.json"
    if evaluation is None and root.exists(at):
        evaluation = json.loads(root.read(at))
    data = gallery.read(root, run_id) | {"evaluation": evaluation, "delivery": delivery.read(root, run_id)}
    learned = f"runs/{run_id}/learning.json"
    data["learning"] = json.loads(root.read(learned)) if root.exists(learned) else None
    data["objects_at"] = "../../" if root.above is None else "../../../../"
    relative = f"runs/{run_id}/report.html"
    root.write(relative, render(data).encode())
    return f"{root.uri}/{relative}"


def render(data: dict) -> str:
    """The page for what gallery.collect gives, with `numbers`, `evaluation`, `delivery`, `learning` and `objects_at`, the way from the
    page's folder to the root of the objects."""
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
    """JSON that is safe in a script element, whatever its texts hold; NaN and infinity become null."""
    text = json.dumps(_finite(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
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
