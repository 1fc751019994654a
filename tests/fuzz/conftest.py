"""Fuzzing within a budget of time: ADBOOSTER_FUZZ_SECONDS a test, 20 if it is not set."""

import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

SECONDS = float(os.environ.get("ADBOOSTER_FUZZ_SECONDS", "20"))
ROUND = 20  # examples between two looks at the clock


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "fuzz" in item.path.parts:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(int(SECONDS) + 240))


def fuzz(examples: st.SearchStrategy, corpus: Iterable[Any] = ()) -> Callable:
    """A test of one argument, called with all of `corpus` (what once failed), then with examples until time is up.

    Another run goes on to other examples; a failure is shrunk and shown with what reproduces it.
    """

    def decorate(test: Callable[[Any], None]) -> Callable[[], None]:
        def run() -> None:
            for known in corpus:
                test(known)
            end, number = time.monotonic() + SECONDS, time.time_ns()
            while time.monotonic() < end:
                number += 1
                some = hypothesis.given(examples)(lambda example: test(example))
                how = hypothesis.settings(
                    max_examples=ROUND, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
                )
                hypothesis.seed(number)(how(some))()

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run

    return decorate


# Text as hostile as JSON can hold it: halves of surrogate pairs, NUL, marks that turn the direction, formulas, markup.
hard = st.sampled_from(
    [
        "�",
        "\x00",
        "\u202e",
        "\u200f",
        "\ufeff",
        "=1+1",
        "<b>",
        "]]>",
        "&x;",
        "\u2028",
        "\x1c",
        "\x85",
        '"',
        "'",
        "\\",
        "\t",
        "\r",
        "\n",
        ",",
        ";",
        "|",
        "://",
        "..",
        "%2e",
        "１",
        "é",
        "é",
        "\U000e0001",
        "9" * 400,
        "x" * 5000,
        "",
        " ",
    ]
)
texts = st.lists(st.one_of(hard, st.text(st.characters(exclude_categories=()), max_size=8)), max_size=5).map("".join)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)


@st.composite
def damaged(draw: st.DrawFn, contents: st.SearchStrategy[bytes]) -> bytes:
    """Bytes of a file, mostly whole, or cut short, with bytes in it replaced, or with a part of it repeated."""
    content = bytearray(draw(contents))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        at, to = sorted((draw(st.integers(0, len(content))), draw(st.integers(0, len(content)))))
        how = draw(st.sampled_from(["cut", "replace", "repeat", "drop"]))
        if how == "cut":
            del content[at:]
        elif how == "drop":
            del content[at:to]
        elif how == "repeat":
            content[at:at] = content[at:to] * draw(st.integers(1, 5))
        else:
            content[at : at + 4] = draw(st.binary(max_size=8))
    return bytes(content)
