"""Interest logs, from rows to each user's shares, without Ray."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pap
import pytest

from adbooster.cohorts.interest_log import InterestLog, Interests
from adbooster.contracts.errors import ConfigError

NOW = 1_790_000_000
DAY = 86400


@pytest.fixture(autouse=True)
def salt(monkeypatch):
    monkeypatch.setenv("ADBOOSTER_USER_SALT", "a salt")


def rows():
    return [
        {"user_id": "ann@shop", "query": "Boots", "context": "snow", "weight": 3, "timestamp": NOW},
        {"user_id": "ann@shop", "query": "boots ", "context": "snow", "weight": 4, "timestamp": NOW - 30 * DAY},
        {"user_id": "ann@shop", "query": "a hat", "context": "beach", "weight": 5, "timestamp": NOW},
        {"user_id": "bob@shop", "query": "a hat", "context": "beach", "weight": 1, "timestamp": NOW - 9000 * DAY},
        {"user_id": "bob@shop", "query": "", "context": "", "weight": 1, "timestamp": NOW},
        {"user_id": "", "query": "a hat", "context": "", "weight": 1, "timestamp": NOW},
        {"user_id": "eve@shop", "query": "a hat", "context": "", "weight": -1, "timestamp": NOW},
    ]


def write(folder, kind):
    folder.mkdir()
    table = pa.Table.from_pylist(rows())
    if kind == "parquet":
        stamps = pa.array([r["timestamp"] * 10**6 for r in rows()], pa.timestamp("us", tz="UTC"))
        pap.write_table(table.set_column(4, "timestamp", stamps), folder / "a.parquet")
    elif kind == "jsonl":
        (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows())))
    else:
        lines = [",".join(map(str, r.values())) for r in rows()]
        with gzip.open(folder / "a.csv.gz", "wt") as f:
            f.write("\n".join(["user_id,query,context,weight,timestamp", *lines[:4]]) + "\n")
        swapped = [",".join(map(str, reversed(r.values()))) for r in rows()[4:]]
        (folder / "b.csv").write_text("\n".join(["timestamp,weight,context,query,user_id", *swapped]) + "\n")
    return str(folder)


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_shares_decay_by_age_and_bad_rows_have_a_reason(tmp_path, kind):
    with InterestLog(write(tmp_path / "log", kind), Interests()) as log:
        log.check(2)
        log.load()
        assert log.texts == [("a hat", "beach"), ("boots", "snow")]
        assert (log.rows, log.users) == (7, 2)
        assert log.dropped == {"bad_weight": 1, "missing_text": 1, "missing_user": 1}
        user, text, share = log.shares(0, 2)
        found = {(int(u), int(t)): float(s) for u, t, s in zip(user, text, share, strict=True)}
        hashes = [h for some in log.hashes() for h in some]
        ann = next(u for u in (0, 1) if (u, 1) in found)
        assert found == {(ann, 0): 0.5, (ann, 1): 0.5, (1 - ann, 0): 1.0}, "3 + 4 / 2 of boots, 5 of hats"
        assert all(len(h) == 32 and "@" not in h for h in hashes)
        assert hashes == sorted(hashes)


def test_the_hash_is_hmac_and_another_salt_is_another_name(tmp_path, monkeypatch):
    import hashlib
    import hmac

    uri = write(tmp_path / "log", "csv")
    with InterestLog(uri, Interests()) as log:
        log.load()
        wanted = {hmac.new(b"a salt", u.encode(), hashlib.sha256).hexdigest()[:32] for u in ("ann@shop", "bob@shop")}
        assert set(next(log.hashes())) == wanted
    monkeypatch.setenv("ADBOOSTER_USER_SALT", "")
    with pytest.raises(ConfigError, match="ADBOOSTER_USER_SALT is empty"):
        InterestLog(uri, Interests())


def test_as_of_and_max_age(tmp_path):
    settings = Interests(as_of="2026-09-20", max_age_days=365)
    with InterestLog(write(tmp_path / "log", "jsonl"), settings) as log:
        log.load()
        assert log.dropped["after_as_of"] == 2
        assert log.dropped["too_old"] == 1
        assert log.texts == [("boots", "snow")]


def test_a_time_without_end_is_a_bad_row(tmp_path):
    """It made the shares of its user NaN."""
    path = tmp_path / "log.csv"
    path.write_text("user_id,query,timestamp\na,boots,inf\na,boots,-inf\na,boots,nan\nb,hat,1790000000\n")
    with InterestLog(str(path), Interests()) as log:
        log.load()
        assert (log.dropped, log.users) == ({"bad_timestamp": 3}, 1)
        assert log.shares(0, 1)[2].tolist() == [1.0]


@pytest.mark.parametrize(
    ("text", "settings", "says"),
    [
        ("user_id,weight\nu,1\n", {}, "has no text: neither 'query' nor 'context'"),
        ("user,query\nu,x\n", {}, "has no column 'user_id' for users; it has 'user', 'query'"),
        ("user_id,query\nu,x\n", {"context_column": "season"}, "has no column 'season'"),
        ("user_id,query\nu,\nv,  \n", {}, "no text in any row"),
        ("user_id,query\nsecret-user,x\n", {}, "k is 5 .* only 1 distinct texts"),
    ],
)
def test_a_log_that_cannot_work_is_one_sentence(tmp_path, text, settings, says):
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says), InterestLog(str(path), Interests(**settings)) as log:
        log.check(5)


def test_no_error_quotes_a_line_of_the_log(tmp_path):
    (tmp_path / "log.csv").write_text(
        'user_id,query,context\nann@shop,boots,snow\nbob@shop,"x\n' + "eve@shop,a,b,c,d\n" * 3
    )
    with InterestLog(str(tmp_path), Interests()) as log:
        log.load()
        assert log.users >= 1
        assert log.dropped.get("unreadable_line", 0) >= 1
    (tmp_path / "log.csv").unlink()
    (tmp_path / "log.parquet").write_bytes(b"ann@shop")
    with pytest.raises(ConfigError, match="cannot be read") as e, InterestLog(str(tmp_path), Interests()) as log:
        log.load()
    assert "ann@shop" not in str(e.value)


def test_a_log_in_object_storage(s3_root):
    from adbooster.storage.objects import Root

    root = Root(s3_root)
    sink = pa.BufferOutputStream()
    pap.write_table(pa.Table.from_pylist(rows()), sink)
    root.write("log/a.parquet", sink.getvalue().to_pybytes())
    with InterestLog(f"{s3_root}/log", Interests()) as log:
        log.load()
        assert log.users == 2
        assert np.isclose(log.shares(0, 2)[2].sum(), 2)
