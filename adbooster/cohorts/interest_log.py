"""An interest log of any length to each user's interests: DuckDB on this machine's disk, users hashed when read."""

import hmac
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from adbooster.cohorts import interest_sql
from adbooster.cohorts.config import Interests
from adbooster.cohorts.interest_sql import quoted
from adbooster.contracts.errors import ConfigError
from adbooster.contracts.text import clean, interest
from adbooster.storage.objects import _filesystem

log = logging.getLogger(__name__)
SALT = "ADBOOSTER_USER_SALT"
SUFFIXES = {".parquet": "parquet", ".csv": "csv", ".csv.gz": "csv", ".jsonl": "jsonl", ".jsonl.gz": "jsonl"}
SUFFIXES |= {".ndjson": "jsonl", ".ndjson.gz": "jsonl"}
DAY_S = 86400


class InterestLog:
    """The log of one night on this machine's disk, until `close`. Users are numbered in the order of their hashes."""

    def __init__(self, uri: str, settings: Interests):
        self.uri, self.settings = uri, settings
        self.salt = user_salt()
        self.folder = tempfile.TemporaryDirectory(prefix="adb-interests-", dir=settings.scratch or None)
        self.db = duckdb.connect(
            str(Path(self.folder.name) / "log.duckdb"),
            config={"memory_limit": f"{settings.memory_gib * 1024:.0f}MiB", "temp_directory": self.folder.name},
        )
        self.db.execute("SET preserve_insertion_order = false; SET TimeZone = 'UTC'; SET enable_progress_bar = false")
        self.dropped: dict[str, int] = {}
        self.rows = self.users = 0
        self.texts: list[tuple[str, str]] = []

    def __enter__(self) -> "InterestLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.db.close()
        self.folder.cleanup()

    def check(self, texts: int) -> None:
        """raises ConfigError unless the log can be read, has its columns and at least `texts` distinct texts"""
        sources, texts_seen = self._sources(), set()
        for source, columns in sources:
            reader = self._run(
                f"SELECT {interest_sql.text(self.settings, 'query', columns)}, {interest_sql.text(self.settings, 'context', columns)} FROM {source}"
            )
            while rows := reader.fetchmany(10_000):
                texts_seen |= {(clean(q or ""), clean(c or "")) for q, c in rows} - {("", "")}
                if len(texts_seen) >= max(texts, 1):
                    return
        self._enough(len(texts_seen), texts)

    def load(self) -> None:
        """Read the log once; afterwards `texts` (query, context), `users` and the counts are set."""
        self.db.create_function(  # pyright: ignore[reportCallIssue]  # its stubs want enums, it takes words
            "hash_user",
            self._hashed,
            ["VARCHAR"],
            "VARCHAR",
            type="arrow",  # pyright: ignore[reportArgumentType]
            null_handling="special",  # pyright: ignore[reportArgumentType]
        )
        self._run("CREATE TABLE log (u UUID, q VARCHAR, c VARCHAR, w DOUBLE, ts DOUBLE, reject VARCHAR)")
        unreadable = 0
        for source, columns in self._sources():
            self._run(f"INSERT INTO log {interest_sql.rows(self.settings, source, columns)}")
            if "store_rejects" in source:
                unreadable += self._scalar("SELECT count(DISTINCT (file_id, line)) FROM reject_errors")
                self._run("DROP TABLE reject_errors; DROP TABLE reject_scans")
        newest = self._as_of() or self._scalar("SELECT max(ts) FROM log WHERE reject IS NULL")
        if newest is not None:
            oldest = newest - self.settings.max_age_days * DAY_S if self.settings.max_age_days else -1e300
            self._run(
                "UPDATE log SET reject = CASE WHEN ts > ? THEN 'after_as_of' ELSE 'too_old' END "
                "WHERE reject IS NULL AND (ts > ? OR ts < ?)",
                [newest, newest, oldest],
            )
        self.rows = self._scalar("SELECT count(*) FROM log") + unreadable
        counts = self._run("SELECT reject, count(*) FROM log WHERE reject IS NOT NULL GROUP BY reject ORDER BY reject")
        self.dropped = dict(counts.fetchall()) | ({"unreadable_line": unreadable} if unreadable else {})
        self._group()

    def _group(self) -> None:
        # Ages are counted from each user's newest row: the same shares, and nothing of an old log rounds to zero.
        self._run(
            "CREATE TABLE taste AS SELECT u, q, c, count(*) n, "
            f"sum(w * coalesce(pow(2, (ts - newest) / {self.settings.half_life_days * DAY_S}), 1)) w FROM log JOIN "
            "(SELECT u, max(ts) newest FROM log WHERE reject IS NULL GROUP BY u) USING (u) "
            "WHERE reject IS NULL GROUP BY u, q, c; DROP TABLE log"
        )
        limit = f"ORDER BY count(*) DESC, q, c LIMIT {self.settings.max_texts}"
        kept_texts = self._run(f"SELECT q, c FROM taste GROUP BY q, c {limit}").fetchall()
        pairs = [(clean(q or ""), clean(c or "")) for q, c in kept_texts]
        self.texts = sorted({p for p in pairs if interest(*p)})
        number = {pair: t for t, pair in enumerate(self.texts)}
        columns = {
            "q": [q for q, _ in kept_texts],
            "c": [c for _, c in kept_texts],
            "t": [number.get(p) for p in pairs],
        }
        types = pa.schema([("q", pa.string()), ("c", pa.string()), ("t", pa.int32())])
        self.db.register("numbers", pa.table(columns, types))
        self._run(
            "CREATE TABLE kept AS SELECT u, t, sum(w) w, sum(n) n FROM taste JOIN numbers ON taste.q IS NOT DISTINCT FROM "
            "numbers.q AND taste.c IS NOT DISTINCT FROM numbers.c WHERE t IS NOT NULL GROUP BY u, t HAVING sum(w) > 0"
        )
        rare = self._scalar("SELECT coalesce(sum(n), 0) FROM taste") - self._scalar(
            "SELECT coalesce(sum(n), 0) FROM kept"
        )
        if rare:
            self.dropped["rare_or_empty_text"] = int(rare)
        self.db.unregister("numbers")
        self._run(
            "DROP TABLE taste; CREATE TABLE users AS SELECT u, (row_number() OVER (ORDER BY u) - 1)::INTEGER i "
            "FROM (SELECT DISTINCT u FROM kept); CREATE TABLE interest AS SELECT i, t, "
            "(w / sum(w) OVER (PARTITION BY i))::FLOAT share FROM kept JOIN users USING (u) ORDER BY i, t; DROP TABLE kept"
        )
        self.users = self._scalar("SELECT count(*) FROM users")
        self._enough(len(self.texts), 1)

    def shares(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(user, text, share of the user's interest) of the users first <= i < last, ordered."""
        sql = f"SELECT i, t, share FROM interest WHERE i >= {first} AND i < {last} ORDER BY i, t"
        columns = self._numpy(sql)
        return columns["i"] - first, columns["t"], columns["share"]

    def by_cohort(self, cohort_of_user: np.ndarray, min_users: int) -> dict[str, np.ndarray]:
        """Texts a cohort: arrays `cohort`, `t`, `share` of its interest, for texts that `min_users` in it share."""
        self.db.register("cohort_of", pa.table({"i": np.arange(self.users, dtype=np.int32), "cohort": cohort_of_user}))
        sql = (
            "SELECT cohort, t, (sum(share::DOUBLE) / any_value(size))::FLOAT share FROM interest JOIN cohort_of USING (i) "
            "JOIN (SELECT cohort, count(*) size FROM cohort_of GROUP BY cohort) USING (cohort) "
            f"GROUP BY cohort, t HAVING count(*) >= {min_users} ORDER BY cohort, share DESC, t"
        )
        shares = self._numpy(sql)
        self.db.unregister("cohort_of")
        return shares

    def hashes(self, rows: int = 100_000) -> Iterator[list[str]]:
        """The users' hashes in their order, some at a time."""
        for first in range(0, self.users, rows):
            sql = f"SELECT replace(u::VARCHAR, '-', '') FROM users WHERE i >= {first} AND i < {first + rows} ORDER BY i"
            yield [h for (h,) in self._run(sql).fetchall()]

    def _hashed(self, ids: pa.ChunkedArray) -> pa.Array:
        """HMAC-SHA256 of the ids under the salt, its first 32 hex digits."""
        salt = self.salt
        hashes = [None if i is None else hmac.digest(salt, i.encode(), "sha256")[:16].hex() for i in ids.to_pylist()]
        return pa.array(hashes, pa.string())

    def _sources(self) -> list[tuple[str, dict[str, str]]]:
        """(what to select from, {column: type}) for every part of the log."""
        fs, path = _filesystem(self.uri)
        paths = fs.glob(path) if "*" in path else fs.find(path)
        kinds = {p: kind for p in paths for suffix, kind in SUFFIXES.items() if str(p).lower().endswith(suffix)}
        if not kinds:
            raise ConfigError(f"there is no interest log at {self.uri}: no file that ends in {', '.join(SUFFIXES)}")
        if len(set(kinds.values())) > 1:
            raise ConfigError(f"the interest log {self.uri} mixes formats ({', '.join(sorted(set(kinds.values())))})")
        if self.uri.startswith("s3://") and not self.db.filesystem_is_registered("s3"):
            self.db.register_filesystem(fs)
        files = [f"s3://{p}" if self.uri.startswith("s3://") else str(p) for p in sorted(kinds)]
        kind = next(iter(kinds.values()))
        groups = [[f] for f in files] if kind == "csv" else [files]  # the order of csv columns may differ between files
        return [self._source(kind, group) for group in groups]

    def _source(self, kind: str, files: list[str]) -> tuple[str, dict[str, str]]:
        names = "[" + ", ".join(quoted(f, "'") for f in files) + "]"
        source = {
            "parquet": f"read_parquet({names}, union_by_name = true)",
            "csv": f"read_csv({names}, all_varchar = true, header = true, store_rejects = true)",
            "jsonl": f"read_json({names}, format = 'newline_delimited', ignore_errors = true, union_by_name = true)",
        }[kind]
        described = self._run(f"DESCRIBE SELECT * FROM {source}").fetchall()
        columns = {name: str(type_) for name, type_, *_ in described}
        interest_sql.check_columns(self.uri, self.settings, columns)
        if kind == "jsonl":
            known = {getattr(self.settings, f"{n}_column") for n in ("user", "query", "context", "weight", "timestamp")}
            wanted = ", ".join(f"{quoted(c, chr(39))}: 'VARCHAR'" for c in sorted(known & set(columns)))
            source = f"read_json({names}, format = 'newline_delimited', ignore_errors = true, columns = {{{wanted}}})"
            columns = dict.fromkeys(known & set(columns), "VARCHAR")
        return source, columns

    def _as_of(self) -> float | None:
        if not self.settings.as_of:
            return None
        seconds = self._run("SELECT epoch(TRY_CAST(? AS TIMESTAMPTZ))", [self.settings.as_of]).fetchall()[0][0]
        if seconds is None:
            raise ConfigError(f"as_of {self.settings.as_of!r} should be a moment such as 2026-11-01T00:00:00Z")
        return seconds

    def _enough(self, found: int, wanted: int) -> None:
        if not found:
            raise ConfigError(f"the interest log {self.uri} has no text in any row that could be read")
        if found < wanted:
            raise ConfigError(f"k is {wanted} and the interest log {self.uri} has only {found} distinct texts")

    def _numpy(self, sql: str) -> dict[str, np.ndarray]:
        return {name: np.asarray(column) for name, column in self._run(sql).fetchnumpy().items()}

    def _scalar(self, sql: str) -> Any:
        return self._run(sql).fetchall()[0][0]

    def _run(self, sql: str, parameters: list | None = None) -> duckdb.DuckDBPyConnection:
        try:
            return self.db.execute(sql, parameters)
        except duckdb.OutOfMemoryException:
            raise ConfigError(
                f"the interest log {self.uri} does not fit: raise memory_gib ({self.settings.memory_gib:g}) or give scratch more room"
            ) from None
        except (duckdb.Error, OSError) as e:  # its message may quote a line of the log, and with it a user
            raise ConfigError(f"the interest log {self.uri} cannot be read ({type(e).__name__})") from None


def user_salt() -> bytes:
    """raises ConfigError if the environment holds no salt"""
    salt = os.environ.get(SALT, "")
    if not salt:
        raise ConfigError(
            f"the environment variable {SALT} is empty; set it to a salt of yours: users are written as salted hashes"
        )
    return salt.encode()
