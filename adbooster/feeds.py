"""Product feeds to rows: one row a picture of a product."""

import gzip
from collections import Counter
from collections.abc import Iterator

import fsspec
import pyarrow as pa
import pyarrow.csv as pac
import pyarrow.parquet as pap
from fsspec.core import url_to_fs

from adbooster import schema
from adbooster.errors import ConfigError
from adbooster.prompts import clean
from adbooster.recipe import digest

NEEDED = ("id", "title", "image_link")
MAX_LENGTH = {"id": 100, "title": 200}


def read_feed(feed_uri: str) -> pa.Table:
    """A Google Merchant feed (tab-delimited, gzip or not, or Parquet with the same columns), all columns as text.

    raises  ConfigError if there is no such file, it is not a feed, or a needed column is missing
    """
    fs, path = url_to_fs(feed_uri)
    if not fs.exists(path):
        raise ConfigError(f"there is no feed at {feed_uri}")
    try:
        table = _read_parquet(fs, path) if path.endswith(".parquet") else _read_tsv(fs, path)
    except (pa.ArrowInvalid, gzip.BadGzipFile, UnicodeDecodeError) as e:
        raise ConfigError(f"{feed_uri} is not a feed that can be read (tab-delimited text or Parquet): {e}") from e
    missing = [name for name in NEEDED if name not in table.column_names]
    if missing:
        found = ", ".join(c[:30] for c in table.column_names[:8])
        raise ConfigError(f"the feed {feed_uri} lacks the column {missing[0]!r}; it starts with the columns {found}")
    return table


def _read_parquet(fs: fsspec.AbstractFileSystem, path: str) -> pa.Table:
    with fs.open(path) as f:
        table = pap.read_table(f)
    return pa.table({name: table[name].cast(pa.string()) for name in table.column_names})


def _read_tsv(fs: fsspec.AbstractFileSystem, path: str) -> pa.Table:
    with fs.open(path) as raw:
        stream = gzip.open(raw) if path.endswith(".gz") else raw
        names = stream.readline().decode("utf-8-sig").rstrip("\r\n").split("\t")
        return pac.read_csv(
            stream,
            read_options=pac.ReadOptions(column_names=names),
            parse_options=pac.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=pac.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )


def pictures(feed: pa.Table) -> pa.Table:
    """One row a picture (schema.PICTURES); products without an id, or with one seen before, are rejected rows."""
    rows = list(_picture_rows(feed))
    return pa.Table.from_pylist(rows, schema.PICTURES)


def _picture_rows(feed: pa.Table) -> Iterator[dict]:
    seen: Counter[str] = Counter()
    for number, product in enumerate(feed.to_pylist()):
        product_id = clean(product["id"] or "")[: MAX_LENGTH["id"]]
        seen[product_id] += 1
        reject = "missing_id" if not product_id else "duplicate_id" if seen[product_id] > 1 else None
        shared = {
            "product_id": product_id or f"(row {number + 1})",
            "title": clean(product["title"] or "")[: MAX_LENGTH["title"]],
            "category": clean(product.get("google_product_category") or product.get("product_type") or ""),
            "brand": clean(product.get("brand") or ""),
        }
        if reject:  # a name of its own, so that the row is kept beside the one it repeats
            yield shared | _picture("main", product["image_link"] or "", f"{shared['product_id']}\x1f{number}", reject)
            continue
        yield shared | _picture("main", product["image_link"] or "", product_id, None)
        for role in ("additional", "lifestyle"):
            for link in dict.fromkeys(_links(product.get(f"{role}_image_link"))):
                yield shared | _picture(role, link, product_id, None)


def _links(cell: str | None) -> list[str]:
    return [link.strip() for link in (cell or "").split(",") if link.strip()]


def _picture(role: str, link: str, owner: str, reject: str | None) -> dict:
    return {
        "sample_id": digest(owner, role, link if role != "main" else "")[:32],
        "role": role,
        "image_uri": link,
        "reject": reject or (None if link else "missing_image"),
    }
