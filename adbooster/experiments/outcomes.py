"""Outcomes of people: read from a file, checked, joined to what was shown, and kept in tables/outcomes. Aggregates only."""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pac
import pyarrow.parquet as pap

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.contracts.naming import digests
from adbooster.contracts.text import clean, shown
from adbooster.experiments.groups import codes
from adbooster.experiments.holdout import original_ids
from adbooster.storage import tables
from adbooster.storage.inputs import read_input
from adbooster.storage.objects import Root

COUNTS = ("impressions", "clicks", "conversions")
MAX_BYTES = 1 << 30  # some twenty million rows
MAX_COUNT = 10**12  # impressions of one creative and day; more is an error of the file
NEEDED = pa.schema([("creative_id", pa.string()), ("day", pa.string()), *((c, pa.int64()) for c in COUNTS)])
COLUMNS = pa.schema([*NEEDED, pa.field("channel", pa.string()), pa.field("propensity", pa.float64())])
FIRST_DAY = date(2000, 1, 1)  # what is older is an error of the file
FEW = 10  # rows below which a file may name mostly creatives that are not known
_FACTS = ("product_id", "cohort_id", "family", "placement", "control", "arm", "margin")
# Columns that are of one person, without what is between words: user_id, e-mail, IP address, hashedEmail, GCLID...
_PERSONAL = re.compile(
    r"(hashed|sha256)?(user|visitor|customer|member|person|subscriber|cookie)(id|ids|hash|key|name|no|number)?"
    r"|(hashed|sha256)?(client|device|session|account|advertising|crm|google|login)(id|hash)|uid|uuid|guid|idfa|idfv|gaid|maid"
    r"|(hashed|sha256)?(e?mail|phone|ip|street|home|postal)(address|hash|number|no)?|gclid|fbclid|msclkid|ttclid|wbraid|gbraid"
    r"|name|(first|last|full|sur|given|family)name|telephone|mobilenumber|birth(day|date)?|dateofbirth|ssn"
)
_EMAIL = r"[^@\s]+@[^@\s]+\.[A-Za-z]{2,}"


def read(uri: str, signing_key_env: str = "") -> pa.Table:
    """An outcomes table with the columns COLUMNS; channel and propensity are null where the file has no such column.

    signing_key_env  environment variable with the key of its signature; empty: none is asked for
    raises           ConfigError if it is not there, too large, not signed, cannot be read (with the row and the value),
                     lacks a column of NEEDED, or is of single people
    """
    content = pa.BufferReader(read_input(uri, "outcomes table", MAX_BYTES, signing_key_env).content)
    try:
        table = pap.read_table(content) if uri.endswith(".parquet") else pac.read_csv(content, _ROWS, None, _TYPES)
        if missing := [c for c in NEEDED.names if table.column_names.count(c) != 1]:
            raise ConfigError(
                f"the outcomes table {uri} lacks the column {missing[0]!r}, or has it twice; it needs {NEEDED.names}"
            )
        if twice := [c for c in COLUMNS.names if table.column_names.count(c) > 1]:
            raise ConfigError(f"the outcomes table {uri} has the column {twice[0]!r} twice; it should have it once")
        _refuse_people(table, uri)
        wanted = pa.schema([f for f in COLUMNS if f.name in table.column_names])
        return schema.fill(table.select(wanted.names).cast(wanted), COLUMNS)
    except (pa.ArrowException, UnicodeDecodeError) as e:
        raise ConfigError(f"the outcomes table {uri} cannot be read: {str(e).splitlines()[0][:300]}") from e


_ROWS = pac.ReadOptions(use_threads=False)  # errors name the row
_TYPES = pac.ConvertOptions(column_types={field.name: field.type for field in COLUMNS})


def _refuse_people(table: pa.Table, uri: str) -> None:
    """raises ConfigError for columns that are named as a person's, or hold e-mail addresses; no value is quoted"""
    for name, column in zip(table.column_names, table.columns, strict=True):
        if _PERSONAL.fullmatch(re.sub(r"[^a-z0-9]", "", name.lower())):
            raise ConfigError(
                f"the outcomes table {uri} has the column {shown(name)}, which is of single people; outcomes are aggregates "
                "by creative and day: leave it out"
            )
        is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        if is_text and pc.any(pc.match_substring_regex(column, _EMAIL)).as_py():
            raise ConfigError(
                f"the outcomes table {uri} holds e-mail addresses in the column {shown(name)}; outcomes are aggregates by "
                "creative and day: leave it out"
            )


def possible(table: pa.Table) -> np.ndarray:
    """Of each row (COLUMNS) whether it has an id and a day, and counts that can be (bool [n])."""
    counts = [pc.fill_null(table[name], -1).to_numpy() for name in COUNTS]
    named = [pc.fill_null(pc.not_equal(table[name], ""), False).to_numpy() for name in ("creative_id", "day")]
    within = [(count >= 0) & (count <= MAX_COUNT) for count in counts]
    return np.logical_and.reduce([*named, *within, counts[1] <= counts[0]])


@dataclass(frozen=True)
class Read:
    """A file's outcomes, joined to what was shown."""

    outcomes: pa.Table
    """schema.OUTCOMES without run_id"""
    rows: int = 0
    """of the file"""
    broken: int = 0
    """rows left out: no id or day, or counts or propensities that cannot be"""
    unknown: int = 0
    """rows left out: of creatives that are not known here"""


def last_day(today: date | None = None) -> date:
    """The last day that outcomes can be of: tomorrow, as it is another day elsewhere. today  null: that of UTC"""
    return (today or datetime.now(UTC).date()) + timedelta(days=1)


def join(table: pa.Table, known: pa.Table, uri: str, max_broken_share: float, today: date | None = None) -> Read:
    """The rows of an outcomes file (COLUMNS) with what is known of their creatives (schema.SHOWN, each creative once).

    max_broken_share  share of rows that may be impossible, by their counts, day or propensity; they are left out
    today             null: that of UTC
    raises            ConfigError for more of them, a file without propensities, a creative that has two rows of one day and
                      channel, and the outcomes of another root
    """
    if not table.num_rows:
        return Read(schema.OUTCOMES.empty_table())
    days, last = _days(table["day"]), last_day(today)
    chances = table["propensity"].combine_chunks()
    if chances.null_count == len(chances):
        raise ConfigError(
            f"the outcomes table {uri} lacks the column 'propensity', the probability with which each creative was shown; "
            "tables/deliveries has it for what was delivered"
        )
    can_be = (
        pc.greater_equal(days, pa.scalar(FIRST_DAY)),
        pc.less_equal(days, pa.scalar(last)),
        pc.greater(chances, 0),
        pc.less_equal(chances, 1),
    )
    good = np.logical_and.reduce([possible(table), *(pc.fill_null(c, False).to_numpy(False) for c in can_be)])
    broken = int((~good).sum())
    if broken > max_broken_share * table.num_rows:
        raise ConfigError(_impossible(table, int(np.flatnonzero(~good)[0]), broken, last, uri))
    channel = pc.fill_null(table["channel"], "").combine_chunks()
    table = table.set_column(table.schema.get_field_index("channel"), "channel", channel)
    table = table.set_column(table.schema.get_field_index("day"), "day", days).filter(pa.array(good))
    _refuse_repeated(table, uri)
    return _joined(table, known, uri, len(good), broken)


def _days(texts: pa.ChunkedArray) -> pa.Array:
    """date32 of ISO days; null for what is none."""
    flat = texts.combine_chunks()
    day = pc.utf8_slice_codeunits(flat, 0, 10)
    whole = pc.match_substring_regex(flat, r"^\d{4}-\d{2}-\d{2}([ T]00:00:00(\.0+)?Z?)?$")
    found = pc.strptime(day, "%Y-%m-%d", "s", error_is_null=True).cast(pa.date32())
    right = pc.and_(whole, pc.equal(found.cast(pa.string()), day))  # the 31st of February is parsed as March
    return pc.if_else(pc.fill_null(right, False), found, pa.scalar(None, pa.date32()))


def _impossible(table: pa.Table, at: int, broken: int, last: date, uri: str) -> str:
    row = table.slice(at, 1).to_pylist()[0]
    values = ", ".join(f"{name} {shown(row[name], 40)}" for name in (*NEEDED.names, "propensity"))
    return (
        f"the outcomes table {uri} has {broken} of {table.num_rows} rows that cannot be, the first is row {at + 1}: {values}; "
        f"counts are 0 to {MAX_COUNT}, clicks no more than impressions, days as 2026-11-30, from {FIRST_DAY} to {last}, and "
        "a propensity is above 0 and at most 1"
    )


def _refuse_repeated(table: pa.Table, uri: str) -> None:
    key = codes(table["creative_id"], table["day"], table["channel"])
    first = np.full(int(key.max(initial=-1)) + 1, len(key))
    np.minimum.at(first, key, np.arange(len(key)))
    again = np.flatnonzero(first[key] != np.arange(len(key)))
    if len(again):
        row = table.slice(int(again[0]), 1).to_pylist()[0]
        raise ConfigError(
            f"the outcomes table {uri} has several rows of the creative {shown(row['creative_id'])}, {row['day']} and channel "
            f"{shown(row['channel'])}; outcomes are aggregates by creative and day: give one row of each"
        )


def _joined(table: pa.Table, known: pa.Table, uri: str, rows: int, broken: int) -> Read:
    at = pc.index_in(table["creative_id"].combine_chunks(), known["creative_id"].combine_chunks())
    here = at.is_valid()
    names = codes(table["creative_id"])
    ids, ours = int(names.max(initial=-1)) + 1, len(np.unique(names[here.to_numpy(zero_copy_only=False)]))
    if table.num_rows and (not ours or (rows >= FEW and ours * 2 < ids)):
        other = table.filter(pc.invert(here))["creative_id"][0].as_py()
        raise ConfigError(
            f"the outcomes table {uri} is of another root: {ours} of its {ids} creatives were shown from here, not "
            f"{shown(clean(other[:100]))}"
        )
    unknown = int(at.null_count)
    table, facts = table.filter(here), known.take(at.drop_null())
    ids_of = digests(
        table["creative_id"].combine_chunks(), table["day"].cast(pa.string()).combine_chunks(), table["channel"]
    )
    columns = {"outcome_id": ids_of} | {n: table[n] for n in COLUMNS.names} | {n: facts[n] for n in _FACTS}
    wanted = pa.schema([f for f in schema.OUTCOMES if f.name in columns])
    joined = schema.fill(pa.table(columns).select(wanted.names).cast(wanted), schema.OUTCOMES)
    return Read(joined, rows, broken, unknown)


def known_creatives(root: Root) -> pa.Table:
    """What was ever delivered (tables/shown) and what is live besides, schema.SHOWN, each creative once."""
    delivered = tables.read(root, "shown")
    names = ["creative_id", "product_id", "cohort_id", "placement", "request_id", "arm", "margin", "run_id"]
    live = tables.read(root, "creatives", names)
    live = live.filter(pc.invert(pc.is_in(live["creative_id"], delivered["creative_id"].combine_chunks())))
    family = families_of(root, live["cohort_id"])
    live = live.append_column("family", family).append_column("control", pa.array([False] * live.num_rows))
    return pa.concat_tables([delivered, live.select(schema.SHOWN.names).cast(schema.SHOWN)]).combine_chunks()


def families_of(root: Root, cohort_ids: pa.ChunkedArray) -> pa.Array:
    """The family of each cohort; null where it is not in tables/cohorts."""
    cohorts = tables.read(root, "cohorts", ["cohort_id", "family"]).combine_chunks()
    at = pc.index_in(cohort_ids, cohorts["cohort_id"].combine_chunks())
    return cohorts["family"].combine_chunks().take(at.combine_chunks())


@dataclass(frozen=True)
class Merged:
    """All outcomes after a file was merged."""

    outcomes: pa.Table
    """schema.OUTCOMES"""
    changes: pa.Table
    """rows that are new, or have other counts"""
    new: int
    replaced: list[str]
    """outcome ids that were held: totals of which the file has channels, and channels of which it has totals"""


def merged(held: pa.Table, given: pa.Table, run_id: str) -> Merged:
    """Outcomes of a file (`given`) over those that are held; what is held in the same words is unchanged.

    A row that is corrected keeps what was known of its creative when it was first read: arms may have changed since. What
    a creative brought on a day is counted once: its total (channel "") and its channels replace each other.
    """
    replaced = _replaced(held, given)
    held = held.filter(pc.invert(pc.is_in(held["outcome_id"], replaced)))
    at = pc.index_in(given["outcome_id"], held["outcome_id"]).combine_chunks()
    there = held.take(at.drop_null())
    again = given.filter(at.is_valid())
    counts = (*COUNTS, "propensity")
    other = np.logical_or.reduce([again[n].to_numpy() != there[n].to_numpy() for n in counts]) if len(again) else []
    corrected = there.filter(pa.array(other, pa.bool_()))
    for name in counts:
        values = again[name].filter(pa.array(other, pa.bool_()))
        corrected = corrected.set_column(corrected.schema.get_field_index(name), schema.OUTCOMES.field(name), values)
    new = given.filter(at.is_null())
    changes = pa.concat_tables([new, corrected])
    runs = pa.array([run_id] * changes.num_rows, pa.string())
    changes = changes.set_column(changes.schema.get_field_index("run_id"), "run_id", runs)
    stays = held.filter(pc.invert(pc.is_in(held["outcome_id"], changes["outcome_id"])))
    return Merged(
        pa.concat_tables([stays, changes]).combine_chunks(), changes, new.num_rows, sorted(replaced.to_pylist())
    )


def _replaced(held: pa.Table, given: pa.Table) -> pa.ChunkedArray:
    """Ids of held rows that are totals of creatives and days of which only channels are given, or the other way round."""
    both = [pa.chunked_array([*held[n].chunks, *given[n].chunks]) for n in ("creative_id", "day", "channel")]
    key = codes(*both[:2])
    total = pc.equal(both[2], "").to_numpy()
    ours, groups = key[held.num_rows :], int(key.max(initial=-1)) + 1
    totals, channels = (
        np.bincount(ours[given_total], minlength=groups) > 0
        for given_total in (total[held.num_rows :], ~total[held.num_rows :])
    )
    of = key[: held.num_rows]
    other = np.where(total[: held.num_rows], channels[of] & ~totals[of], totals[of] & ~channels[of])
    return held["outcome_id"].filter(pa.array(other, pa.bool_()))


def store(root: Root, found: Merged, base: int | None, run_id: str) -> None:
    """Put changed rows into tables/outcomes in one commit, on top of the version they were compared with."""
    if found.changes.num_rows or found.replaced:
        tables.merge(root, "outcomes", found.changes, "outcome_id", base, {"run_id": run_id}, found.replaced)


def of_creatives(outcomes: pa.Table) -> pa.Table:
    """Outcomes (schema.OUTCOMES) of painted creatives: without the originals of held-out pairs and of pairs without a creative."""
    outcomes = outcomes.filter(pc.invert(pc.fill_null(outcomes["control"], False)))
    bare = np.flatnonzero(outcomes["margin"].is_null().to_numpy())  # originals have none; the others need no name
    pairs = (pc.fill_null(outcomes[name].take(pa.array(bare)), "") for name in ("product_id", "cohort_id"))
    names = original_ids(*pairs)
    kept = np.ones(outcomes.num_rows, bool)
    kept[bare] = pc.not_equal(outcomes["creative_id"].take(pa.array(bare)), names).fill_null(True).to_numpy()
    return outcomes.filter(pa.array(kept))
