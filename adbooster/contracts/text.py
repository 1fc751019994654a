"""Text from feeds and files, as one clean line; and a cohort's text, Q and C."""

import re
import reprlib
import unicodedata
from typing import Any


def clean(text: str) -> str:
    """One line without control characters or repeated spaces: text from feeds and files is data."""
    kept = "".join(" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c)[0] != "C")
    return " ".join(kept.split())


def shown(value: Any, most: int = 100) -> str:
    """A value for an error, cut to about `most` characters however large it is."""
    how = reprlib.Repr()
    how.maxstring = how.maxother = how.maxlong = most
    how.maxlevel = how.maxdict = how.maxlist = how.maxtuple = 2
    return how.repr(value)


# What spreadsheets take for a formula at the start of a cell.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def cell(text: str) -> str:
    """Text for a cell of a CSV that people open in a spreadsheet: what would be a formula gets an apostrophe in front."""
    return f"'{text}" if _is_formula(text) else text


def text_of_cell(text: str) -> str:
    """What `cell` was given."""
    return text[1:] if text[:1] == "'" and _is_formula(text[1:]) else text


def _is_formula(text: str) -> bool:
    inner = text.lstrip("'")  # so that no text loses an apostrophe of its own on the way back
    return inner.startswith(_FORMULA) and not _NUMBER.fullmatch(inner)


_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")


def interest(query: str, context: str) -> str:
    """The text a creative is scored against: what the user looks for and the situation, the paper's Q and C."""
    return ", ".join(part for part in (clean(query), clean(context)) if part)
