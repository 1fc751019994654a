"""Whatever a feed holds, it ends as rows, or as one sentence."""

import csv
import gzip
import io
import json
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from xml.sax.saxutils import escape

import pyarrow as pa
import pyarrow.parquet as pap
from hypothesis import strategies as st

from adbooster.catalog import reader
from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from tests.fuzz.conftest import damaged, fuzz, hard, texts, values
from tests.whole_feed import whole_feed

NAMES = ["id", "title", "image_link", "additional_image_link", "lifestyle_image_link", "brand", "product_type"]
ids = st.one_of(st.sampled_from(["A", "B", " A ", "\uff21", "A\u200f", ""]), texts)
links = st.one_of(st.sampled_from(["a.png", "https://x.example/a,1.png", "s3://b/../a.png", "a.png,b.png"]), texts)
products = st.lists(
    st.fixed_dictionaries({"id": ids, "title": texts, "image_link": links}, optional=dict.fromkeys(NAMES[3:], links)),
    min_size=1,
    max_size=6,
)
columns = st.permutations([*NAMES, "image[0].url", "image[1].url", "g:id", "offerId", "\u202eid"])


def delimited(rows: list[dict], header: list[str], separator: str) -> bytes:
    out = io.StringIO()
    quoting = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
    table = csv.writer(out, delimiter=separator, quoting=quoting, escapechar="\\", lineterminator="\n")
    table.writerow(header)
    table.writerows([row.get(name, "") for name in header] for row in rows)
    return out.getvalue().encode(errors="surrogatepass")


def xml(rows: list[dict], header: list[str], prefix: str) -> bytes:
    names = [name for name in header if name in NAMES]
    items = "".join(
        "<item>" + "".join(f"<{prefix}{n}>{escape(row[n])}</{prefix}{n}>" for n in names if n in row) + "</item>"
        for row in rows
    )
    head = '<rss xmlns:g="http://base.google.com/ns/1.0"><channel>'
    return f"{head}{items}</channel></rss>".encode(errors="surrogatepass")


def jsonl(rows: list[dict], odd: list) -> bytes:
    return "\n".join(json.dumps(row) for row in [*rows, *odd]).encode()


def parquet(rows: list[dict]) -> bytes:
    clean = [{n: row.get(n, "").encode(errors="replace").decode() for n in NAMES} for row in rows]
    out = io.BytesIO()
    pap.write_table(pa.Table.from_pylist(clean), out)
    return out.getvalue()


contents = st.one_of(
    st.builds(delimited, products, columns, st.sampled_from("\t,;|")),
    st.builds(xml, products, columns, st.sampled_from(["", "g:"])),
    st.builds(jsonl, products, st.lists(values, max_size=3)),
    st.builds(jsonl, st.lists(st.dictionaries(st.sampled_from(NAMES), values), min_size=1, max_size=4), st.just([])),
    st.builds(parquet, products),
    st.binary(max_size=200),
    st.lists(hard, max_size=6).map(lambda parts: "".join(parts).encode(errors="surrogatepass")),
)
files = st.builds(
    lambda content, zipped: gzip.compress(content) if zipped else content, damaged(contents), st.booleans()
)

CORPUS = [
    b"\xef\xbb\xbf",  # a byte order mark alone had no first line
    b'{"id": "A", "title": "t", "image_link": "\\ud800"}',  # half of a surrogate pair ended the job
    b'{"id": ' + b"[" * 900 + b"]" * 900 + b', "title": "t", "image_link": "a"}',
    b"<!-- c --><item><id>A</id><title>t</title><image_link>a</image_link></item>",  # a comment before the only element
    b"<rss><item><id>A</id><title>t</title><image><!-- c --><url>a</url></image></item></rss>",
    gzip.compress(gzip.compress(b"id\ttitle\timage_link\n")),
    b'id,title,image_link\n"' + b"x" * (1 << 20) + b"\n",
]


@fuzz(files, CORPUS)
def test_feeds(content):
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "feed"
        path.write_bytes(content)
        with suppress(ConfigError):
            feed = whole_feed(str(path))
            rows = feed.pictures.to_pylist()
            assert len({row["sample_id"] for row in rows}) == len(rows), "names are unique"
            assert all(row["reject"] in (None, *schema.REJECTS) for row in rows)
            assert all(len(row["product_id"]) <= 100 and len(row["image_uri"]) <= 2000 for row in rows)
            assert all(row["title"].isprintable() or " " in row["title"] for row in rows)
            whole = [row["product_id"] for row in rows if row["role"] == "main" and row["reject"] is None]
            assert len(set(whole)) == len(whole)
        with suppress(ConfigError):
            reader.check(str(path))
    assert time.monotonic() - started < 20
