import pyarrow as pa
import pyarrow.parquet as pap
import pytest

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.contracts.recipe import Recipe
from adbooster.painting import requests
from adbooster.painting.config import Targeting
from adbooster.prompts.config import Prompting
from adbooster.storage import tables
from adbooster.storage.buckets import WHOLE
from tests.conftest import MODELS, row


def wanted(root, targeting=None, recipe=None, prompts=None, name="recipe"):
    rank = str(MODELS / "rank")
    planner = requests.Planner(root, recipe or Recipe(), name, prompts or Prompting(), targeting or Targeting(), rank)
    return planner.plan(WHOLE).requests


def add_cohort(root, **values):
    base = {
        "cohort_id": "c3",
        "family": "sports",
        "query": "mug",
        "context": "",
        "interests": [],
        "size": 1,
        "version": "c3",
    }
    rows = pa.Table.from_pylist([row(schema.COHORTS, **base | values)], schema.COHORTS)
    tables.merge(root, "cohorts", rows, "cohort_id", tables.version(root, "cohorts"), {})


def test_a_request_is_named_by_all_that_decides_its_creative(stocked):
    def ids(**changes):
        return set(wanted(stocked, **changes)["request_id"].to_pylist())

    before = ids()
    assert ids() == before
    assert not before & ids(name="other")
    assert not before & ids(prompts=Prompting(template="{product} {context}"))
    assert not before & ids(prompts=Prompting(negative_prompt="rain"))
    assert before < ids(recipe=Recipe(placements=("square", "story")))
    live = tables.read(stocked, "cohorts").to_pylist()
    resized = pa.Table.from_pylist([live[0] | {"size": 9, "version": "x"}], schema.COHORTS)
    tables.merge(stocked, "cohorts", resized, "cohort_id", 0, {})
    assert ids() == before, "how many users a cohort has is nothing to paint anew for"
    renamed = pa.Table.from_pylist([live[0] | {"context": "a beach"}], schema.COHORTS)
    tables.merge(stocked, "cohorts", renamed, "cohort_id", 1, {})
    assert len(ids() & before) == 1


def test_a_new_category_repaints_only_where_stands_ask(stocked):
    stands = Recipe(stands=[{"category": "Home", "product_scale": (0.2, 0.3), "ground_line": (0.8, 0.9)}])
    before = [set(wanted(stocked, recipe=r)["request_id"].to_pylist()) for r in (Recipe(), stands)]
    sample = tables.read(stocked, "samples").to_pylist()[0] | {"category": "Garden"}
    tables.merge(stocked, "samples", pa.Table.from_pylist([sample], schema.SAMPLES), "sample_id", 0, {})
    after = [set(wanted(stocked, recipe=r)["request_id"].to_pylist()) for r in (Recipe(), stands)]
    assert before[0] == after[0]
    assert not before[1] & after[1]


def test_top_n_takes_the_nearest_cohorts(stocked):
    add_cohort(stocked, query="football boots for the big match")
    assert wanted(stocked).num_rows == 3
    near = wanted(stocked, Targeting(rule="top_n", n=2))
    assert near["cohort_id"].to_pylist() == ["c1", "c2"]


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_table_says_who_gets_what(stocked, tmp_path, kind):
    path = tmp_path / f"pairs.{kind}"
    pairs = pa.table({"product_id": ["P1", "P1", "gone"], "cohort_id": ["c2", "c2", "c1"]})
    if kind == "parquet":
        pap.write_table(pairs, path)
    else:
        path.write_text("product_id,cohort_id\nP1,c2\nP1,c2\ngone,c1\n")
    found = wanted(stocked, Targeting(rule="table", table_uri=str(path)))
    assert list(zip(found["product_id"].to_pylist(), found["cohort_id"].to_pylist(), strict=True)) == [("P1", "c2")]


def test_a_targeting_table_that_cannot_work(stocked, tmp_path):
    path = tmp_path / "pairs.csv"
    for content, said in (
        ("product_id\nP1\n", "lacks the column 'cohort_id'"),
        ("product_id,cohort_id\nP1,c9\n", "names the cohort 'c9'"),
        ("product_id,cohort_id\ngone,c1\n", "names no usable product"),
    ):
        path.write_text(content)
        with pytest.raises(ConfigError, match=said):
            wanted(stocked, Targeting(rule="table", table_uri=str(path)))
    with pytest.raises(ConfigError, match="no targeting table"):
        wanted(stocked, Targeting(rule="table", table_uri=str(tmp_path / "none.csv")))


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"context": "x" * 5000}, "has 5005 characters; it should have 1 to 1000"),
        ({"query": "a\x07bell"}, "control characters"),
        ({"query": "", "context": ""}, "has 0 characters"),
    ],
)
def test_a_cohort_text_that_cannot_be_used_is_one_sentence(stocked, bad, said):
    add_cohort(stocked, **bad)
    with pytest.raises(ConfigError, match=said):
        wanted(stocked)
