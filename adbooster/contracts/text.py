"""Text from feeds and files, as one clean line; and a cohort's text, Q and C."""

import re
import reprlib
import unicodedata
from typing import Any

from pydantic import ValidationError


def clean(text: str) -> str:
    """One line without control characters or repeated spaces: text from feeds and files is data."""
    if text.isprintable():  # no control character, and no space but the plain one
        return " ".join(text.split())
    kept = "".join(" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c)[0] != "C")
    return " ".join(kept.split())


# Scripts that put no space between words: each character is a word, so that any run of them is found.
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")


class _Letters(dict[int, str]):
    """For str.translate: letters, marks and digits stay, hidden characters go, all others are spaces."""

    def __missing__(self, code: int) -> str:
        c = chr(code)
        kind, name = unicodedata.category(c), unicodedata.name(c, "")
        if kind == "Cf" or name.startswith(("VARIATION SELECTOR", "COMBINING GRAPHEME JOINER")):
            found = ""
        elif kind[0] not in "LNM":
            found = " "
        else:
            found = f" {c} " if name.startswith(_UNSPACED) else c
        self[code] = found
        return found


_LETTERS = _Letters()


def as_words(text: str) -> str:
    """The words of a text for comparing: NFKC, case-folded, single spaces between, nothing but letters, marks and digits.

    Hidden characters inside a word do not part it.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.replace("i\u0307", "i").translate(_LETTERS).split())  # the Turkish I with a dot


def shown(value: Any, most: int = 100) -> str:
    """A value for an error, cut to about `most` characters however large it is."""
    how = reprlib.Repr()
    how.maxstring = how.maxother = how.maxlong = most
    how.maxlevel = how.maxdict = how.maxlist = how.maxtuple = 2
    return how.repr(value)


def first_error(error: ValidationError, whole: str = "it", most: int = 100) -> str:
    """The first thing that is wrong with a file's content: where, the value, and why; `whole` names it where no part is."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or whole
    return f"{where} {shown(first['input'], most)}: {first['msg']}"


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
