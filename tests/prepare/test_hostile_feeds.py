"""Feeds made to stop, stall or fill a machine end as rows, or as one sentence, in bounded time and memory."""

import gzip
import json
import re
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pap
import pytest

from adbooster.catalog import parsers, reader
from adbooster.contracts.errors import ConfigError
from adbooster.prepare import feeds
from tests.whole_feed import whole_feed

HEAD = "id\ttitle\timage_link\tadditional_image_link\n"
CSV = HEAD.replace("\t", ",")
BEFORE, AFTER = "A\tA shoe\ta.png\t\n", "B\tA coat\tb.png\t\n"
RSS = '<rss xmlns:g="http://base.google.com/ns/1.0"><channel>%s</channel></rss>'
ITEM = "<item><g:id>%s</g:id><title>A shoe</title><g:image_link>a.png</g:image_link>%s</item>"
MIB = 1 << 20


def resident_mib(what: str) -> float:
    """VmRSS, or VmHWM (the largest since `clear_refs`), of this process."""
    return int(re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def rejects(path: Path, content: bytes | str, memory_mib: float = 150, seconds: float = 20, **how) -> list[tuple]:
    """(product_id, reject) of a feed's main pictures, read within these bounds."""
    if content:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    Path("/proc/self/clear_refs").write_text("5")
    before, started = resident_mib("VmRSS"), time.monotonic()
    reader.check(str(path), **how)
    feed = whole_feed(str(path), **how)
    assert time.monotonic() - started < seconds
    assert resident_mib("VmHWM") - before < memory_mib
    return [(r["product_id"], r["reject"]) for r in feed.pictures.to_pylist() if r["role"] == "main"]


def refused(path: Path, content: bytes | str, **bounds) -> str:
    with pytest.raises(ConfigError) as e:
        rejects(path, content, **bounds)
    return str(e.value)


def long_line(path: Path, before: str, after: str, size_mib: int) -> None:
    with path.open("w") as f:
        f.write(before)
        for _ in range(size_mib):
            f.write("x" * MIB)
        f.write(after)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (HEAD + BEFORE, "\n" + AFTER),
        (CSV + 'A,A shoe,a.png,\nX,"', '"\nB,A coat,b.png,\n'),
        *[
            (f'{json.dumps({"id": "A", "title": "a", "image_link": "a.png"})}\n{{"id": "', f'"}}\n{line}\n')
            for line in [json.dumps({"id": "B", "title": "b", "image_link": "b.png"})]
        ],
        (RSS.split("%s")[0] + ITEM % ("A", "") + "<item><x>", "</x></item>" + ITEM % ("B", "") + "</channel></rss>"),
    ],
    ids=["tsv", "csv", "jsonl", "xml"],
)
def test_one_line_of_a_gigabyte_is_one_bad_row(tmp_path, before, after):
    """A quarter of one, through memory for a twentieth of that; the row before and the one after are there."""
    long_line(tmp_path / "feed", before, after, 256)
    found = rejects(tmp_path / "feed", "", memory_mib=60, seconds=40)
    assert [found[0], found[-1]] == [("A", None), ("B", None)]
    assert {reject for _, reject in found[1:-1]} == {"malformed_row"}
    assert len(found) == 3


def test_a_header_without_an_end_is_one_sentence(tmp_path):
    long_line(tmp_path / "feed", "id\t", "", 64)
    assert "lacks the column 'title'" in refused(tmp_path / "feed", "", memory_mib=60)


def test_a_row_of_many_quoted_lines_ends(tmp_path):
    """Each cell is small and each line too; together they are one row without an end."""
    content = CSV + "A,A shoe,a.png,\n" + '"a\n",' * (MIB // 4) + "\nB,A coat,b.png,\n"
    found = rejects(tmp_path / "feed.csv", content)
    assert found[:2] == [("A", None), ("(row 2)", "malformed_row")]


@pytest.mark.parametrize("count", [10**5, 10**6])
def test_an_element_with_a_million_attributes_is_one_bad_row(tmp_path, count):
    wide = "<item " + " ".join(f'a{n}="x"' for n in range(count)) + "></item>"
    found = rejects(tmp_path / "feed.xml", RSS % (ITEM % ("A", "") + wide + ITEM % ("B", "")), 200)
    assert found == [("A", None), ("(row 2)", "malformed_row"), ("B", None)]


def test_a_million_elements_are_one_bad_row_inside_of_an_item_and_one_sentence_outside(tmp_path):
    many = "<a/>" * 10**6
    found = rejects(tmp_path / "feed.xml", RSS % (ITEM % ("A", "") + ITEM % ("X", many) + ITEM % ("B", "")))
    assert [reject for _, reject in found] == [None, "malformed_row", None]
    assert "not a feed that can be read" in refused(tmp_path / "feed.xml", RSS % (many + ITEM % ("A", "")))


def test_xml_in_utf_16_has_the_same_bounds(tmp_path):
    content = RSS % (ITEM % ("A", "") + ITEM % ("X", "<a/>" * 10**6) + ITEM % ("B", ""))
    found = rejects(tmp_path / "feed.xml", ('<?xml version="1.0" encoding="UTF-16"?>' + content).encode("utf-16"))
    assert [reject for _, reject in found] == [None, "malformed_row", None]


def test_comments_and_instructions_anywhere_are_passed_over(tmp_path):
    item = ITEM % ("A", "<!-- c --><?p i?><image><!-- c --><url>b.png</url></image>")
    assert rejects(tmp_path / "feed.xml", f"<!-- c -->{item.replace('g:', '')}<!-- d -->") == [("A", None)]


def test_gzip_of_gzip_and_gzip_bombs_are_one_sentence(tmp_path):
    twice = gzip.compress(gzip.compress((HEAD + BEFORE).encode()))
    assert "it is gzipped twice" in refused(tmp_path / "feed.gz", twice)
    zeros = gzip.compress(b"\0" * (64 * MIB)) * 8
    bomb = gzip.compress((HEAD + BEFORE).encode()) + zeros
    assert "unpacks to more than 200 times its size" in refused(tmp_path / "feed.gz", bomb)
    plain = gzip.compress((HEAD + "".join(f"{n}\tA shoe\ta.png\t\n" for n in range(50_000))).encode(), 9)
    assert len(rejects(tmp_path / "feed.gz", plain)) == 50_000


def test_a_hundred_thousand_more_pictures_of_one_product_are_cut(tmp_path):
    links = [f"https://x.example/{n}.png" for n in range(10**5)]
    as_json = json.dumps({"id": "A", "title": "a", "image_link": "a.png", "additional_image_link": links})
    few = json.dumps({"id": "B", "title": "b", "image_link": "b.png", "additional_image_link": links[:20_000]})
    content = f"{few}\n{as_json}\n"
    assert rejects(tmp_path / "feed.jsonl", content) == [("B", None), ("(row 2)", "malformed_row")]
    feed = whole_feed(str(tmp_path / "feed.jsonl"))
    assert feed.pictures.num_rows == 1 + feeds.MAX_PICTURES + 1 + 1
    assert feed.pictures["reject"].to_pylist().count("field_too_long") == 1


def test_parquet_that_unpacks_to_gigabytes(tmp_path, monkeypatch):
    """One title of 4 MB in fifty thousand rows: 200 GB if each row had its own."""
    n = 50_000
    titles = pa.DictionaryArray.from_arrays(pa.array([0] * n, pa.int32()), ["x" * (4 * MIB)])
    columns = {"id": [str(i) for i in range(n)], "title": titles, "image_link": ["a.png"] * n}
    pap.write_table(pa.table(columns), tmp_path / "feed.parquet", use_dictionary=["title"])
    assert (tmp_path / "feed.parquet").stat().st_size < 30 * MIB
    found = rejects(tmp_path / "feed.parquet", "", memory_mib=400, seconds=60)
    assert {reject for _, reject in found} == {"field_too_long"}
    monkeypatch.setattr(parsers, "MAX_COLUMN_VALUES", 10**5)
    links = pa.array([["b.png"] * 10**4] * 11, pa.list_(pa.string()))
    table = pa.table({"id": ["a"] * 11, "title": ["t"] * 11, "image_link": ["a"] * 11, "additional_image_link": links})
    pap.write_table(table, tmp_path / "wide.parquet")
    assert "in one row group" in refused(tmp_path / "wide.parquet", "")


@pytest.mark.parametrize(
    ("link", "reject"),
    [
        ("a\\ud800.png", "refused_address"),
        ("a\\u0000.png", "refused_address"),
        ("a\\u202egnp.exe", "refused_address"),
        ("a\\u200b.png", "refused_address"),
        ("\\u00fc b.png", None),
    ],
)
def test_hidden_characters_in_a_link(tmp_path, link, reject):
    content = f'{{"id": "A", "title": "a", "image_link": "{link}", "additional_image_link": ["{link}?"]}}\n'
    assert rejects(tmp_path / "feed.jsonl", content) == [("A", reject)]
    assert whole_feed(str(tmp_path / "feed.jsonl")).pictures["reject"].to_pylist() == [reject] * 2


def test_texts_lose_hidden_characters(tmp_path):
    hidden = "\\ud800\\u0000\\u202e\\u200f\\ufeff\\u0007"
    content = f'{{"id": "A{hidden}", "title": "{hidden}A shoe", "image_link": "a.png", "brand": "{hidden}"}}\n'
    assert rejects(tmp_path / "feed.jsonl", content) == [("A", None)]
    assert whole_feed(str(tmp_path / "feed.jsonl")).pictures.to_pylist()[0]["title"] == "A shoe"


def test_ids_that_look_alike_are_one(tmp_path):
    alike = ["caf\u00e9", "cafe\u0301", " caf\u00e9 ", "caf\u00e9\u200e", "ｃａｆé", "CAF\u00c9"]
    found = rejects(tmp_path / "feed.tsv", HEAD + "".join(f"{name}\tA shoe\ta.png\t\n" for name in alike))
    assert [reject for _, reject in found] == [None, *["duplicate_id"] * 4, None]


def test_deep_and_odd_json_is_a_bad_row(tmp_path):
    lines = [
        "[" * 100_000,
        '{"id": ' + "[" * 900 + "]" * 900 + "}",
        '{"image_link": ' + "[" * 900 + "1" + "]" * 900 + "}",
    ]
    lines += ["9" * 5000, '{"id": 1e999, "title": NaN, "image_link": {"url": {"url": 1}}}', "null", '"x"', "\ufeff{}"]
    good = json.dumps({"id": "A", "title": "a", "image_link": "a.png"})
    found = rejects(tmp_path / "feed.jsonl", "\n".join([good, *lines, good.replace("A", "B")]))
    assert [found[0], found[-1]] == [("A", None), ("B", None)]
    assert len(found) == len(lines) + 2


def test_names_without_end_are_not_remembered(tmp_path):
    content = "".join(
        json.dumps({"id": str(n), "title": "t", "image_link": "a", **{f"{n}-{i}": 1 for i in range(50)}}) + "\n"
        for n in range(10_000)
    )
    assert len(rejects(tmp_path / "feed.jsonl", content, memory_mib=60)) == 10_000


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbf", b"\xef\xbb\xbf\n", b"\xff\xfe", b"\xff\xfe\n\0", b"\0" * 99, b"\x1f\x8b"]
)
def test_next_to_nothing_is_one_sentence(tmp_path, content):
    assert "\n" not in refused(tmp_path / "feed", content)


def test_limits_are_the_libraries_too():
    import csv

    assert csv.field_size_limit() == parsers.MAX_ROW
