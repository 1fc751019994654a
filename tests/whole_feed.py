"""A feed small enough to hold as one table."""

from typing import NamedTuple

import pyarrow as pa

from adbooster.catalog.formats import FeedFormat
from adbooster.contracts import schema
from adbooster.prepare import feeds


class WholeFeed(NamedTuple):
    """The pictures of a feed (schema.PICTURES), and what is known of it."""

    pictures: pa.Table
    rows: int
    format: str
    notes: list[str]


def whole_feed(uri, feed_format: FeedFormat = "auto", columns=None) -> WholeFeed:
    tables = [schema.PICTURES.empty_table()]
    about = feeds.read(str(uri), feed_format, columns or {}, tables.append)
    return WholeFeed(pa.concat_tables(tables), about.rows, about.format, about.notes)
