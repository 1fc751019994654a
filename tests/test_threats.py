"""What the threat table of docs/guarantees.md says, where no other module's tests hold it."""

import ast
import re
from pathlib import Path

import pyarrow as pa
import pytest

import adbooster
from adbooster.cohorts.config import CohortsConfig
from adbooster.contracts import schema
from adbooster.pictures import images
from adbooster.prompts.config import Prompting
from adbooster.storage import tables
from tests.conftest import row
from tests.generate.test_generate import Stub, painter, requests

REPO = Path(__file__).parents[1]
HOSTILE = "../../../etc/cron.d/x$(touch pwned)?a=b&'\"<script>"
GUARANTEES = (REPO / "docs" / "guarantees.md").read_text()


def test_no_name_in_the_storage_comes_from_a_feed_or_a_cohort(root, packshot):
    """A product and a cohort whose every text tries to be a path: names are hashes, and nothing lies outside the root."""
    photo, mask = packshot
    uri = root.put(images.encode_lossless(photo), "photo")
    names = {"photo_uri": uri, "photo_sha256": uri[11:75], "mask_uri": root.put(images.encode_mask(mask), "png")}
    texts = dict.fromkeys(("sample_id", "product_id", "title", "category", "caption"), HOSTILE)
    sample = row(schema.SAMPLES, role="main", **texts, **names)
    texts = dict.fromkeys(("cohort_id", "family", "query", "context", "version"), HOSTILE)
    cohort = row(schema.COHORTS, interests=[], **texts)
    tables.merge(root, "samples", pa.Table.from_pylist([sample], schema.SAMPLES), "sample_id", None, {})
    tables.merge(root, "cohorts", pa.Table.from_pylist([cohort], schema.COHORTS), "cohort_id", None, {})
    before = {p for p in Path(root.uri).parent.rglob("*") if Path(root.uri) not in p.parents}
    stage = painter(root)
    stage.painter.ranker = Stub([0.4, 0.9], own=0.1)
    done = stage(requests(root)).to_pylist()
    assert [r["reject"] for r in done] == [None]
    assert done[0]["product_id"] == HOSTILE
    objects = set(root.stats("objects"))
    assert done[0]["uri"] in objects
    assert all(re.fullmatch(r"objects/[0-9a-f]{2}/[0-9a-f]{64}\.(photo|png|webp)", name) for name in objects)
    assert re.fullmatch(r"[0-9a-f]+", done[0]["creative_id"])
    assert {p for p in Path(root.uri).parent.rglob("*") if Path(root.uri) not in p.parents} == before


@pytest.mark.parametrize("run_id", ["../../x", "a/b", ".hidden", "", "a" * 101, "night\n"])
def test_a_run_is_a_folder_of_its_own(tmp_path, run_id):
    if not run_id:
        assert CohortsConfig(root_uri="x", cohorts_uri="c", run_id="").run_id == ""
        return
    with pytest.raises(ValueError, match="run_id"):
        CohortsConfig(root_uri="x", cohorts_uri="c", run_id=run_id)


def test_no_model_is_read_in_a_way_that_could_run_it():
    """Every from_pretrained of weights insists on safetensors; nothing unpickles, evaluates, or trusts a hub's code."""
    calls = []
    for path in Path(adbooster.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                flags = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert name not in ("eval", "exec", "pickle.load", "pickle.loads", "joblib.load", "os.system"), path
                assert name != "torch.load" or flags.get("weights_only") == "True", path
                assert "trust_remote_code" not in flags, path
                assert flags.get("shell") != "True", path
                calls += [(name, flags)] if name.endswith(".from_pretrained") else []
    models = [(n, f) for n, f in calls if not re.search(r"Processor|Tokenizer|Scheduler|Config", n)]
    assert models
    assert all(flags.get("use_safetensors") == "True" for _, flags in models), models


def test_yaml_is_data():
    for path in [*Path(adbooster.__file__).parent.rglob("*.py"), *(REPO / "cluster").glob("*.py")]:
        assert not re.search(r"yaml\.(load|full_load|unsafe_load)\(", path.read_text()), path


def test_a_template_reaches_nothing_but_its_fields():
    with pytest.raises(ValueError, match="template"):
        Prompting(template="{product.__class__}")


def test_every_test_that_the_readme_names_is_there():
    """`room/test_x.py::test_y` in the tables of guarantees and threats."""
    named = re.findall(r"`((?:\w+/)?test_\w+\.py)(?:::(\w+))?", GUARANTEES)
    assert len(named) > 20
    for file, test in named:
        text = (REPO / "tests" / file).read_text()
        assert not test or f"def {test}(" in text, f"{file}::{test}"
