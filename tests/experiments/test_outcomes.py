import time
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pap
import pytest

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.contracts.naming import digest
from adbooster.experiments import outcomes
from adbooster.experiments.outcomes import COLUMNS, NEEDED
from adbooster.storage import tables
from tests.conftest import row

TODAY = date(2026, 11, 30)
HEAD = "creative_id,day,impressions,clicks,conversions,propensity\n"
NO_CHANCE = ("", "0", "-0.5", "1.5", "nan")
GOOD = "a,2026-11-01,100,5,1,0.5\nb,2026-11-01,80,2,0,1\n"


def known(*names):
    rows = [
        row(schema.SHOWN, creative_id=n, product_id=f"P{n}", cohort_id="c", family="f", control=False) for n in names
    ]
    return pa.Table.from_pylist(rows, schema.SHOWN)


def read(tmp_path, text, name="o.csv"):
    (tmp_path / name).write_text(text)
    return outcomes.read(str(tmp_path / name))


def joined(tmp_path, text, *names, share=0.01):
    return outcomes.join(read(tmp_path, text), known(*(names or ("a", "b"))), "o.csv", share, TODAY)


def test_csv_and_parquet_are_read_alike(tmp_path):
    table = pa.table(
        {**dict.fromkeys(NEEDED.names), "creative_id": ["0123456789012345"], "day": ["2026-11-01"]}
        | {"impressions": [10], "clicks": [1], "conversions": [0]}
    )
    pap.write_table(table, tmp_path / "o.parquet")
    found = read(
        tmp_path, "day,creative_id,impressions,clicks,conversions,more\n2026-11-01,0123456789012345,10,1,0,x\n"
    )
    assert found.equals(outcomes.read(str(tmp_path / "o.parquet")))
    assert found.schema == COLUMNS
    assert found["channel"][0].as_py() is found["propensity"][0].as_py() is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("creative_id,day,clicks\na,d,1\n", "lacks the column 'impressions'"),
        ("creative_id,day,impressions,clicks,conversions\na,d,many,1,0\n", "cannot be read"),
        (
            "creative_id,day,impressions,clicks,conversions,channel,channel\na,d,1,1,0,x,y\n",
            "the column 'channel' twice",
        ),
        ("", "cannot be read"),
    ],
)
def test_a_table_that_cannot_work_is_a_sentence(tmp_path, content, said):
    with pytest.raises(ConfigError, match=said):
        read(tmp_path, content)
    with pytest.raises(ConfigError, match="no outcomes table"):
        outcomes.read(str(tmp_path / "gone.csv"))


@pytest.mark.parametrize(
    "name",
    [
        "user_id",
        "User ID",
        "email",
        "hashed_email",
        "ip",
        "IP-Address",
        "device_id",
        "gclid",
        "cookie",
        "phone",
        "name",
    ],
)
def test_a_column_of_people_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="aggregates by creative and day") as e:
        read(tmp_path, HEAD.strip() + f",{name}\na,2026-11-01,1,0,0,1,jane-4711\n")
    assert name in str(e.value)
    assert "jane" not in str(e.value)


@pytest.mark.parametrize("name", ["unique_users", "device", "campaign_name", "account", "cost"])
def test_columns_of_campaigns_are_passed_over(tmp_path, name):
    assert read(tmp_path, HEAD.strip() + f",{name}\na,2026-11-01,1,0,0,1,7\n").num_rows == 1


def test_addresses_of_people_are_refused_wherever_they_are(tmp_path):
    for text in (
        HEAD.strip() + ",note\na,2026-11-01,1,0,0,1,from jane@example.org\n",
        HEAD + "j.d@example.org,2026-11-01,1,0,0,1\n",
    ):
        with pytest.raises(ConfigError, match="holds e-mail addresses") as e:
            read(tmp_path, text)
        assert "example.org" not in str(e.value)


def test_several_rows_of_a_creative_and_day_are_no_aggregate(tmp_path):
    with pytest.raises(ConfigError, match="several rows of the creative 'a', 2026-11-01 and channel ''.*aggregates"):
        joined(tmp_path, HEAD + GOOD + "a,2026-11-01,1,0,0,0.5\n")
    head = HEAD.strip() + ",channel\n"
    found = joined(tmp_path, head + "a,2026-11-01,1,0,0,0.5,meta\na,2026-11-01,1,0,0,0.5,google\n")
    assert found.outcomes["channel"].to_pylist() == ["meta", "google"]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("b,2026-11-02,10,11,0,1", "first is row 3: creative_id 'b', day '2026-11-02', impressions 10, clicks 11"),
        ("b,2026-11-02,-1,0,0,1", "impressions -1"),
        ("b,2026-11-02,1000000000001,0,0,1", "impressions 1000000000001"),
        ("b,2026-02-31,10,1,0,1", "day '2026-02-31'"),
        ("b,2062-11-02,10,1,0,1", "day '2062-11-02'.*from 2000-01-01 to 2026-12-01"),
        ("b,2026-12-02,10,1,0,1", "day '2026-12-02'"),
        ("b,1970-01-01,10,1,0,1", "day '1970-01-01'"),
        *((f"b,2026-11-02,10,1,0,{value}", "row 3: .*propensity .*above 0 and at most 1") for value in NO_CHANCE),
        (",2026-11-02,10,1,0,1", "1 of 3 rows that cannot be"),
    ],
)
def test_more_than_a_few_impossible_rows_are_refused_and_a_few_left_out(tmp_path, bad, said):
    with pytest.raises(ConfigError, match=said):
        joined(tmp_path, HEAD + GOOD + bad + "\n")
    found = joined(tmp_path, HEAD + GOOD + bad + "\n", share=0.5)
    assert (found.rows, found.broken, found.outcomes.num_rows) == (3, 1, 2)


def test_outcomes_of_tomorrow_are_taken(tmp_path):
    """It is another day elsewhere."""
    assert joined(tmp_path, HEAD + GOOD + "b,2026-12-01,10,1,0,1\n").broken == 0


@pytest.mark.parametrize("first", ["", "meta"])
def test_totals_and_channels_of_a_day_replace_each_other(tmp_path, first):
    """Nothing is counted twice, and what was counted twice before is put right by the next file."""
    head = HEAD.strip() + ",channel\n"
    total = joined(tmp_path, HEAD + GOOD).outcomes
    parts = joined(tmp_path, head + "a,2026-11-01,60,3,1,0.5,meta\na,2026-11-01,40,2,0,0.5,google\n").outcomes
    held, given = (parts, total) if first else (total, parts)
    once = outcomes.merged(schema.OUTCOMES.empty_table(), held, "r1").outcomes
    found = outcomes.merged(once, given, "r2")
    of_a = found.outcomes.filter(pc.equal(found.outcomes["creative_id"], "a"))
    assert (pc.sum(of_a["impressions"]).as_py(), pc.sum(of_a["clicks"]).as_py()) == (100, 5)
    assert len(found.replaced) == (2 if first else 1)
    twice = outcomes.merged(pa.concat_tables([total, parts]), given, "r3")
    assert sorted(twice.outcomes["outcome_id"].to_pylist()) == sorted(found.outcomes["outcome_id"].to_pylist())
    other_day = joined(tmp_path, head + "a,2026-11-02,60,3,1,0.5,meta\n").outcomes
    assert not outcomes.merged(total, other_day, "r4").replaced
    assert not outcomes.merged(parts, parts.slice(0, 1), "r5").replaced


def test_replaced_totals_are_gone_from_the_table(root, tmp_path):
    total = joined(tmp_path, HEAD + GOOD).outcomes
    first = outcomes.merged(schema.OUTCOMES.empty_table(), total, "r1")
    outcomes.store(root, first, None, "r1")
    parts = joined(tmp_path, HEAD.strip() + ",channel\na,2026-11-01,60,3,1,0.5,meta\n").outcomes
    outcomes.store(root, outcomes.merged(first.outcomes, parts, "r2"), 0, "r2")
    stored = tables.read(root, "outcomes", ["creative_id", "channel"]).to_pylist()
    assert sorted((r["creative_id"], r["channel"]) for r in stored) == [("a", "meta"), ("b", "")]


def test_originals_are_no_creatives():
    """Neither those of held-out pairs nor those that are shown where there is no creative."""
    names = {"original": digest("original", "P", "c")[:16], "control": "x", "painted": "y", "unranked": "z"}
    rows = [
        row(schema.OUTCOMES, creative_id=names[n], product_id="P", cohort_id="c", control=n == "control", margin=m)
        for n, m in (("original", None), ("control", None), ("painted", 0.1), ("unranked", None))
    ]
    found = outcomes.of_creatives(pa.Table.from_pylist(rows, schema.OUTCOMES))
    assert found["creative_id"].to_pylist() == ["y", "z"]


def test_a_file_without_propensities_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="lacks the column 'propensity'"):
        joined(tmp_path, "creative_id,day,impressions,clicks,conversions\na,2026-11-01,100,5,1\n")


def test_outcomes_of_another_root_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="is of another root: 0 of its 2 creatives"):
        joined(tmp_path, HEAD + GOOD, "x")
    many = "".join(f"{i},2026-11-01,10,1,0,1\n" for i in range(12))
    with pytest.raises(ConfigError, match="5 of its 12 creatives"):
        joined(tmp_path, HEAD + many, *map(str, range(5)))
    found = joined(tmp_path, HEAD + many, *map(str, range(6)))
    assert (found.unknown, found.outcomes.num_rows) == (6, 6)
    assert joined(tmp_path, HEAD + GOOD, "a").unknown == 1, "of a few rows one that is known is enough"


def test_rows_carry_what_is_known_of_their_creatives(tmp_path):
    found = joined(tmp_path, HEAD + GOOD).outcomes
    schema.check(found, schema.OUTCOMES)
    first = found.to_pylist()[0]
    assert first["outcome_id"] == digest("a", "2026-11-01", "")
    assert (first["product_id"], first["family"], first["control"], first["day"]) == (
        "Pa",
        "f",
        False,
        date(2026, 11, 1),
    )
    assert (first["clicks"], first["propensity"]) == (5, 0.5)


def test_the_same_file_changes_nothing_and_a_corrected_count_replaces(tmp_path):
    given = joined(tmp_path, HEAD + GOOD).outcomes
    first = outcomes.merged(schema.OUTCOMES.empty_table(), given, "r1")
    assert (first.new, first.changes.num_rows) == (2, 2)
    assert outcomes.merged(first.outcomes, given, "r2").changes.num_rows == 0
    facts = known("a", "b").set_column(7, "arm", pa.array(["e=late", "e=late"]))
    again = outcomes.join(read(tmp_path, HEAD + GOOD.replace("100,5", "100,6")), facts, "o.csv", 0, TODAY)
    third = outcomes.merged(first.outcomes, again.outcomes, "r3")
    assert (third.new, third.changes["creative_id"].to_pylist(), third.outcomes.num_rows) == (0, ["a"], 2)
    corrected = third.changes.to_pylist()[0]
    assert (corrected["clicks"], corrected["run_id"], corrected["arm"]) == (6, "r3", None)


def test_many_rows_are_joined_in_columns():
    n, creatives = 250_000, 10_000
    names = np.char.add("x", np.arange(creatives).astype(str))
    table = pa.table(
        {
            "creative_id": np.tile(names, n // creatives),
            "day": np.repeat(np.char.add("2026-11-", np.char.zfill(np.arange(1, 26).astype(str), 2)), creatives),
            "impressions": np.full(n, 100),
            "clicks": np.full(n, 3),
            "conversions": np.zeros(n, int),
            "channel": np.full(n, "meta"),
            "propensity": np.full(n, 0.5),
        }
    ).cast(COLUMNS)
    facts = known("x").take(pa.array(np.zeros(creatives, int)))
    facts = facts.set_column(0, "creative_id", pa.array(names)).combine_chunks()
    started = time.process_time()
    found = outcomes.join(table, facts, "o.csv", 0.01, TODAY)
    merged = outcomes.merged(found.outcomes, found.outcomes, "r")
    assert time.process_time() - started < 10
    assert (found.outcomes.num_rows, merged.changes.num_rows) == (n, 0)
