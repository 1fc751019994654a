"""A vision model as a further judge: how many of the live creatives show what nobody asked for."""

import pyarrow as pa

from adbooster.contracts.evaluation import Figure
from adbooster.measure import intervals
from adbooster.painting.gates import asks_for_people
from adbooster.seeing.config import Seeing, SeeingFigures
from adbooster.seeing.questions import Answer, Picture
from adbooster.seeing.review import Review
from adbooster.storage.objects import Root


def look(root: Root, run_id: str, seeing: Seeing, live: pa.Table) -> tuple[list[Figure], list[str], SeeingFigures]:
    """Shares of live creatives (schema.CREATIVES) in which each thing was seen, notes on what was not looked at, and counts.

    Painted ones and products' own pictures are figures of their own. What was seen before is not asked again.
    """
    rows = live.select(["sha256", "uri", "text", "prompt", "fallback"]).to_pylist()
    pictures = [(_picture(row), bool(row["fallback"])) for row in rows]
    with Review(root, seeing, run_id) as review:
        review.add(picture for picture, _ in pictures)
        review.wait()
        review.report_missing()
        answers = [(p.text, review.answer(p), original) for p, original in pictures]
    counts, figures = review.figures(), []
    for is_original, kind in ((False, "painted live creatives"), (True, "live originals")):
        known = [(text, answer) for text, answer, original in answers if answer and original == is_original]
        figures += _figures(known, seeing, kind)
    notes = [f"{n} pictures were not looked at by {seeing.model}: {why}." for why, n in counts.not_looked.items()]
    return figures, notes, counts


def _picture(row: dict) -> Picture:
    return Picture(row["sha256"], row["uri"], row["text"] or "", row["prompt"] or "")


def _figures(seen: list[tuple[str, Answer]], seeing: Seeing, kind: str) -> list[Figure]:
    """One for each question, and one for all that would reject, with Wilson's interval; none of no pictures.

    seen  the cohort's text and the answer of each picture
    """
    figures = []
    for word in seeing.questions:
        hits = [answer.found[word] for text, answer in seen if word != "people" or not asks_for_people(text)]
        why = f"in which {seeing.model} saw: {word}"
        figures += _share(f"seen: {word} ({kind})", hits, f"{kind} {why}")
    hits = [any(_rejects(word, text, answer) for word in seeing.reject) for text, answer in seen]
    return [*figures, *_share(f"seen: any ({kind})", hits, f"{kind} in which {seeing.model} saw what would reject one")]


def _rejects(word: str, text: str, answer: Answer) -> bool:
    return answer.found[word] and not (word == "people" and asks_for_people(text))


def _share(name: str, hits: list[bool], meaning: str) -> list[Figure]:
    if not hits:
        return []
    spread = intervals.share(sum(hits), len(hits))
    return [
        Figure(
            name=name, unit="share", n=len(hits), value=spread.mean, low=spread.low, high=spread.high, meaning=meaning
        )
    ]
