"""The columns of an interest log, whatever they are called, as DuckDB's SQL."""

from adbooster.cohorts.config import Interests
from adbooster.contracts.errors import ConfigError
from adbooster.contracts.text import shown


def check_columns(uri: str, settings: Interests, columns: dict[str, str]) -> None:
    """raises ConfigError unless the log at `uri` has a user, some text, and every column that `settings` names"""
    s, has = settings, ", ".join(shown(name, 40) for name in list(columns)[:20])
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
            WHEN NOT coalesce(abs(ts) < 1e12, false) THEN 'bad_timestamp' END
        FROM (SELECT *, TRY_CAST(given AS DOUBLE) w FROM (
            SELECT {user} raw, {text(s, "query", columns)} q, {text(s, "context", columns)} c,
                   {weight} given, {at}::DOUBLE ts FROM {source}))"""


def quoted(name: str, mark: str = '"') -> str:
    return mark + name.replace(mark, mark * 2) + mark


def _seconds(column: str, type_: str) -> str:
    """SQL of a time in seconds since 1970, null where it cannot be read."""
    if type_.startswith(("TIMESTAMP", "DATE")):
        return f"epoch({column})"
    text, number = f"trim(CAST({column} AS VARCHAR))", f"TRY_CAST({column} AS DOUBLE)"
    scale = f"CASE WHEN abs({number}) > 1e17 THEN 1e9 WHEN abs({number}) > 1e14 THEN 1e6 WHEN abs({number}) > 1e11 THEN 1e3 ELSE 1 END"
    return f"coalesce({number} / {scale}, epoch(TRY_CAST({text} AS TIMESTAMPTZ)))"
