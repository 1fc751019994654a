"""What brand rules look at of products and cohorts, as columns, and how words and categories are found in them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts.text import as_words

_WORDS_AT_ONCE = 50  # in one expression


class ProductTexts(NamedTuple):
    """One entry a product; texts as `as_words` gives them.

    text      ` title ` ` category ` ` caption `, a line each; category  as `category_path` gives it
    """

    ids: pa.Array
    brand: pa.Array
    category: pa.Array
    text: pa.Array


class CohortTexts(NamedTuple):
    """One entry a cohort; texts as `as_words` gives them, query and context between spaces."""

    ids: pa.Array
    family: pa.Array
    query: pa.Array
    context: pa.Array


def of_products(products: pa.Table) -> ProductTexts:
    """products  with product_id, title, category, caption and brand"""
    category = pa.array([category_path(text or "") for text in products["category"].to_pylist()], pa.string())
    title, caption = _spaced(products["title"]), _spaced(products["caption"])
    levels = pc.replace_substring(category, ">", " > ")
    text = pc.binary_join_element_wise(title, levels, caption, "\n")
    return ProductTexts(products["product_id"].combine_chunks(), _words(products["brand"]), category, text)


def of_cohorts(cohorts: pa.Table) -> CohortTexts:
    """cohorts  rows of schema.COHORTS"""
    query, context = _spaced(cohorts["query"]), _spaced(cohorts["context"])
    return CohortTexts(cohorts["cohort_id"].combine_chunks(), _words(cohorts["family"]), query, context)


def category_path(category: str) -> str:
    """`A > B` as `>a>b>`, "" for none: a category lies in another if its path begins with the other's."""
    parts = [part for part in map(as_words, category.split(">")) if part]
    return ">".join(["", *parts, ""]) if parts else ""


def begins(paths: pa.Array, categories: Sequence[str]) -> np.ndarray:
    """Which paths lie in one of the categories (paths too); bool, one a path."""
    found = np.zeros(len(paths), bool)
    for category in categories:
        found |= _flags(pc.starts_with(paths, category))
    return found


def holds(texts: pa.Array, words: Sequence[str]) -> np.ndarray:
    """Which texts (between spaces) hold one of the words (as `as_words` gives them, so nothing of an expression's own)."""
    found = np.zeros(len(texts), bool)
    for at in range(0, len(words), _WORDS_AT_ONCE):
        found |= _flags(pc.match_substring_regex(texts, f" (?:{'|'.join(words[at : at + _WORDS_AT_ONCE])}) "))
    return found


def is_one_of(texts: pa.Array, wanted: Sequence[str]) -> np.ndarray:
    """Which texts are one of those wanted; bool, one a text."""
    return _flags(pc.is_in(texts, pa.array(wanted, pa.string())))


def _words(column: pa.ChunkedArray) -> pa.Array:
    return pa.array([as_words(text or "") for text in column.to_pylist()], pa.string())


def _spaced(column: pa.ChunkedArray) -> pa.Array:
    return pa.array([f" {as_words(text or '')} " for text in column.to_pylist()], pa.string())


def _flags(array: pa.Array) -> np.ndarray:
    return array.to_numpy(zero_copy_only=False).astype(bool)
