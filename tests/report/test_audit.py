"""`adbooster audit`: who decided about a creative, from which file and when, and where the creative comes from."""

import hashlib
import json

import pyarrow as pa
import pytest

from adbooster.cli import console
from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.generate import marks
from adbooster.report.audit import audit
from adbooster.storage import tables
from adbooster.storage.inputs import sign
from tests.conftest import row, scan

ONE, TWO = "1" * 16, "2" * 16


def creative(creative_id: str, **more) -> dict:
    facts = {"creative_id": creative_id, "request_id": creative_id * 4, "product_id": "P1", "cohort_id": "c1"}
    facts |= {"placement": "square", "rank": 0, "prompt": "a halloween night", "seed": 7, "recipe_id": "4a1c"}
    facts |= {"weights_revision": "77e0", "uri": "objects/ab/x.webp", "sha256": "a" * 64, "run_id": "n1"}
    return row(schema.CREATIVES, **facts | more)


@pytest.fixture
def told(stocked, tmp_path, monkeypatch):
    """Two creatives of one night; a person approved the first, and rejected it later; the next night took it away."""
    photo = tables.read(stocked, "samples")["photo_sha256"][0].as_py()
    rows = pa.Table.from_pylist([creative(c, photo_sha256=photo) for c in (ONE, TWO)], schema.CREATIVES)
    tables.merge(stocked, "creatives", rows, "creative_id", None, {"run_id": "n1", "git_commit": "c0ffee"})
    stocked.write("weights/77e0/card.json", b'{"base": "sd15", "steps": 100}')
    stocked.write_json(
        "runs/n1/generate.config.json", {"started_at": "2026-11-25T01:00:00+00:00", "git_commit": "c0ffee"}
    )
    monkeypatch.setenv("SHOP_KEY", "a key of the shop")
    for name, by, mark, run, key in (
        ("anna", "Anna\x07", "approved", "n1", ""),
        ("ben", "Ben", "rejected", "n2", "SHOP_KEY"),
    ):
        path = tmp_path / f"{name}.json"
        marked = [{"creative_id": ONE, "mark": mark}]
        path.write_text(
            json.dumps({"format": marks.FORMAT, "by": by, "exported_at": "2026-11-25T08:00:00Z", "marks": marked})
        )
        sign(str(path), "SHOP_KEY")
        for _ in range(2):
            marks.read_and_store(stocked, str(path), scan(rows), run, signing_key_env=key)
    tables.merge(stocked, "creatives", rows.slice(0, 0), "creative_id", 0, {"run_id": "n2"}, delete=[ONE])
    return stocked


def test_who_decided_from_which_file_and_when(told, tmp_path):
    found = audit(told, ONE)
    assert [(d.mark, d.marked_by, d.run_id, d.signed) for d in found.decisions] == [
        ("approved", "Anna", "n1", False),
        ("rejected", "Ben", "n2", True),
    ], "each once, however often the file was read"
    anna = found.decisions[0]
    assert anna.file_uri == str(tmp_path / "anna.json")
    assert anna.file_sha256 == hashlib.sha256((tmp_path / "anna.json").read_bytes()).hexdigest()
    assert anna.marked_at == "2026-11-25T08:00:00Z"
    assert anna.read_at <= found.decisions[1].read_at
    assert (found.live, found.retired.run_id, found.retired.version) == (False, "n2", 1)


def test_the_chain_from_product_to_run(told):
    found = audit(told, TWO)
    assert (found.live, found.retired, found.published.run_id, found.published.git_commit) == (
        True,
        None,
        "n1",
        "c0ffee",
    )
    assert found.product["product_id"] == "P1"
    assert (found.sample["sample_id"], found.sample["same_photo"]) == ("s1", True)
    assert found.cohort["context"] == "a halloween night"
    assert (found.request["request_id"], found.request["recipe_id"]) == (TWO * 4, "4a1c")
    assert found.weights == {"weights_revision": "77e0", "card": {"base": "sd15", "steps": 100}}
    assert found.run["files"] == ["runs/n1/generate.config.json"]
    assert found.decisions == []


def test_the_command_prints_it_and_gives_json(told, capsys):
    console.main(["audit", ONE, "--root-uri", told.uri, "--json"])
    assert json.loads(capsys.readouterr().out) == audit(told, ONE).model_dump(mode="json")
    console.main(["audit", ONE, "--root-uri", told.uri])
    text = capsys.readouterr().out
    for part in ("not live", "P1", "4a1c", "77e0", "by Anna at", "anna.json", "signed", "run n2", "(MERGE)"):
        assert part in text


def test_an_unknown_id_is_one_sentence(told, root, capsys):
    with pytest.raises(ConfigError, match="no creative 'nobody' is known below"):
        audit(told, "nobody")
    with pytest.raises(SystemExit, match="2"):
        console.main(["audit", "f" * 16, "--root-uri", f"{root.uri}-empty"])
    assert "no creative 'ffffffffffffffff' is known" in capsys.readouterr().err


def test_what_the_history_lost_is_said_to_be_lost(told):
    """Only what people said of it is left: no version of the table that can be read has it."""
    said = {"creative_id": "3" * 16, "decision_id": "d", "mark": "approved", "signed": False, "run_id": "n0"}
    read_at = tables.read(told, "decisions")["read_at"][0].as_py()
    rows = pa.Table.from_pylist([row(schema.DECISIONS, **said, read_at=read_at)], schema.DECISIONS)
    tables.merge(told, "decisions", rows, "decision_id", tables.version(told, "decisions"), {})
    found = audit(told, "3" * 16)
    assert (found.live, found.published, found.sample, found.run) == (False, None, None, {"run_id": None})
    assert [d.mark for d in found.decisions] == ["approved"]
