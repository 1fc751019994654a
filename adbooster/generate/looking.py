"""A vision model looks at what is painted before it is published; the painters go on meanwhile."""

from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc

from adbooster.painting.gates import asks_for_people
from adbooster.seeing.config import WORDS, Seeing, SeeingFigures, reject_word
from adbooster.seeing.questions import Picture
from adbooster.seeing.review import Review
from adbooster.storage.objects import Root

COLUMNS = ("sha256", "uri", "text", "prompt")  # of a staged creative, what is asked with it


class SeeingGate:
    """Decides which creatives a vision model refuses. Use as a context: what was answered is kept at its end.

    stop_at  time (as of time.time) after which nothing more is looked at; None: never
    """

    def __init__(self, root: Root, seeing: Seeing, run_id: str, stop_at: float | None):
        self.seeing, self.review = seeing, Review(root, seeing, run_id, stop_at)
        self.refused_by = Counter[str]()

    def __enter__(self) -> Self:
        self.review.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.review.__exit__(kind, error, at)

    def add(self, staged: pa.Table) -> None:
        """Look at creatives (schema.STAGED) as soon as there is time; a product's own picture is not looked at."""
        self.review.add(picture for picture in _pictures(staged) if picture)

    def refused(self, staged: pa.Table) -> pa.Array:
        """Of each row the reject word for which it must not be published; null: none, or nobody could look at it.

        It waits until all of them were looked at.
        """
        self.add(staged)
        self.review.wait()
        words = pa.array([self._word(picture) for picture in _pictures(staged)], pa.string())
        self.refused_by = Counter(words.drop_null().to_pylist())
        return words

    def figures(self, repainted: int) -> SeeingFigures:
        """The counts of all that `refused` was asked, and one line in the log where something was not looked at."""
        self.review.report_missing()
        refused = {word: self.refused_by[word] for word in sorted(self.refused_by)}
        return self.review.figures().model_copy(update={"refused": refused, "repainted": repainted})

    def _word(self, picture: Picture | None) -> str | None:
        answer = self.review.answer(picture) if picture else None
        if picture is None or answer is None:
            return None
        wanted = {"people"} if asks_for_people(picture.text) else set()
        seen = (w for w in WORDS if w in self.seeing.reject and w not in wanted and answer.found.get(w))
        return next((reject_word(word) for word in seen), None)


def _pictures(staged: pa.Table) -> list[Picture | None]:
    """The painted ones among the rows; None for a product's own picture, and for a row that is no creative."""
    columns = (staged[name].to_pylist() for name in (*COLUMNS, "fallback", "reject"))
    return [
        Picture(sha256, uri, text or "", prompt or "") if uri and not fallback and not reject else None
        for sha256, uri, text, prompt, fallback, reject in zip(*columns, strict=True)
    ]


def refused_rounds(staged: pa.Table, words: pa.Array) -> Mapping[tuple[str, int], str]:
    """By request and round the word of its best creative that is refused."""
    rows = staged.select(["request_id", "round", "rank"]).append_column("word", words)
    rows = rows.filter(pc.is_valid(rows["word"])).sort_by([("rank", "descending")])
    return {(row["request_id"], row["round"]): row["word"] for row in rows.to_pylist()}
