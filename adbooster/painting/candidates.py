"""All candidates of the requests that the page shows: small pictures, scores, seeds, reject words, gate figures.

One file a request and first round below `runs/<run_id>/candidates/`. They are no part of the recipe: how many there are
changes no request's name and no creative.
"""

import base64
import json
from dataclasses import asdict, dataclass, field
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adbooster.pictures import images
from adbooster.storage.objects import Root, each

THUMB_PX = 160
WINNER_PX = 480


@dataclass
class Candidate:
    """One painting of a request; `word` is null where it passed, or where it was not inspected as a better one won."""

    number: int
    seed: str  # 63 bits, which JavaScript's numbers cannot hold
    score: float
    thumb: str  # WebP in base64
    word: str | None = None
    figures: dict = field(default_factory=dict)


def lowest(known: pa.Array, more: pa.ChunkedArray, most: int) -> pa.Array:
    """The `most` lowest names of both, in order.

    Names are hashes, so these are an even sample, and one that hardly changes from night to night.
    """
    if len(known) == most:
        more = more.filter(pc.less(more, known[-1] if most else None))
    names = pc.unique(pa.chunked_array([known, *more.chunks], pa.string()))
    return names.take(pc.select_k_unstable(names, min(most, len(names)), [("name", "ascending")]))


def shown_up_to(request_ids: pa.ChunkedArray, most: int) -> str:
    """The highest name among the `most` lowest of these requests; "" for none."""
    names = lowest(pa.array([], pa.string()), request_ids, most)
    return names[-1].as_py() if len(names) else ""


def candidate(
    number: int, seed: int, score: float, preview_u8: np.ndarray, word: str | None, figures: dict
) -> Candidate:
    """A candidate as it was scored; preview_u8 uint8 [H,W,3]"""
    return Candidate(number, str(seed), round(score, 4), _thumb(preview_u8, THUMB_PX), word, figures)


def write(
    root: Root, run_id: str, request: dict, painted: list[Candidate], winners: dict[int, np.ndarray], best_own: float
) -> None:
    """Keep a request's candidates; the same request gives the same bytes.

    winners   pictures (uint8 [H,W,3]) by candidate number; best_own  the score a candidate had to beat
    """
    for candidate in painted:
        if candidate.number not in winners and candidate.word is None and candidate.score <= best_own:
            candidate.word = "below_original"
    thumbs = {c.seed: _thumb(winners[c.number], WINNER_PX) for c in painted if c.number in winners}
    kept = {"candidates": [asdict(c) for c in painted], "winners": thumbs, "again_for": request.get("again_for")}
    name = f"{request['request_id']}-{request['round'] or 0}"
    root.write(f"{_folder(run_id)}/{name}.json", json.dumps(kept).encode())


def read(root: Root, made_by: dict[str, str]) -> dict[str, dict]:
    """What was kept, by request; those of which nothing was kept lack.

    made_by  the run that painted each request
    returns  {"candidates": [as Candidate, by number], "winners": {seed: WebP in base64}, "words": {seed: word}}, of all its
             rounds; words are those for which winners were painted again
    """
    files: dict[str, list[tuple[int, str]]] = {}
    for run_id in sorted(set(made_by.values())):
        for name in root.files(_folder(run_id)):
            request_id, _, first_round = name.removesuffix(".json").rpartition("-")
            if made_by.get(request_id) == run_id and first_round.isdigit():
                files.setdefault(request_id, []).append((int(first_round), f"{_folder(run_id)}/{name}"))
    parts = each(lambda names: [json.loads(root.read(name)) for _, name in sorted(names)], files.values())
    return {request_id: _joined(rounds) for request_id, rounds in zip(files, parts, strict=True)}


def _joined(rounds: list[dict]) -> dict:
    numbered = {c["number"]: c for r in rounds for c in r["candidates"]}
    winners = {seed: thumb for r in rounds for seed, thumb in r["winners"].items()}
    again = [(seed, later.get("again_for")) for former, later in pairwise(rounds) for seed in former["winners"]]
    words = {seed: word for seed, word in again if word}
    return {"candidates": [numbered[n] for n in sorted(numbered)], "winners": winners, "words": words}


def _folder(run_id: str) -> str:
    return f"runs/{run_id}/candidates"


def _thumb(picture_u8: np.ndarray, side_px: int) -> str:
    return base64.b64encode(images.encode_thumbnail(picture_u8, side_px)).decode()
