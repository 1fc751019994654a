import gzip
import io
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pap
import pytest

from adbooster.catalog import reader
from adbooster.contracts.errors import ConfigError
from tests.whole_feed import WholeFeed, whole_feed

HEAD = "id\ttitle\timage_link\tadditional_image_link\tlifestyle_image_link\n"
RSS = """<?xml version="1.0" encoding="UTF-8"?>
<rss version="2.0" xmlns:g="http://base.google.com/ns/1.0"><channel><title>Shop</title>
<item><title>plain title</title><g:id>A</g:id><g:title>A &amp; shoe</g:title><g:image_link>https://x.example/a,1.png</g:image_link>
<g:additional_image_link>https://x.example/b.png</g:additional_image_link>
<g:additional_image_link>https://x.example/c.png</g:additional_image_link><g:brand>Acme</g:brand>
<g:lifestyle_image_link>https://x.example/d.png</g:lifestyle_image_link></item>
<item><g:id>B</g:id><title><![CDATA[B <b>coat</b>]]></title><g:image_link>https://x.example/e.png</g:image_link></item>
</channel></rss>"""
ATOM = """<feed xmlns="http://www.w3.org/2005/Atom" xmlns:g="http://base.google.com/ns/1.0"><title>Shop</title><id>tag:shop</id>
<entry><id>tag:not-this</id><title>A shoe</title><g:id>A</g:id><g:image_link>https://x.example/a.png</g:image_link></entry></feed>"""


def read(tmp_path, content, name="feed.tsv", **how) -> WholeFeed:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    reader.check(str(path), **how)
    return whole_feed(str(path), **how)


def rows(tmp_path, body: str) -> list[dict]:
    return read(tmp_path, HEAD + body).pictures.to_pylist()


def links(feed: WholeFeed) -> list[tuple]:
    return [(r["product_id"], r["role"], r["image_uri"]) for r in feed.pictures.to_pylist()]


def test_one_row_a_picture(tmp_path):
    found = rows(tmp_path, "A\tA shoe\ta.png\tb.png, c.png\td.png\n")
    assert [(r["role"], r["image_uri"]) for r in found] == [
        ("main", "a.png"),
        ("additional", "b.png"),
        ("additional", "c.png"),
        ("lifestyle", "d.png"),
    ]
    assert len({r["sample_id"] for r in found}) == 4


def test_bad_rows_are_rows(tmp_path):
    long = "x" * 3000
    found = rows(
        tmp_path,
        "\tno id\ta.png\t\t\nA\tfirst\ta.png\t\t\nA\tagain\tb.png\t\t\nB\tno picture\t\t\t\n"
        f"{long}\tlong id\ta.png\t\t\nC\t{long}\ta.png\t\t\nD\tlong link\t{long}\t\t\n"
        f"E\tone long link\ta.png\tb.png,{long}\t\nF\ttoo\tmany\tcells\there\tand\tthere\nG\tfew cells\ta.png\n",
    )
    assert [r["reject"] for r in found] == [
        "missing_id",
        None,
        "duplicate_id",
        "missing_image",
        *["field_too_long"] * 3,
        None,
        None,
        "field_too_long",
        "malformed_row",
        None,
    ]
    assert len({r["sample_id"] for r in found}) == len(found)
    assert max(len(r[c]) for r in found for c in ("product_id", "title", "image_uri")) <= 2000


def test_bad_rows_keep_their_names_when_the_feed_shifts(tmp_path):
    """Or they would be retired and new every night."""
    before = rows(tmp_path, "\tno id\ta.png\nA\tfirst\ta.png\nA\tagain\tb.png\n")
    after = rows(tmp_path, "Z\tanother\tz.png\n\tno id\ta.png\nA\tfirst\ta.png\nA\tagain\tb.png\n")
    assert {r["sample_id"] for r in before} < {r["sample_id"] for r in after}


def test_a_new_main_photo_is_the_same_sample(tmp_path):
    before, after = rows(tmp_path, "A\tA\ta.png\t\t\n"), rows(tmp_path, "A\tA\tnew.png\t\t\n")
    assert before[0]["sample_id"] == after[0]["sample_id"]


def test_quotes_and_control_characters_in_titles(tmp_path):
    found = rows(tmp_path, 'A\t5" <b>shoe\x07</b>\ta.png\t\t\n')
    assert found[0]["title"] == '5" <b>shoe</b>'


def parquet() -> bytes:
    out = io.BytesIO()
    more = pa.array([["b.png", "c.png"]], pa.list_(pa.string()))
    table = {"id": [7.0], "title": ["A shoe"], "image_link": ["a.png"], "additional_image_link": more}
    pap.write_table(pa.table(table), out)
    return out.getvalue()


JSONL = json.dumps({"offerId": 7, "title": "A shoe", "imageLink": "a.png", "additionalImageLinks": ["b.png", "c.png"]})
PLAIN = "id,title,image_link,additional_image_link\n7,A shoe,a.png,"
META = "id,title,image[0].url,image[0].tag[0],image[1].url,image[2].url\n7,A shoe,a.png,front,b.png,c.png\n"


@pytest.mark.parametrize(
    ("content", "format"),
    [
        ("id\ttitle\timage link\tg:additional_image_link\n7\tA shoe\ta.png\tb.png,c.png\n", "google_tsv"),
        (PLAIN + '"b.png,c.png"\n', "csv"),
        (PLAIN.replace(",", ";") + "b.png,c.png\n", "csv"),
        ("\ufeff" + PLAIN + '"b.png,c.png"\r\n', "csv"),
        ((PLAIN + '"b.png,c.png"\n').encode("utf-16"), "csv"),
        (META, "meta_csv"),
        (META.replace(",", "\t"), "meta_tsv"),
        (JSONL + "\n", "jsonl"),
        (parquet(), "parquet"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_every_format_is_told_from_its_bytes_and_reads_alike(tmp_path, content, format, zipped):
    content = content.encode() if isinstance(content, str) else content
    if zipped and format == "parquet":
        with pytest.raises(ConfigError, match="Parquet compresses itself"):
            read(tmp_path, gzip.compress(content))
        return
    found = read(tmp_path, gzip.compress(content) if zipped else content, "feed.whatever")
    assert (found.format, found.rows) == (format, 1)
    assert links(found) == [("7", "main", "a.png"), ("7", "additional", "b.png"), ("7", "additional", "c.png")]


def test_google_xml_in_both_kinds(tmp_path):
    rss = read(tmp_path, RSS)
    assert rss.format == "google_xml"
    assert links(rss) == [
        ("A", "main", "https://x.example/a,1.png"),
        ("A", "additional", "https://x.example/b.png"),
        ("A", "additional", "https://x.example/c.png"),
        ("A", "lifestyle", "https://x.example/d.png"),
        ("B", "main", "https://x.example/e.png"),
    ]
    assert [rss.pictures[c][0].as_py() for c in ("title", "brand")] == ["A & shoe", "Acme"]
    assert rss.pictures["title"][4].as_py() == "B <b>coat</b>"
    assert links(read(tmp_path, gzip.compress(ATOM.encode()))) == [("A", "main", "https://x.example/a.png")]


def test_a_column_mapping(tmp_path):
    content = "sku,name,photo,id\nA,A shoe,a.png,not this\n"
    mapping = {"id": "sku", "title": "name", "image_link": "photo"}
    assert links(read(tmp_path, content, columns=mapping)) == [("A", "main", "a.png")]
    as_json = json.dumps(dict(zip(*[line.split(",") for line in content.splitlines()], strict=True)))
    assert links(read(tmp_path, as_json, columns=mapping)) == [("A", "main", "a.png")]
    with pytest.raises(ConfigError, match="lacks the column 'image_link' \\(as 'foto'\\)"):
        read(tmp_path, content, columns=mapping | {"image_link": "foto"})
    with pytest.raises(ConfigError, match="columns maps 'picture', which no feed needs"):
        read(tmp_path, content, columns={"picture": "photo"})


def test_a_folder_of_files(tmp_path):
    (tmp_path / "feed").mkdir()
    for n in range(2):
        (tmp_path / "feed" / f"part-{n}.csv").write_text(f"id,title,image_link\nP{n},x,a.png\nSAME,x,a.png\n")
    (tmp_path / "feed" / "_SUCCESS").write_text("")
    found = whole_feed(str(tmp_path / "feed"))
    assert found.pictures["product_id"].to_pylist() == ["P0", "SAME", "P1", "SAME"]
    assert found.pictures["reject"].to_pylist() == [None, None, None, "duplicate_id"]


def test_a_feed_on_s3(s3_root):
    import fsspec

    with fsspec.open(f"{s3_root}/feed.xml.gz", "wb") as f:
        f.write(gzip.compress(RSS.encode()))
    assert reader.check(f"{s3_root}/feed.xml.gz") == "google_xml"
    assert whole_feed(f"{s3_root}/feed.xml.gz").rows == 2


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("feed.tsv", b"id\ttitle\nA\tB\n", "lacks the column 'image_link'"),
        ("feed.tsv", b"\x89PNG\r\n\x1a\n\x00\x00", "feed"),
        ("feed.tsv", b"", "not a feed: it is empty"),
        ("feed.parquet", b"PAR1 not parquet", "not a feed"),
        ("feed.tsv.gz", b"\x1f\x8bnot gzip", "not a feed"),
        ("feed.csv.gz", gzip.compress((PLAIN + "\n").encode() * 9999)[:-900], "not a feed that can be read as csv"),
        ("feed.xml", RSS.encode()[:-60], "not a feed that can be read as google_xml"),
        ("feed.xml", b"<rss><channel><item><id>A</id></item></channel></rss>", "lacks the column 'title'"),
        ("feed.json", b'[{"id": 1}]', "JSON array"),
        ("feed.jsonl", b'{"id": 1}\n{"id": 2}\n', "lacks the column 'title'"),
        ("feed.zip", b"PK\x03\x04....", "zip archive"),
    ],
)
def test_a_feed_that_is_not_a_feed(tmp_path, name, content, says):
    with pytest.raises(ConfigError, match=says):
        read(tmp_path, content, name)


def test_no_feed_at_all():
    with pytest.raises(ConfigError, match="there is no feed at /nowhere"):
        whole_feed("/nowhere/feed.tsv")


def hostile(doctype: str, inside: str) -> str:
    return f"<!DOCTYPE rss {doctype}>" + RSS.split("?>")[1].replace("A &amp; shoe", inside)


@pytest.mark.parametrize("how", ["bomb", "file", "network", "dtd", "attribute"])
def test_hostile_xml_expands_nothing_and_asks_nobody(tmp_path, misbehaving, how):
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret")
    levels = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(9))
    content = {
        "bomb": hostile(f'[<!ENTITY l0 "ha">{levels}]', "&l9;"),
        "file": hostile(f'[<!ENTITY x SYSTEM "file://{secret}">]', "&x;"),
        "network": hostile(f'[<!ENTITY x SYSTEM "{misbehaving.url}/entity">]', "&x;"),
        "dtd": hostile(f'SYSTEM "{misbehaving.url}/feed.dtd"', "fine"),
        "attribute": hostile(f'[<!ENTITY l0 "ha">{levels}]', "fine").replace("<item>", '<item a="&l9;">'),
    }[how]
    tracemalloc.start()
    if how == "dtd":  # a DTD that nobody loads does no harm
        assert read(tmp_path, content).pictures["title"][0].as_py() == "fine"
    else:
        with pytest.raises(ConfigError, match="not a feed that can be read") as refused:
            read(tmp_path, content)
        assert "the secret" not in str(refused.value)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert misbehaving.asked == []


def test_a_feed_over_http(misbehaving):
    misbehaving.files["feed"] = gzip.compress(RSS.encode())
    uri = f"{misbehaving.url}/etag/feed"
    assert reader.check(uri) == "google_xml"
    assert whole_feed(uri).rows == 2
    with pytest.raises(ConfigError, match="there is no feed at"):
        reader.check(f"{misbehaving.url}/status/404")
