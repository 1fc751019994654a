"""Text from feeds and files, as one clean line; and a cohort's text, Q and C."""

import unicodedata


def clean(text: str) -> str:
    """One line without control characters or repeated spaces: text from feeds and files is data."""
    kept = "".join(" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c)[0] != "C")
    return " ".join(kept.split())


def interest(query: str, context: str) -> str:
    """The text a creative is scored against: what the user looks for and the situation, the paper's Q and C."""
    return ", ".join(part for part in (clean(query), clean(context)) if part)
