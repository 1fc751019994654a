import gzip

import pyarrow as pa
import pyarrow.parquet as pap
import pytest

from adbooster import feeds
from adbooster.errors import ConfigError

HEAD = "id\ttitle\timage_link\tadditional_image_link\tlifestyle_image_link\n"


def rows(tmp_path, body: str) -> list[dict]:
    path = tmp_path / "feed.tsv"
    path.write_text(HEAD + body)
    return feeds.pictures(feeds.read_feed(str(path))).to_pylist()


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
    found = rows(tmp_path, "\tno id\ta.png\t\t\nA\tfirst\ta.png\t\t\nA\tagain\tb.png\t\t\nB\tno picture\t\t\t\n")
    assert [r["reject"] for r in found] == ["missing_id", None, "duplicate_id", "missing_image"]
    assert len({r["sample_id"] for r in found}) == 4


def test_a_new_main_photo_is_the_same_sample(tmp_path):
    before, after = rows(tmp_path, "A\tA\ta.png\t\t\n"), rows(tmp_path, "A\tA\tnew.png\t\t\n")
    assert before[0]["sample_id"] == after[0]["sample_id"]


def test_quotes_and_control_characters_in_titles(tmp_path):
    found = rows(tmp_path, 'A\t5" <b>shoe\x07</b>\ta.png\t\t\n')
    assert found[0]["title"] == '5" <b>shoe</b>'


def test_gzip_and_parquet_read_alike(tmp_path):
    text = HEAD + "A\tA shoe\ta.png\t\t\n"
    (tmp_path / "f.tsv.gz").write_bytes(gzip.compress(text.encode()))
    pap.write_table(pa.table({"id": ["A"], "title": ["A shoe"], "image_link": ["a.png"]}), tmp_path / "f.parquet")
    both = [feeds.pictures(feeds.read_feed(str(tmp_path / n))).to_pylist() for n in ("f.tsv.gz", "f.parquet")]
    assert both[0] == both[1]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("feed.tsv", b"id\ttitle\nA\tB\n", "lacks the column 'image_link'"),
        ("feed.tsv", b"\x89PNG\r\n\x1a\n\x00\x00", "feed"),
        ("feed.tsv", b"id\ttitle\timage_link\nA\tB\n", "not a feed"),
        ("feed.tsv", b"", "not a feed"),
        ("feed.parquet", b"not parquet", "not a feed"),
        ("feed.tsv.gz", b"not gzip", "not a feed"),
    ],
)
def test_a_feed_that_is_not_a_feed(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        feeds.read_feed(str(tmp_path / name))


def test_no_feed_at_all():
    with pytest.raises(ConfigError, match="there is no feed at /nowhere"):
        feeds.read_feed("/nowhere/feed.tsv")
