"""Mutated pictures through the stages of prepare: each a row within bounds, whatever is in the file.

`ADBOOSTER_FUZZ_SECONDS` (20) is how long it looks; `ADBOOSTER_FUZZ_SEED` where it begins. What fails is kept in corpus/pictures,
which is tried again on every run of the tests.
"""

import hashlib
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from adbooster.contracts import schema
from tests.fuzz import mutations
from tests.pictures.preparing import Outcome, prepared

CORPUS = Path(__file__).parent / "corpus" / "pictures"
CPU_S, MATTING_CPU_S, PEAK_MIB = 6, 40, 1024
MAX_KEPT_BYTES = 20_000


def wrong(outcome: Outcome) -> str | None:
    if outcome.error:
        return outcome.error
    if outcome.word is not None and outcome.word not in schema.REJECTS:
        return outcome.word
    allowed_s = CPU_S if outcome.mask_how in (None, "alpha") else MATTING_CPU_S
    if outcome.cpu_s > allowed_s:
        return f"took {outcome.cpu_s} s"
    return f"took {outcome.peak_mib} MiB" if outcome.peak_mib > PEAK_MIB else None


def test_what_once_failed_is_a_row(tmp_path):
    names = sorted(p.name for p in CORPUS.iterdir())
    assert names
    assert all((CORPUS / name).stat().st_size < MAX_KEPT_BYTES for name in names)
    found = list(prepared(CORPUS, names))
    assert [o.name for o in found] == names
    assert {o.name: wrong(o) for o in found if wrong(o)} == {}


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_mutated_pictures_are_rows(tmp_path):
    budget_s = float(os.environ.get("ADBOOSTER_FUZZ_SECONDS", "20"))
    rng = random.Random(int(os.environ.get("ADBOOSTER_FUZZ_SEED", "0")) or time.time_ns())
    whole = _whole(rng)
    ends = time.monotonic() + budget_s

    def names() -> Iterator[str]:
        while time.monotonic() < ends or tried < 20:
            content = mutations.mutated(rng, rng.choice(whole), rng.choice(whole))
            name = hashlib.sha256(content).hexdigest()[:16]
            (tmp_path / name).write_bytes(content)
            yield name

    tried, failures = 0, {}
    for outcome in prepared(tmp_path, names(), network=False):
        tried += 1
        file = tmp_path / outcome.name
        if why := wrong(outcome):
            failures[outcome.name] = why
            if file.stat().st_size < MAX_KEPT_BYTES:
                (CORPUS / outcome.name).write_bytes(file.read_bytes())
        else:
            file.unlink()
    print(f"{tried} pictures, {len(failures)} failures")
    assert failures == {}, f"kept in {CORPUS}, larger ones in {tmp_path}"


def _whole(rng: random.Random) -> list[bytes]:
    """Small pictures in every format and mode that Pillow writes."""
    made = []
    for kind in mutations.formats():
        for mode in mutations.MODES:
            content = rng.choice(mutations.CONTENTS)
            side = rng.choice((24, 64, 256)), rng.choice((24, 64, 256))
            made.append(mutations.written(rng, mutations.in_mode(mutations.drawn(rng, content, *side), mode), kind))
    return [content for content in made if content]
