"""A blind side-by-side sheet for people: pairs in random order, the key kept apart; and the score of filled sheets."""

import csv
import html
import io
from collections import Counter
from collections.abc import Iterable
from random import Random

import numpy as np
from PIL import Image, ImageOps
from pydantic import BaseModel
from scipy import stats

from adbooster.contracts.evaluation import Interval
from adbooster.contracts.naming import digest
from adbooster.evaluate.config import Sheet
from adbooster.measure import intervals
from adbooster.pictures import images
from adbooster.reward.sheets import CHOICES, Pair, answered
from adbooster.storage.objects import Root

GREY = (200, 200, 200)


class Score(BaseModel):
    """What people preferred; shares are of answers that preferred a side."""

    answers: int
    raters: int
    pairs: int
    """pairs with an answer"""
    creative: int
    baseline: int
    same: int
    preferred: Interval | None
    """share that preferred the creative; Wilson for one rater, bootstrap over pairs for several"""
    p_value: float | None
    """two-sided, of no preference: binomial over pairs, each by its majority"""
    by_family: dict[str, Interval]
    by_baseline: dict[str, Interval]
    left_share: float | None
    """share that preferred the left picture: far from 0.5, raters did not compare the pictures"""


def write(root: Root, folder: str, rows: Iterable[dict], sheet: Sheet) -> int:
    """Write sheet.html, sheet.csv and pictures below `folder`, and the key beside it as `<folder>.key.json`.

    rows     creative_id, product_id, cohort_id, family, text, uri, neutral_uris, contextual_uris; the creative is
             paired with the catalog's own scene if there is one, else with the product's plain picture
    returns  how many pairs there are
    """
    chance = Random(sheet.seed)
    usable = [r for r in rows if r["contextual_uris"] or r["neutral_uris"]]
    some = sorted(usable, key=lambda r: digest("blind", str(sheet.seed), r["creative_id"]))[: sheet.pairs]
    key, lines = [], []
    for number, row in enumerate(some, 1):
        against = "contextual" if row["contextual_uris"] else "neutral"
        other = chance.choice(sorted(row[f"{against}_uris"]))
        side = chance.choice(("left", "right"))
        uris = (row["uri"], other) if side == "left" else (other, row["uri"])
        for name, uri in zip(("left", "right"), uris, strict=True):
            root.write(f"{folder}/pictures/{number:03d}-{name}.webp", _fitted(root.read(uri), sheet.side_px))
        facts = {n: row[n] or "" for n in ("creative_id", "product_id", "cohort_id", "family")}
        key.append(Pair(pair=number, creative_side=side, against=against, **facts))
        lines.append((number, row["text"]))
    if key:
        root.write_json(f"{folder}.key.json", [k.model_dump() for k in key])
        root.write(f"{folder}/sheet.csv", _csv(lines).encode())
        root.write(f"{folder}/sheet.html", _page(lines).encode())
    return len(key)


def _fitted(content: bytes, side_px: int) -> bytes:
    picture = Image.fromarray(images.decode(content))
    padded = ImageOps.pad(picture, (side_px, side_px), Image.Resampling.LANCZOS, GREY)
    return images.encode(np.asarray(padded), "webp", 90)[0]


def _csv(lines: list[tuple[int, str]]) -> str:
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["pair", "rater", "choice"])
    table.writerows([number, "", ""] for number, _ in lines)
    return out.getvalue()


_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Side by side</title><style>
:root {{ color-scheme: light dark; }} body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 0 auto;
padding: 1rem; }} fieldset {{ border: 1px solid #8886; border-radius: 10px; margin: 1.5rem 0; }}
.pair {{ display: grid; grid-template-columns: 1fr 1fr; gap: .8rem; }} img {{ width: 100%; border-radius: 6px; }}
label {{ margin-right: 1.5rem; }}</style>
<h1>Which picture would you rather see?</h1>
<p>Each line says what somebody looks for. Choose the picture of the product that fits better, or "same". When you are
done, save the answers and hand the file back.</p>
<form id="sheet"><p><label>Your name or number <input name="rater" required maxlength="100"></label></p>{pairs}
<p><button>Save answers</button> <output id="left"></output></p></form>
<script>
const form = document.getElementById('sheet');
form.addEventListener('submit', event => {{
  event.preventDefault();
  // As contracts/text.py does: a name is no formula of a spreadsheet.
  const inner = text => text.replace(/^'+/, '');
  const number = /^[+-]?\\d+(\\.\\d+)?([eE][+-]?\\d+)?$/;
  const formula = text => /^[=+\\-@\\t\\r\\n＝＋－＠]/.test(inner(text)) && !number.test(inner(text));
  const quote = text => '"' + (formula(text) ? "'" : '') + text.replaceAll('"', '""') + '"';
  const rows = ['pair,rater,choice'];
  let open = 0;
  for (const set of form.querySelectorAll('fieldset')) {{
    const chosen = set.querySelector('input:checked');
    if (!chosen) open += 1;
    rows.push([set.dataset.pair, quote(form.rater.value), chosen ? chosen.value : ''].join(','));
  }}
  document.getElementById('left').textContent = open ? open + ' left open' : 'all answered';
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([rows.join('\\n') + '\\n'], {{type: 'text/csv'}}));
  link.download = 'answers.csv';
  link.click();
}});
</script>"""


def _page(lines: list[tuple[int, str]]) -> str:
    def pair(number: int, text: str) -> str:
        pictures = "".join(
            f'<img loading="lazy" alt="{side} picture" src="pictures/{number:03d}-{side}.webp">' for side in CHOICES[:2]
        )
        options = "".join(f'<label><input type="radio" name="p{number}" value="{c}"> {c}</label>' for c in CHOICES)
        return (
            f'<fieldset data-pair="{number}"><legend>{number}. {html.escape(text)}</legend>'
            f'<div class="pair">{pictures}</div><p>{options}</p></fieldset>'
        )

    return _PAGE.format(pairs="".join(pair(*line) for line in lines))


def score(sheets: dict[str, str], key_json: str) -> Score:
    """The preferences in filled sheets (name to CSV text) under their key; an empty choice is no answer.

    raises ConfigError for a key or sheet that cannot be read, a pair that the key does not have, another choice than
    left, right or same, and a rater who answers a pair twice
    """
    answers = answered(sheets, key_json)
    liked = [(pair, float(choice == pair.creative_side)) for _, pair, choice in answers if choice != "same"]
    lefts = [choice == "left" for *_, choice in answers if choice != "same"]
    raters = len({rater for rater, *_ in answers})
    majority = _majority(liked)
    return Score(
        answers=len(answers),
        raters=raters,
        pairs=len({pair.pair for _, pair, _ in answers}),
        creative=int(sum(v for _, v in liked)),
        baseline=int(sum(1 - v for _, v in liked)),
        same=len(answers) - len(liked),
        preferred=_preferred(liked, raters),
        p_value=float(stats.binomtest(sum(majority), len(majority)).pvalue) if majority else None,
        by_family=_groups(liked, raters, "family"),
        by_baseline=_groups(liked, raters, "against"),
        left_share=float(np.mean(lefts)) if lefts else None,
    )


def _preferred(liked: list[tuple[Pair, float]], raters: int) -> Interval | None:
    if not liked:
        return None
    if raters <= 1:
        return intervals.share(int(sum(v for _, v in liked)), len(liked))
    return intervals.mean(np.array([v for _, v in liked]), [str(pair.pair) for pair, _ in liked])


def _groups(liked: list[tuple[Pair, float]], raters: int, field: str) -> dict[str, Interval]:
    names = sorted({getattr(pair, field) for pair, _ in liked})
    preferences = {n: _preferred([e for e in liked if getattr(e[0], field) == n], raters) for n in names}
    return {n: spread for n, spread in preferences.items() if spread}


def _majority(liked: list[tuple[Pair, float]]) -> list[int]:
    """Of every pair whether most who preferred a side preferred the creative; ties left out."""
    votes: dict[int, Counter] = {}
    for pair, value in liked:
        votes.setdefault(pair.pair, Counter())[value] += 1
    return [int(v[1.0] > v[0.0]) for v in votes.values() if v[1.0] != v[0.0]]
