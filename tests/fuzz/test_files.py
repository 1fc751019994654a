"""Whatever people write into config files, marks, outcomes, sheets, targeting, rules, cohorts and logs is used or refused."""

import json
import os
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pap
import yaml
from hypothesis import strategies as st

from adbooster.cli.load import load
from adbooster.cohorts.cohort_file import read_cohorts
from adbooster.cohorts.config import Interests
from adbooster.cohorts.interest_log import SALT, InterestLog
from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.evaluate import blind_sheet, outcomes
from adbooster.evaluate.config import Outcomes
from adbooster.experiments.outcomes import NEEDED
from adbooster.experiments.outcomes import read as read_outcomes
from adbooster.generate import marks
from adbooster.night.config import NightlyConfig
from adbooster.painting.brand_rules import BrandRules, Judgement, read_brand_rules
from adbooster.painting.requests import PRODUCTS
from adbooster.painting.targeting import read_targeting
from adbooster.tiny import world
from tests.conftest import row
from tests.evaluate.test_outcomes import creatives
from tests.fuzz.conftest import damaged, fuzz, texts, values

DEMO = yaml.safe_load((Path(world.__file__).parent / "demo.yaml").read_text())


def used_or_refused(read: Callable[[str], object], content: bytes, name: str) -> object:
    """What `read` gives for a file, or None where it is refused with one sentence; anything else fails."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            return read(str(path))
        except ConfigError as e:
            said = str(e)
    assert len(said) < 5000
    return None


@st.composite
def changed(draw: st.DrawFn, value: object) -> object:
    """A settings tree with some of its values replaced."""
    if isinstance(value, dict) and draw(st.integers(0, 9)):
        out = {k: draw(changed(v)) for k, v in value.items() if draw(st.integers(0, 30))}
        return out | (draw(st.dictionaries(texts, values, max_size=2)) if not draw(st.integers(0, 9)) else {})
    return value if draw(st.integers(0, 12)) else draw(values)


def as_yaml(value: object) -> bytes:
    return json.dumps(value).encode()


YAML_CORPUS = [
    b"&a [*a]",
    b"a: &a [x,x,x,x,x,x,x,x,x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in b"bcdefghi"),
    b"prepare: {rules: 2026-99-99}",
    b"\xff\xfe",
    b"[" * 3000,
    b"? [a]\n: b\n",
    b"root_uri: !!python/object:os.system x",
    b"root_uri: .inf\nrun_id: 0x" + b"f" * 5000,
    b"prepare: []\nfinetune: 3\n",
    b"1: 2\n",  # a name that is no text
]


@fuzz(damaged(st.one_of(changed(DEMO).map(as_yaml), texts.map(lambda t: t.encode(errors="replace")))), YAML_CORPUS)
def test_config_files(content):
    used_or_refused(lambda path: load(NightlyConfig, ["--config", path]), content, "night.yaml")


cohorts = st.lists(
    st.fixed_dictionaries({"id": texts, "query": texts}, optional=dict.fromkeys(("context", "family", "size"), values)),
    max_size=4,
)


@fuzz(damaged(st.one_of(cohorts, values).map(as_yaml)), YAML_CORPUS)
def test_cohort_files(content):
    used_or_refused(read_cohorts, content, "cohorts.yaml")


brand_words = st.lists(st.one_of(texts, st.just("gun"), values), max_size=3)
brand_part = st.dictionaries(
    st.sampled_from(["categories", "words", "families", "ids", "brands", "forbidden", "required", "from", "to"]),
    st.one_of(brand_words, st.sampled_from(["12-26", "02-30"]), values),
    max_size=3,
)
brand_rule = st.builds(
    lambda own, parts: own | parts | {"name": "n"},
    brand_part,
    st.dictionaries(st.sampled_from(["product", "cohort"]), brand_part, max_size=2),
)
brand_files = st.dictionaries(
    st.sampled_from(["never", "exclusions", "scenes", "dates"]), st.lists(brand_rule, max_size=2), max_size=3
)


@fuzz(damaged(st.one_of(brand_files, values).map(as_yaml)), YAML_CORPUS)
def test_brand_rules(content):
    rules = used_or_refused(read_brand_rules, content, "brand_rules.yaml")
    if isinstance(rules, BrandRules):
        goods = pa.Table.from_pylist([row(PRODUCTS, product_id="P", title="a gun", caption="")], PRODUCTS)
        users = pa.Table.from_pylist([row(schema.COHORTS, cohort_id="c", query="gun")], schema.COHORTS)
        first = pa.array([0])
        judgement = Judgement(rules, users, date(2028, 2, 29))
        judgement.forbidden(goods, first, first)
        json.dumps(judgement.figures().model_dump(mode="json")).encode()


creative_ids = st.one_of(st.sampled_from(["0123456789abcdef", "a", ""]), texts)
mark = st.fixed_dictionaries(
    {"creative_id": creative_ids, "mark": st.one_of(st.sampled_from(["approved", "rejected", "cleared"]), values)},
    optional=dict.fromkeys(("request_id", "product_id", "cohort_id", "placement", "sha256"), values),
)
marks_files = st.fixed_dictionaries(
    {"format": st.just("adbooster-marks-1"), "marks": st.lists(mark, max_size=4)},
    optional={"by": values, "exported_at": values},
)


@fuzz(
    damaged(st.one_of(marks_files, values).map(lambda v: json.dumps(v).encode())),
    [b"[" * 100_000, b'{"format": "adbooster-marks-1", "marks": ' + b'{"a":' * 100_000, b"NaN", b"9" * 5000],
)
def test_marks(content):
    for found in used_or_refused(marks.read, content, "marks.json") or []:
        assert found.mark in ("approved", "rejected", "cleared")
        json.dumps(found.model_dump()).encode()


def csv_of(header: list[str], rows: list[list]) -> bytes:
    lines = [header, *rows]
    return "\n".join(",".join(str(cell) for cell in line) for line in lines).encode(errors="replace")


cells = st.one_of(st.integers(-5, 10**20), st.floats(), texts)
outcome_rows = st.lists(st.tuples(creative_ids, texts, cells, cells, cells).map(list), max_size=5)
OUTCOME_NAMES = st.permutations([*NEEDED.names, "creative_id"]).map(lambda names: names[:5])


def outcomes_parquet(rows: list[list]) -> bytes:
    columns = {
        name: [str(row[i]).encode(errors="replace").decode() for row in rows] for i, name in enumerate(NEEDED.names)
    }
    sink = pa.BufferOutputStream()
    pap.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


@fuzz(
    damaged(
        st.one_of(
            st.builds(csv_of, OUTCOME_NAMES, outcome_rows),
            st.builds(csv_of, st.just(NEEDED.names), outcome_rows),
            outcome_rows.map(outcomes_parquet),
        )
    ),
    [
        csv_of(NEEDED.names, [["a", "d", 2**62, 1, 0], ["a", "e", 2**62, 1, 0]]),
        b"",
        b"\0" * 50,
        b'creative_id,"',
    ],
)
def test_outcomes(content):
    live = creatives(("a", "c1", 0.1), ("0123456789abcdef", "c1", 0.2))
    for name in ("o.csv", "o.parquet"):
        table = used_or_refused(read_outcomes, content, name)
        if isinstance(table, pa.Table):
            found = outcomes.join(table, live, Outcomes())
            assert found.live + found.unknown + found.broken + found.duplicates == found.rows
            outcomes.figures(found, Outcomes())


@fuzz(
    damaged(
        st.builds(csv_of, st.just(["product_id", "cohort_id"]), st.lists(st.tuples(texts, texts).map(list), max_size=5))
    ),
    [b"", b"product_id,cohort_id,product_id\na,b,c\n", b"\xff\xfe\0", b"\x80uct_id,cohort_id\n,"],
)
def test_targeting(content):
    for name in ("t.csv", "t.parquet"):
        used_or_refused(read_targeting, content, name)


sheet_rows = st.lists(
    st.tuples(cells, texts, st.sampled_from(["left", "right", "same", "", "x"])).map(list), max_size=4
)
KEY = [
    {
        "pair": 1,
        "creative_side": "left",
        "creative_id": "c",
        "product_id": "p",
        "cohort_id": "k",
        "family": "f",
        "against": "neutral",
    }
]


@fuzz(
    st.tuples(
        damaged(st.builds(csv_of, st.just(["pair", "rater", "choice"]), sheet_rows)),
        damaged(st.one_of(st.just(KEY), values).map(as_yaml)),
    ),
    [("pair,rater,choice\n\u00b2,a,left\n".encode(), as_yaml(KEY)), (b'pair,rater,choice\n"', b"[" * 100_000)],
)
def test_blind_sheets(contents):
    sheet, key = (content.decode(errors="replace") for content in contents)
    used_or_refused(lambda _: blind_sheet.score({"sheet.csv": sheet}, key), b"", "sheet.csv")


log_rows = st.lists(
    st.fixed_dictionaries(
        {"user_id": cells, "query": texts}, optional=dict.fromkeys(("context", "weight", "timestamp"), cells)
    ),
    min_size=1,
    max_size=5,
)
LOG_NAMES = ["user_id", "query", "context", "weight", "timestamp"]


def log_csv(rows: list[dict]) -> bytes:
    return csv_of(LOG_NAMES, [[row.get(name, "") for name in LOG_NAMES] for row in rows])


def log_jsonl(rows: list[dict]) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def load_log(path: str) -> int:
    with InterestLog(path, Interests(memory_gib=0.2)) as log:
        log.check(1)
        log.load()
        assert sum(log.dropped.values()) <= log.rows
        _, _, shares = log.shares(0, log.users)
        assert abs(shares.sum() - log.users) < 1e-3
        assert all(len(name) == 32 for some in log.hashes() for name in some)
        return log.users


@fuzz(
    damaged(st.one_of(log_rows.map(log_csv), log_rows.map(log_jsonl))),
    [b"", b"user_id,query\n", b"\0", b"{", b"user_id,query,timestamp\n0,?,inf", b"x" * 50_000 + b"\n1"],
)
def test_interest_logs(content):
    os.environ[SALT] = "a salt"
    for name in ("log.csv", "log.jsonl", "log.parquet"):
        used_or_refused(load_log, content, name)
