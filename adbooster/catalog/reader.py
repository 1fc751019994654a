"""A feed at an address, a file or a folder of files, as a stream of rows."""

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import fsspec
from fsspec.core import url_to_fs

from adbooster.catalog.formats import HEAD_BYTES, PICTURES, Detected, FeedFormat, Fields, Row, detect
from adbooster.catalog.parsers import CHUNK_BYTES, Unzipped, rows
from adbooster.contracts.errors import ConfigError


class File(NamedTuple):
    """One file of a feed: what it is, and its rows, which are read as they are asked for."""

    kind: Detected
    rows: Iterator[Row]


def read(
    feed_uri: str, feed_format: FeedFormat = "auto", columns: dict[str, str] | None = None, fields: Fields = PICTURES
) -> Iterator[File]:
    """The files of a feed; the rows of one are there until the next is asked for.

    A folder is read file by file, in the order of names; what lies behind http(s) or S3 is copied to a local file first.
    columns  our name: the feed's name, for feeds with names of their own
    raises   ConfigError if there is no such feed, it is not a feed of the format, is cut short, or lacks a needed column
    """
    for uri in _files(feed_uri):
        with _opened(uri) as raw:
            kind = detect(raw.peek(HEAD_BYTES)[:HEAD_BYTES], feed_format, uri)
            stream = io.BufferedReader(Unzipped(raw), CHUNK_BYTES) if kind.gzipped else raw
            yield File(kind, rows(stream, kind, columns or {}, uri, fields))


def check(
    feed_uri: str, feed_format: FeedFormat = "auto", columns: dict[str, str] | None = None, fields: Fields = PICTURES
) -> str:
    """A feed's format, detected from its first rows; raises ConfigError as `read` does, as far as these rows show."""
    uri = _files(feed_uri)[0]
    fs, path = url_to_fs(uri)
    head = _head(fs, path)
    kind = detect(head, feed_format, uri)
    if kind.format == "parquet":
        with _opened(uri) as raw:
            next(rows(raw, kind, columns or {}, uri, fields), None)
        return kind.format
    whole = len(head) < HEAD_BYTES
    stream = io.BytesIO(head)
    text = io.BufferedReader(Unzipped(stream) if kind.gzipped else stream, CHUNK_BYTES)
    try:
        for _ in rows(text, kind, columns or {}, uri, fields):
            pass
    except ConfigError as e:
        if whole or e.__cause__ is None:  # a head ends in the middle of something
            raise
    return kind.format


def _files(feed_uri: str) -> list[str]:
    """The feed itself, or the files of a folder such as Spark leaves."""
    fs, path = url_to_fs(feed_uri)
    if not fs.exists(path):
        raise ConfigError(f"there is no feed at {feed_uri}")
    if _is_http(feed_uri) or not fs.isdir(path):
        return [feed_uri]
    sizes = {p: about["size"] for p, about in fs.find(path, detail=True).items() if about["type"] == "file"}
    names = sorted(p for p, size in sizes.items() if size and not p.rsplit("/", 1)[-1].startswith((".", "_")))
    if not names:
        raise ConfigError(f"there is no feed at {feed_uri}: the folder is empty")
    return [fs.unstrip_protocol(name) for name in names]


def _is_http(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _head(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
    options: dict[str, Any] = {"block_size": 0} if _is_http(path) else {}
    with fs.open(path, **options) as f:
        return cast(bytes, f.read(HEAD_BYTES))


@contextmanager
def _opened(uri: str) -> Iterator[Any]:
    """A local file; what lies elsewhere is copied first, so that one night reads one state of it."""
    fs, path = url_to_fs(uri)
    if "file" in fs.protocol:
        with io.BufferedReader(io.FileIO(path), HEAD_BYTES) as f:
            yield f
        return
    with tempfile.NamedTemporaryFile(prefix="adbooster-feed-") as copy:
        fs.get_file(path, copy.name)
        with io.BufferedReader(io.FileIO(copy.name), HEAD_BYTES) as f:
            yield f
