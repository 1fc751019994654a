"""z_QC of many pairs at once: what a product and what a cohort say in it is made once each, and joined as columns."""

from collections.abc import Callable
from string import Formatter
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from adbooster.prompts.token_window import Window

_SIDES = {"product": "product", "query": "cohort", "context": "cohort"}
SEPARATOR = "\x1f"  # between texts that are one key; cleaned texts hold none


class Texts(NamedTuple):
    """texts, one a pair; most  tokens that each has at most"""

    texts: pa.Array
    most: pa.Array


class Joined:
    """The template's text for pairs without a palette, as `templates.prompt_qc` gives it for each.

    Parts between two commas of the template follow from the product or from the cohort alone; where one follows from
    both, `possible` is false.
    """

    def __init__(self, template: str, window: Window):
        self.window, self.groups = window, _groups(template)
        self.possible = self.groups is not None

    def __call__(self, words: pa.Array, query: pa.Array, context: pa.Array) -> Texts:
        """Clean texts; any may be empty."""
        products, cohorts = words.dictionary_encode(), both(query, context).dictionary_encode()
        values = {
            "product": [{"product": name} for name in products.dictionary.to_pylist()],
            "cohort": [
                dict(zip(("query", "context"), key.split(SEPARATOR), strict=True))
                for key in cohorts.dictionary.to_pylist()
            ],
        }
        at = {"product": products.indices, "cohort": cohorts.indices}
        columns, counts = [], []
        for side, template in self.groups or ():
            pieces = [_normal(template.format(**some, palette="")) for some in values[side]]
            tokens = [self.window.count(f"{piece},") if piece else 0 for piece in pieces]
            columns.append(pa.array([piece or None for piece in pieces], pa.string()).take(at[side]))
            counts.append(pa.array(tokens, pa.int32()).take(at[side]))
        most = counts[0]
        for more in counts[1:]:
            most = pc.add(most, more)
        return Texts(pc.binary_join_element_wise(*columns, ", ", null_handling="skip"), most)


def both(first: pa.Array, second: pa.Array) -> pa.Array:
    """Two texts as one key."""
    return pc.binary_join_element_wise(first, second, SEPARATOR)


def by_value(keys: pa.Array, of: Callable[[str], str]) -> pa.Array:
    """`of` every text, asked once for each that differs."""
    coded = keys.dictionary_encode()
    return pa.array([of(key) for key in coded.dictionary.to_pylist()], pa.string()).take(coded.indices)


def _normal(text: str) -> str:
    return ", ".join(part for part in (p.strip() for p in text.split(",")) if part)


def _groups(template: str) -> list[tuple[str, str]] | None:
    """(side, template of it) in the template's order, neighbours of one side together; None where a part needs both."""
    parts: list[tuple[set[str], str]] = [(set(), "")]
    for literal, field, form, conversion in Formatter().parse(template):
        for i, piece in enumerate(literal.split(",")):
            if i:
                parts.append((set(), ""))
            parts[-1] = (parts[-1][0], parts[-1][1] + piece.replace("{", "{{").replace("}", "}}"))
        if form or conversion:
            return None
        if field is not None:
            parts[-1] = (
                parts[-1][0] | {_SIDES[field]} if field in _SIDES else parts[-1][0],
                f"{parts[-1][1]}{{{field}}}",
            )
    groups: list[tuple[str, str]] = []
    for sides, piece in parts:
        if len(sides) > 1:
            return None
        side = next(iter(sides), groups[-1][0] if groups else "product")
        if groups and groups[-1][0] == side:
            groups[-1] = (side, f"{groups[-1][1]},{piece}")
        else:
            groups.append((side, piece))
    return groups
