"""tables/sightings keeps what was seen by picture and question; what it holds is not asked again."""

import logging
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts import schema
from adbooster.contracts.errors import PublishConflict
from adbooster.seeing.config import WORDS, Seeing, reject_word
from adbooster.seeing.questions import Answer, Picture
from adbooster.storage import tables
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)


def known(root: Root, model: str) -> dict[str, Answer]:
    """By name, the answers of a model that are kept."""
    mine = pc.equal(pc.field("model"), model)
    rows = tables.read(
        root, "sightings", ["sighting_id", "model", *map(reject_word, WORDS), "why"], where=mine
    ).to_pylist()
    return {row["sighting_id"]: _answer(row) for row in rows}


def _answer(row: dict) -> Answer:
    asked = {word: row[reject_word(word)] for word in WORDS}
    return Answer({word: yes for word, yes in asked.items() if yes is not None}, row["why"] or "")


def spent(root: Root, run_id: str) -> int:
    """How many answers a run has got before, which count against its calls."""
    mine = pc.equal(pc.field("run_id"), run_id)
    return tables.read(root, "sightings", ["run_id"], where=mine).num_rows


def keep(root: Root, run_id: str, seeing: Seeing, answers: Mapping[str, tuple[Picture, Answer]]) -> None:
    """Commit answers by name; another run that commits its own at the same time does not matter."""
    rows = [
        {"sighting_id": name, "sha256": picture.sha256, "why": answer.why, "model": seeing.model, "run_id": run_id}
        | {reject_word(word): yes for word, yes in answer.found.items()}
        for name, (picture, answer) in answers.items()
    ]
    if not rows:
        return
    table = pa.Table.from_pylist(rows, schema.SIGHTINGS)
    for _ in range(5):
        try:
            tables.merge(root, "sightings", table, "sighting_id", tables.version(root, "sightings"), {"run_id": run_id})
            return
        except PublishConflict:
            continue
    log.warning("%d answers could not be kept for the next night: others commit all the time", len(rows))
