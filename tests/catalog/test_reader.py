"""Feeds read for other fields than pictures: what is taken, what a feed must have, prices as APIs write them."""

import json

import pyarrow as pa
import pyarrow.parquet as pap
import pytest

from adbooster.catalog import reader
from adbooster.catalog.formats import Fields
from adbooster.contracts.errors import ConfigError

SOLD = Fields(("id", "link", "price", "description"), ("id", "price"), 10)


def found(path):
    return [row for file in reader.read(str(path), fields=SOLD) for row in file.rows]


def test_only_the_fields_that_are_asked_for_are_taken_and_as_long_as_asked_for(tmp_path):
    path = tmp_path / "feed.csv"
    path.write_text("id,title,image_link,price,description\n1,A,https://s/1.jpg,9 EUR,abcdefghijklm\n")
    assert found(path) == [{"id": "1", "price": "9 EUR", "description": "abcdefghij"}]
    pap.write_table(pa.table({"id": [1.0], "price": ["9 EUR"], "description": ["abcdefghijklm"]}), path)
    assert found(path) == [{"id": "1", "price": "9 EUR", "description": "abcdefghij"}]


@pytest.mark.parametrize(
    ("price", "text"),
    [
        ({"amountMicros": "9990000", "currencyCode": "EUR"}, "9.99 EUR"),
        ({"amountMicros": 15000000, "currencyCode": "JPY"}, "15.00 JPY"),
        ({"value": "9.5", "currency": "EUR"}, "9.5 EUR"),
        ("9 EUR", "9 EUR"),
    ],
)
def test_prices_of_googles_apis_are_texts(tmp_path, price, text):
    path = tmp_path / "feed.jsonl"
    path.write_text(json.dumps({"offerId": "1", "price": price}))
    assert [row["price"] for row in found(path)] == [text]


def test_an_atom_entrys_link_is_its_alternate(tmp_path):
    path = tmp_path / "feed.xml"
    links = '<link rel="self" href="s://self"/><link href="s://1"/><g:price>9 EUR</g:price>'
    path.write_text(
        '<feed xmlns="http://www.w3.org/2005/Atom" xmlns:g="http://base.google.com/ns/1.0">'
        f"<entry><g:id>1</g:id>{links}</entry></feed>"
    )
    assert found(path) == [{"id": "1", "link": "s://1", "price": "9 EUR"}]


@pytest.mark.parametrize("content", ["id,link\n1,https://s/1\n", '{"id": "1", "link": "https://s/1"}\n'])
def test_a_feed_without_a_needed_field_is_refused_before_it_is_read(tmp_path, content):
    path = tmp_path / "feed"
    path.write_text(content)
    with pytest.raises(ConfigError, match="lacks the column 'price'; it starts with the columns id, link"):
        reader.check(str(path), fields=SOLD)
    with pytest.raises(ConfigError, match="lacks the column 'price'"):
        found(path)


def test_the_files_of_a_folder_are_one_feed(tmp_path):
    for name in ("part-1", "part-0", "_SUCCESS"):
        (tmp_path / name).write_text(f"id\tprice\n{name}\t9 EUR\n")
    assert [row["id"] for row in found(tmp_path)] == ["part-0", "part-1"]
