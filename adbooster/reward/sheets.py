"""Filled blind sheets and their key, as `evaluate` writes them and people hand them back."""

import csv
import io
import json
import re

from pydantic import BaseModel

from adbooster.contracts.errors import ConfigError
from adbooster.contracts.text import clean, shown, text_of_cell

CHOICES = ("left", "right", "same")
MAX_RATER = 100  # characters of a rater's name


class Pair(BaseModel):
    """One line of the key."""

    pair: int
    creative_side: str
    creative_id: str
    product_id: str
    cohort_id: str
    family: str
    against: str
    """neutral or contextual"""


def answers_of(name: str, text: str) -> list[tuple[str, int, str]]:
    """(rater, pair, choice) of every answered line; a sheet without a rater's name is one rater, called by its name."""
    try:
        return _answered(name, csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline="")))
    except csv.Error as e:
        raise ConfigError(f"the sheet {name} is not CSV that can be read: {e}") from e


def _answered(name: str, table: csv.DictReader) -> list[tuple[str, int, str]]:
    if missing := {"pair", "choice"} - set(table.fieldnames or ()):
        raise ConfigError(f"the sheet {name} lacks the column {min(missing)!r}; it needs pair, rater and choice")
    answers = []
    for row in table:
        choice = (row["choice"] or "").strip().lower()
        if not choice:
            continue
        pair, rater = (row["pair"] or "").strip(), clean(text_of_cell(row.get("rater") or ""))
        if choice not in CHOICES or not re.fullmatch("[0-9]{1,9}", pair):
            raise ConfigError(
                f"the sheet {name}, line {table.line_num}, answers {shown(choice)} for pair {shown(pair)}; left, right and "
                "same are answers"
            )
        if len(rater) > MAX_RATER:
            raise ConfigError(
                f"the sheet {name}, line {table.line_num}: the rater {shown(rater)} has over {MAX_RATER} letters"
            )
        answers.append((rater or name, int(pair), choice))
    return answers


def read_key(text: str) -> list[Pair]:
    try:
        return [Pair.model_validate(entry) for entry in json.loads(text)]
    except (ValueError, TypeError, RecursionError) as e:
        raise ConfigError(f"the key cannot be read: {str(e).splitlines()[0]}") from e


def answered(sheets: dict[str, str], key_json: str) -> list[tuple[str, Pair, str]]:
    """(rater, pair, choice) of every answer in filled sheets (name to CSV text) under their key.

    raises  ConfigError for a key or sheet that cannot be read, a pair that the key does not have, another choice than
            left, right or same, and a rater who answers a pair twice
    """
    key = {pair.pair: pair for pair in read_key(key_json)}
    found: dict[tuple[str, int], tuple[str, Pair, str]] = {}
    for rater, number, choice in (a for name, text in sheets.items() for a in answers_of(name, text)):
        if number not in key:
            raise ConfigError(
                f"the sheet answers pair {number}, which the key does not have; give the key of this sheet"
            )
        if (rater, number) in found:
            raise ConfigError(f"rater {rater!r} answers pair {number} twice; give each answer once")
        found[rater, number] = rater, key[number], choice
    return list(found.values())


def preferred(sheets: dict[str, str], key_json: str) -> dict[str, tuple[int, int]]:
    """By creative, how many answers preferred it and how many the product's own picture; arguments and errors as for
    `answered`."""
    found: dict[str, tuple[int, int]] = {}
    for _, pair, choice in answered(sheets, key_json):
        won, lost = found.get(pair.creative_id, (0, 0))
        liked = choice == pair.creative_side
        found[pair.creative_id] = (won + liked, lost + (choice != "same" and not liked))
    return found
