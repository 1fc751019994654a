"""Brand rules: the pairs of product and cohort that are never painted, whatever the targeting wants."""

import re
from abc import abstractmethod
from collections import Counter
from contextlib import suppress
from datetime import date
from typing import Annotated, Any, ClassVar, NamedTuple, Self

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.contracts.settings import Config
from adbooster.contracts.text import as_words, clean, shown
from adbooster.contracts.yaml_text import parse_yaml
from adbooster.painting import brand_matching
from adbooster.painting.brand_matching import CohortTexts, ProductTexts, begins, holds, is_one_of
from adbooster.painting.config import BrandFigures, Pair, RuleFigures
from adbooster.storage.inputs import read_input

MAX_BYTES = 1 << 20
MAX_RULES = 1000
SAMPLE = 5  # pairs of each rule that the report names


def _word(text: str) -> str:
    if not (found := as_words(text)):
        raise ValueError("holds no letter and no digit")
    return found


def _category(text: str) -> str:
    if not (found := brand_matching.category_path(text)):
        raise ValueError("names no category")
    return found


def _month_and_day(value: Any) -> tuple[int, int]:
    try:
        if not isinstance(value, str) or not re.fullmatch("[0-9]{2}-[0-9]{2}", value):
            raise ValueError
        then = date.fromisoformat(f"2024-{value}")  # a leap year has every day
    except ValueError:
        raise ValueError("is no day of the year; it should be month and day, such as 12-26") from None
    return then.month, then.day


def _named(text: str) -> str:
    if not (found := clean(text)):
        raise ValueError("is empty")
    return found


def _number_as_text(value: Any) -> Any:
    return str(value) if type(value) is int else value  # Google's categories have numbers too


Text = Annotated[str, Field(min_length=1, max_length=300)]
Word = Annotated[Text, AfterValidator(_word)]
Category = Annotated[Text, AfterValidator(_category), BeforeValidator(_number_as_text)]
Day = Annotated[tuple[int, int], BeforeValidator(_month_and_day)]


class Forbidden(NamedTuple):
    """What one rule forbids: pairs of its products and its cohorts, or, if `either`, pairs with one of them."""

    products: np.ndarray  # bool, one a product
    cohorts: np.ndarray  # bool, one a cohort
    either: bool = False
    unmatched: str = ""
    """what the rule does not find at all: "no product", "no cohort" """


class _Products(Config):
    categories: tuple[Category, ...] = ()
    """Levels that the feed's category begins with, any case."""
    words: tuple[Word, ...] = ()
    """Whole words or phrases of title, category or caption."""

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not (self.categories or self.words):
            raise ValueError("is empty; it should have categories or words")
        return self

    def among(self, products: ProductTexts) -> np.ndarray:
        return begins(products.category, self.categories) | holds(products.text, self.words)


class _Cohorts(Config):
    words: tuple[Word, ...] = ()
    """Whole words or phrases of query or context."""
    families: tuple[Word, ...] = ()
    ids: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not (self.words or self.families or self.ids):
            raise ValueError("is empty; it should have words, families or ids")
        return self

    def among(self, cohorts: CohortTexts) -> np.ndarray:
        named = is_one_of(cohorts.ids, self.ids) | is_one_of(cohorts.family, self.families)
        return named | holds(cohorts.query, self.words) | holds(cohorts.context, self.words)


class _Rule(Config):
    word: ClassVar[str]
    name: Annotated[str, Field(max_length=100), AfterValidator(_named)]
    reject: str = Field(default="", pattern="^([a-z][a-z0-9_]{0,39})?$")
    """The report's word for what it forbids; empty: that of the rule's kind."""

    @model_validator(mode="after")
    def _own_word(self) -> Self:
        if self.reject in set(schema.REJECTS) - {self.word}:
            raise ValueError(f"the reject word {self.reject} means something else already")
        return self

    @abstractmethod
    def forbids(self, products: ProductTexts, cohorts: CohortTexts, day: date) -> Forbidden:
        """The products and cohorts that the rule keeps apart on a day."""


class Never(_Products, _Rule):
    """Products that are painted for nobody; nothing is painted for a cohort that looks for one of the words either."""

    word = "never_painted"

    def forbids(self, products: ProductTexts, cohorts: CohortTexts, day: date) -> Forbidden:
        own, asked = self.among(products), holds(cohorts.query, self.words)
        return Forbidden(own, asked, True, "" if own.any() or asked.any() else "no product and no cohort's query")


class Exclusion(_Rule):
    """Products that are not painted for some cohorts."""

    word = "not_for_cohort"
    product: _Products
    cohort: _Cohorts

    def forbids(self, products: ProductTexts, cohorts: CohortTexts, day: date) -> Forbidden:
        own, users = self.product.among(products), self.cohort.among(cohorts)
        return Forbidden(own, users, unmatched=_unmatched(own, users))


class Scene(_Rule):
    """What the context of a cohort must not hold, or must hold, for products of some brands."""

    word = "scene_not_allowed"
    brands: tuple[Word, ...] = Field(min_length=1)
    forbidden: tuple[Word, ...] = ()
    required: tuple[Word, ...] = ()
    """One of them has to be there."""

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not (self.forbidden or self.required):
            raise ValueError("is empty; it should have forbidden or required")
        return self

    def forbids(self, products: ProductTexts, cohorts: CohortTexts, day: date) -> Forbidden:
        own, bad = is_one_of(products.brand, self.brands), holds(cohorts.context, self.forbidden)
        if not self.required:
            return Forbidden(own, bad, unmatched=_unmatched(own, bad))
        good = holds(cohorts.context, self.required)
        return Forbidden(own, bad | ~good, unmatched=_unmatched(own, good))


class Dates(_Rule):
    """Cohorts that are painted from one day of every year to another, both included."""

    word = "out_of_season"
    cohort: _Cohorts
    from_: Day = Field(alias="from")
    to: Day

    def forbids(self, products: ProductTexts, cohorts: CohortTexts, day: date) -> Forbidden:
        now, users = (day.month, day.day), self.cohort.among(cohorts)
        over_new_year = self.from_ > self.to
        in_season = now >= self.from_ or now <= self.to if over_new_year else self.from_ <= now <= self.to
        every = np.full(len(products.ids), not in_season)
        return Forbidden(every, users, unmatched="" if users.any() else "no cohort")


class _File(Config):
    never: tuple[Never, ...] = ()
    exclusions: tuple[Exclusion, ...] = ()
    scenes: tuple[Scene, ...] = ()
    dates: tuple[Dates, ...] = ()

    @property
    def rules(self) -> tuple[_Rule, ...]:
        return (*self.never, *self.exclusions, *self.scenes, *self.dates)


class BrandRules(NamedTuple):
    """The rules of a file, and the SHA-256 of it."""

    rules: tuple[_Rule, ...]
    sha256: str


class Judgement:
    """Which pairs of products and some cohorts may not be painted on a day; `figures` are of all that was judged.

    cohorts  as for brand_matching.of_cohorts
    """

    def __init__(self, rules: BrandRules, cohorts: pa.Table, day: date):
        self.rules, self.day, self.users = rules.rules, day, brand_matching.of_cohorts(cohorts)
        self.unmatched: list[set[str]] = [set() for _ in self.rules]
        self._figures = BrandFigures(
            day=day,
            sha256=rules.sha256,
            rules=[RuleFigures(name=r.name, reject=r.reject or r.word, pairs=0, sample=[]) for r in self.rules],
        )

    def forbidden(self, products: pa.Table, of_product: pa.Array, of_cohort: pa.Array) -> np.ndarray:
        """bool, one a pair.

        products               as for brand_matching.of_products
        of_product, of_cohort  of every pair, its row in either
        """
        goods = brand_matching.of_products(products)
        p, c = of_product.to_numpy(zero_copy_only=False), of_cohort.to_numpy(zero_copy_only=False)
        by_word: dict[str, np.ndarray] = {}
        for rule, told, unmatched in zip(self.rules, self._figures.rules, self.unmatched, strict=True):
            found = rule.forbids(goods, self.users, self.day)
            both = np.logical_or if found.either else np.logical_and
            bad = both(found.products[p], found.cohorts[c])
            by_word[told.reject] = by_word[told.reject] | bad if told.reject in by_word else bad
            sample = [
                Pair(product_id=goods.ids[p[i]].as_py(), cohort_id=self.users.ids[c[i]].as_py()) for i in _some(bad)
            ]
            told.pairs, told.sample = told.pairs + int(bad.sum()), told.sample + sample
            unmatched.add(found.unmatched)
        for word, bad in by_word.items():
            self._figures.rejects[word] = self._figures.rejects.get(word, 0) + int(bad.sum())
        forbidden = np.logical_or.reduce(list(by_word.values()))
        self._figures.pairs += int(forbidden.sum())
        return forbidden

    def figures(self) -> BrandFigures:
        figures = self._figures.model_copy(deep=True)
        for rule, unmatched in zip(figures.rules, self.unmatched, strict=True):
            rule.sample = [rule.sample[i] for i in _some(np.ones(len(rule.sample), bool))]
            if unmatched and "" not in unmatched:  # products are looked through part by part: one part's may match
                why = min(unmatched, key=lambda text: text == "no product")
                figures.notes.append(f"the brand rule {shown(rule.name)} matches {why}")
        return figures


def read_brand_rules(uri: str, signing_key_env: str = "") -> BrandRules:
    """The rules of a YAML file.

    signing_key_env  environment variable with the key of its signature; empty: none is asked for
    raises           ConfigError that names rule and value for a file that is missing, too large, or holds no rule, an
                     unknown key, an empty rule, a name twice, or what is no date
    """
    given = read_input(uri, "brand rules file", MAX_BYTES, signing_key_env)
    content = parse_yaml(given.content, f"the brand rules file {uri}")
    if not isinstance(content, dict):
        raise ConfigError(f"the brand rules file {uri} should hold {', '.join(_File.model_fields)} and holds no rule")
    try:
        rules = _File.model_validate(content).rules
    except ValidationError as e:
        raise ConfigError(f"the brand rules file {uri}: {_first_error(e, content)}") from e
    if not 1 <= len(rules) <= MAX_RULES:
        raise ConfigError(f"the brand rules file {uri} holds {len(rules)} rules; it should hold 1 to {MAX_RULES}")
    name, times = Counter(rule.name for rule in rules).most_common(1)[0]
    if times > 1:
        raise ConfigError(f"the brand rules file {uri} names {times} rules {shown(name)}; a name should be used once")
    return BrandRules(rules, given.sha256)


def _first_error(error: ValidationError, content: dict) -> str:
    first = error.errors()[0]
    where = ".".join(clean(str(part))[:100] for part in first["loc"]) or "it"
    with suppress(LookupError, TypeError):  # an error above the rules, or in what is no rule
        where += f" of the rule {shown(content[first['loc'][0]][first['loc'][1]]['name'])}"
    if first["type"] == "extra_forbidden":
        return f"{where} is an unknown key"
    return f"{where}, {shown(first['input'])}: {first['msg'].removeprefix('Value error, ')}"


def _unmatched(products: np.ndarray, cohorts: np.ndarray) -> str:
    """What a rule that needs both does not find."""
    return "no product" if not products.any() else "" if cohorts.any() else "no cohort"


def _some(flags: np.ndarray) -> np.ndarray:
    """Up to SAMPLE of the true places, spread evenly."""
    found = np.flatnonzero(flags)
    return found[np.linspace(0, len(found) - 1, min(SAMPLE, len(found))).astype(int)]
