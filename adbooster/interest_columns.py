"""The columns of an interest log, whatever they are called, as DuckDB's SQL."""

from pydantic import Field

from adbooster.errors import ConfigError
from adbooster.settings import Config


class Interests(Config):
    """What the columns of the log are called, and how it is read."""

    user_column: str = "user_id"
    """Who; written only as a salted hash."""
    query_column: str = "query"
    """What the user looked for."""
    context_column: str = "context"
    """Season, event, sport..."""
    weight_column: str = "weight"
    """How much a row counts; a log without it, or a row without a value: 1."""
    timestamp_column: str = "timestamp"
    """When: a timestamp, ISO 8601 text (UTC unless it says otherwise) or a Unix time; a log without it does not decay."""
    half_life_days: float = Field(30, gt=0)
    """An interest this much older counts half."""
    max_age_days: float = Field(0, ge=0)
    """Rows older than this are left out; 0: none."""
    as_of: str = ""
    """The moment that ages are counted from (ISO 8601); rows after it are left out. Empty: the log's newest row."""
    max_texts: int = Field(1_000_000, ge=1)
    """Distinct texts kept, those of most users; they are held in memory with their vectors."""
    memory_gib: float = Field(4, gt=0)
    """Memory for reading and grouping; what does not fit goes to `scratch`."""
    scratch: str = ""
    """A folder with room for the hashed log (some 40 bytes a row); empty: the system's temporary folder."""


def check_columns(uri: str, settings: Interests, columns: dict[str, str]) -> None:
    """raises ConfigError unless the log at `uri` has a user, some text, and every column that `settings` names"""
    s, has = settings, ", ".join(map(repr, columns))
    if s.user_column not in columns:
        raise ConfigError(f"the interest log {uri} has no column {s.user_column!r} for users; it has {has}")
    if s.query_column not in columns and s.context_column not in columns:
        raise ConfigError(
            f"the interest log {uri} has no text: neither {s.query_column!r} nor {s.context_column!r}; it has {has}"
        )
    for name in ("query_column", "context_column", "weight_column", "timestamp_column"):
        value = getattr(s, name)
        if value != Interests.model_fields[name].default and value not in columns:
            raise ConfigError(f"the interest log {uri} has no column {value!r} ({name}); it has {has}")


def text(settings: Interests, name: str, columns: dict[str, str]) -> str:
    """SQL of a text column, trimmed and in lower case; null where the log has none."""
    column = getattr(settings, f"{name}_column")
    if column not in columns:
        return "NULL::VARCHAR"
    return f"nullif(left(lower(trim(CAST({quoted(column)} AS VARCHAR))), 300), '')"


def rows(settings: Interests, source: str, columns: dict[str, str]) -> str:
    """SQL of the rows of `log`; a row that cannot be used carries its reason."""
    s = settings
    user = f"nullif(trim(CAST({quoted(s.user_column)} AS VARCHAR)), '')"
    weight = "NULL"
    if s.weight_column in columns:
        weight = f"nullif(trim(CAST({quoted(s.weight_column)} AS VARCHAR)), '')"
    at = _seconds(quoted(s.timestamp_column), columns[s.timestamp_column]) if s.timestamp_column in columns else "0"
    return f"""
        SELECT CAST(hash_user(raw) AS UUID), q, c, coalesce(w, 1), ts, CASE
            WHEN raw IS NULL THEN 'missing_user' WHEN q IS NULL AND c IS NULL THEN 'missing_text'
            WHEN given IS NOT NULL AND NOT coalesce(w > 0 AND w < 1e30, false) THEN 'bad_weight'
            WHEN ts IS NULL THEN 'bad_timestamp' END
        FROM (SELECT *, TRY_CAST(given AS DOUBLE) w FROM (
            SELECT {user} raw, {text(s, "query", columns)} q, {text(s, "context", columns)} c,
                   {weight} given, {at}::DOUBLE ts FROM {source}))"""


def quoted(name: str, mark: str = '"') -> str:
    return mark + name.replace(mark, mark * 2) + mark


def _seconds(column: str, type_: str) -> str:
    """SQL of a moment in seconds since 1970, null where it is none."""
    if type_.startswith(("TIMESTAMP", "DATE")):
        return f"epoch({column})"
    text, number = f"trim(CAST({column} AS VARCHAR))", f"TRY_CAST({column} AS DOUBLE)"
    scale = f"CASE WHEN abs({number}) > 1e17 THEN 1e9 WHEN abs({number}) > 1e14 THEN 1e6 WHEN abs({number}) > 1e11 THEN 1e3 ELSE 1 END"
    return f"coalesce({number} / {scale}, epoch(TRY_CAST({text} AS TIMESTAMPTZ)))"
