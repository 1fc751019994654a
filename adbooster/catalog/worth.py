"""What a product is worth to the shop, as its feed says: a weight, and whether it can be bought."""

import re
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from adbooster.catalog.formats import Row

# Values of Google, Meta, TikTok and schema.org, their letters alone.
AVAILABLE = {
    "instock": True,
    "preorder": True,
    "backorder": True,
    "availablefororder": True,
    "limitedavailability": True,
    "outofstock": False,
    "soldout": False,
    "discontinued": False,
}
T = TypeVar("T")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


def weight(text: str) -> float | None:
    """A number of 0 or more that float32 can hold; None for any other text."""
    if not _NUMBER.fullmatch(text.strip()):
        return None
    with np.errstate(over="ignore"):
        value = float(np.float32(float(text)))
    return value if np.isfinite(value) and value >= 0 else None


def available(text: str) -> bool | None:
    """Whether a product can be bought or ordered; None for a value that no feed format has."""
    return AVAILABLE.get(re.sub("[^a-z]", "", text.lower().rsplit("/", 1)[-1]))


class Worth:
    """Reads both of a feed's products, and counts the values that say nothing."""

    def __init__(self) -> None:
        self.bad: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def __call__(self, product: Row) -> tuple[float | None, bool | None]:
        """weight and available; null where the feed says nothing, or nothing that can be read"""
        return self._read(product, "weight", weight), self._read(product, "availability", available)

    def _read(self, product: Row, name: str, read: Callable[[str], T | None]) -> T | None:
        text = product.get(name)
        if not text:
            return None
        value = read(text)
        if value is None:
            self.bad[name] += 1
            self.examples.setdefault(name, f"{text[:40]!r} of {product.get('id', '')[:100]!r}")
        return value

    def notes(self) -> list[str]:
        """A sentence for each kind of value that could not be read."""
        what = {
            "weight": "rows whose weight is no number of 0 or more, and counts as 1",
            "availability": "rows whose availability is no value of Google's or Meta's, and counts as unknown",
        }
        return [f"{what[name]}: {n:,}, such as {self.examples[name]}" for name, n in self.bad.items()]
