"""What is exported is what docs/operate.md tells; test_submit.py reads it from a head."""

import re
from pathlib import Path

import pyarrow as pa
import pytest

from adbooster.contracts import schema
from adbooster.engine import metrics
from tests.conftest import row

OPERATE = Path(__file__).parents[2] / "docs" / "operate.md"


@pytest.fixture
def counted(monkeypatch):
    """What would be added to the counters."""
    found = {}

    def add(name, value, told, **more):
        if value:
            found[name, more.get("word")] = value

    monkeypatch.setattr(metrics, "add", add)
    return found


def test_the_readme_names_every_metric():
    assert set(re.findall(r"`ray_(adbooster_\w+)`", OPERATE.read_text())) == set(metrics._MEANINGS)


def test_painted_rows_are_counted_once_a_request(counted):
    facts = {"candidate_rejects": ["people_not_asked"], "gpu_s": 2.0, "fallback": False}
    rows = [
        row(schema.STAGED, request_id="a", rank=0, **facts),
        row(schema.STAGED, request_id="a", rank=1, **facts),
        row(schema.STAGED, request_id="b", rank=0, **facts | {"fallback": True}),
        row(schema.STAGED, request_id="c", reject="left_for_later"),
        row(schema.STAGED, request_id="d", reject="unreadable_image"),
    ]
    metrics.count(pa.Table.from_pylist(rows, schema.STAGED), {})
    assert counted == {
        ("adbooster_creatives_total", None): 2,
        ("adbooster_fallbacks_total", None): 1,
        ("adbooster_gpu_seconds_total", None): 4.0,
        ("adbooster_rejects_total", "people_not_asked"): 2,
        ("adbooster_rejects_total", "unreadable_image"): 1,
    }


def test_tags_are_those_of_the_run_that_is_on():
    with metrics.of_run("prepare", "n"):
        assert metrics.tags() == {"job": "prepare", "run_id": "n"}
    assert metrics.tags() == {"job": "", "run_id": ""}
