"""Brand rules: which pairs they forbid, and which files are refused."""

import re
import time
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.painting import brand_rules
from adbooster.painting.brand_rules import Judgement, read_brand_rules
from adbooster.painting.requests import PRODUCTS
from tests.conftest import row

DAY = date(2026, 12, 26)
ALCOHOL = "Food, Beverages & Tobacco > Beverages > Alcoholic Beverages"


def product(name, title="", category="", caption="", brand=None):
    return row(PRODUCTS, product_id=name, title=title, category=category, caption=caption, brand=brand)


def cohort(name, query="", context="", family=None):
    return row(schema.COHORTS, cohort_id=name, query=query, context=context, family=family)


PEOPLE = (cohort("plain", "gift"),)


def rules_of(tmp_path, **sections):
    path = tmp_path / "brand_rules.yaml"
    path.write_text(yaml.safe_dump(sections, allow_unicode=True), "utf-8")
    return read_brand_rules(str(path))


def judged(rules, products, cohorts=PEOPLE, day=DAY):
    """The forbidden pairs of all, and the figures."""
    goods = pa.Table.from_pylist(list(products), PRODUCTS)
    users = pa.Table.from_pylist(list(cohorts), schema.COHORTS)
    p, c = np.divmod(np.arange(goods.num_rows * users.num_rows), users.num_rows)
    judgement = Judgement(rules, users, day)
    forbidden = judgement.forbidden(goods, pa.array(p), pa.array(c))
    names = [(goods["product_id"][i].as_py(), users["cohort_id"][j].as_py()) for i, j in zip(p, c, strict=True)]
    return {name for name, bad in zip(names, forbidden, strict=True) if bad}, judgement.figures()


@pytest.mark.parametrize(
    ("word", "text", "found"),
    [
        ("gun", "A GUN, loaded", True),
        ("gun", "gunmetal sunglasses", False),
        ("gun", "begun", False),
        ("gun", "shot-gun/2", True),
        ("gun", "gun_rack", True),
        ("hunting knife", "Hunting-Knife (steel)", True),
        ("hunting knife", "hunting\u00a0 \t knife", True),
        ("hunting knife", "hunting a knife", False),
        ("straße", "STRASSE", True),
        ("silah", "SİLAH", True),
        ("ÉPÉE", "e\u0301pe\u0301e", True),  # composed or not
        ("epee", "épée", False),
        ("gun", "ｇｕｎ", True),
        ("gun", "g\u200bu\u00adn", True),  # hidden characters part no word
        ("gun", "\u202egun\u202c", True),
        ("gun", "gun\ufe0f", True),
        ("हथियार", "नया हथियार।", True),
        ("की", "का", False),  # marks count
        ("武器", "新しい武器を売る", True),  # no spaces between words
        ("ปืน", "ขายปืนใหม่", True),
        ("(.*)", "anything", None),
        ("a.c", "abc", False),
        ("a|b", "b", False),
        ("3.5", "size 3.5 mm", True),
    ],
)
def test_whole_words_in_any_script(tmp_path, word, text, found):
    if found is None:
        with pytest.raises(ConfigError, match=r"never.0.words.0 of the rule 'w', '\(\.\*\)': holds no letter"):
            rules_of(tmp_path, never=[{"name": "w", "words": [word]}])
        return
    rules = rules_of(tmp_path, never=[{"name": "w", "words": [word]}])
    for column in ("title", "category", "caption"):
        assert judged(rules, [product("P", **{column: text})])[0] == ({("P", "plain")} if found else set()), column
    assert bool(judged(rules, [product("P")], [cohort("c", query=text)])[0]) == found


def test_a_phrase_does_not_begin_in_the_title_and_end_in_the_caption(tmp_path):
    rules = rules_of(tmp_path, never=[{"name": "w", "words": ["water gun"]}])
    assert judged(rules, [product("P", "water", "", "gun")])[0] == set()
    assert judged(rules, [product("P", "", "Water > Gun", "")])[0] == set()


def test_a_category_is_whole_levels_from_the_first(tmp_path):
    rules = rules_of(tmp_path, never=[{"name": "n", "categories": ["media >  Books", 499]}])
    texts = ["Media > Books > Fiction", "MEDIA>BOOKS", "Media > Bookshelves", "Shop > Media > Books", "499", "4999", ""]
    found, _ = judged(rules, [product(str(i), category=text) for i, text in enumerate(texts)])
    assert {name for name, _ in found} == {"0", "1", "4"}
    assert judged(rules, [product("P", category=None)])[0] == set()


def test_exclusions_join_a_product_with_a_cohort(tmp_path):
    rule = {
        "name": "no wine for children",
        "product": {"categories": [ALCOHOL], "words": ["wine"]},
        "cohort": {"words": ["children", "kids"], "families": ["Family Days"], "ids": ["c9"]},
    }
    goods = [product("wine", "Red wine"), product("gin", "Gin", ALCOHOL + " > Liquor"), product("mug", "Mug")]
    users = [
        cohort("c1", "toys", "a children's birthday"),
        cohort("c2", "Kids shoes"),
        cohort("c3", "cake", "a party", "family days"),
        cohort("c9", "cake"),
        cohort("c4", "cake", "a wedding", "family"),
    ]
    found, figures = judged(rules_of(tmp_path, exclusions=[rule]), goods, users)
    assert found == {(p, c) for p in ("wine", "gin") for c in ("c1", "c2", "c3", "c9")}
    assert figures.rejects == {"not_for_cohort": 8}
    assert [(r.name, r.reject, r.pairs, len(r.sample)) for r in figures.rules] == [
        ("no wine for children", "not_for_cohort", 8, 5)
    ]
    assert {s.product_id for s in figures.rules[0].sample} == {"wine", "gin"}


def test_scenes_that_a_brand_forbids_or_requires(tmp_path):
    scenes = [
        {"name": "acme", "brands": ["ACME"], "required": ["mountain", "forest"]},
        {"name": "bold", "brands": ["Bold & Co"], "forbidden": ["party"], "reject": "bold_stays_sober"},
    ]
    goods = [product("a", brand="Acme"), product("b", brand="bold & co."), product("c", brand="Acme Kids")]
    users = [cohort("hill", "party", "a mountain"), cohort("party", "x", "a party"), cohort("none", "forest")]
    found, figures = judged(rules_of(tmp_path, scenes=scenes), goods, users)
    assert found == {("a", "party"), ("a", "none"), ("b", "party")}
    assert figures.rejects == {"scene_not_allowed": 2, "bold_stays_sober": 1}


@pytest.mark.parametrize(
    ("span", "painted", "not_painted"),
    [
        (("11-15", "12-26"), ["11-15", "12-01", "12-26"], ["11-14", "12-27", "12-31", "01-01"]),
        (("12-27", "01-06"), ["12-27", "12-31", "01-01", "01-06"], ["12-26", "01-07", "07-01"]),
        (("02-20", "02-29"), ["02-20", "02-28"], ["03-01", "02-19"]),
        (("07-04", "07-04"), ["07-04"], ["07-03", "07-05"]),
    ],
)
def test_dates_come_back_every_year(tmp_path, span, painted, not_painted):
    rule = {"name": "x", "cohort": {"words": ["christmas"]}, "from": span[0], "to": span[1]}
    rules = rules_of(tmp_path, dates=[rule])
    users = [cohort("xmas", "gift", "Christmas eve"), cohort("summer", "gift", "a beach")]
    for year in (2026, 2027):
        for text in painted:
            assert judged(rules, [product("P")], users, date.fromisoformat(f"{year}-{text}"))[0] == set()
        for text in not_painted:
            found, figures = judged(rules, [product("P")], users, date.fromisoformat(f"{year}-{text}"))
            assert found == {("P", "xmas")}
            assert figures.rejects == {"out_of_season": 1}
    leap = judged(rules, [product("P")], users, date(2028, 2, 29))[0]
    assert bool(leap) != (span == ("02-20", "02-29"))


def test_a_pair_of_two_rules_is_one_pair_and_rules_that_match_nothing_are_named(tmp_path):
    rules = rules_of(
        tmp_path,
        never=[{"name": "a", "words": ["gun"]}, {"name": "b", "words": ["toy"]}, {"name": "c", "words": ["rifel"]}],
        exclusions=[{"name": "d", "product": {"words": ["gun"]}, "cohort": {"ids": ["gone"]}}],
        scenes=[{"name": "e", "brands": ["Nobody"], "forbidden": ["party"]}],
        dates=[{"name": "f", "cohort": {"words": ["gift"]}, "from": "01-01", "to": "12-31"}],
    )
    found, figures = judged(rules, [product("P", "toy gun")])
    assert found == {("P", "plain")}
    assert (figures.pairs, figures.rejects["never_painted"]) == (1, 1)
    assert [r.pairs for r in figures.rules] == [1, 1, 0, 0, 0, 0]
    assert figures.notes == [
        "the brand rule 'c' matches no product and no cohort's query",
        "the brand rule 'd' matches no cohort",
        "the brand rule 'e' matches no product",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no rule"),
        ("[]", "holds no rule"),
        ("{}", "holds 0 rules"),
        ("never: []", "holds 0 rules"),
        ("nevr: [{name: n, words: [gun]}]", "nevr is an unknown key"),
        ("never: [{name: n, word: [gun]}]", "never.0.word of the rule 'n' is an unknown key"),
        ("never: [{name: n}]", "never.0 of the rule 'n', .*: is empty; it should have categories or words"),
        ("never: [{name: n, words: []}]", "is empty"),
        ("never: [{words: [gun]}]", "never.0.name, .*: Field required"),
        ("never: [{name: ' ', words: [gun]}]", "never.0.name of the rule ' ', ' ': is empty"),
        ("never: [{name: n, words: ['']}]", "never.0.words.0 of the rule 'n'"),
        ("never: [{name: n, words: [no]}]", "never.0.words.0 of the rule 'n', False: Input should be a valid string"),
        ("never: [{name: n, categories: ['> >']}]", "names no category"),
        ("never: [{name: n, words: gun}]", "never.0.words of the rule 'n', 'gun'"),
        ("never: [{name: n, words: [gun], reject: Bad Word}]", "never.0.reject of the rule 'n', 'Bad Word'"),
        ("never: [{name: n, words: [gun], reject: unsafe}]", "unsafe means something else already"),
        ("never: [{name: n, words: [a]}, {name: n, words: [b]}]", "names 2 rules 'n'"),
        ("never: [7]", "never.0, 7"),
        ("exclusions: [{name: n, product: {words: [a]}}]", "exclusions.0.cohort of the rule 'n', .*: Field required"),
        ("exclusions: [{name: n, product: {words: [a]}, cohort: {}}]", "cohort of the rule 'n', {}: is empty"),
        ("scenes: [{name: n, brands: [a]}]", "should have forbidden or required"),
        ("scenes: [{name: n, brands: [], forbidden: [a]}]", "scenes.0.brands of the rule 'n'"),
        ("dates: [{name: n, cohort: {words: [a]}, from: 11-15}]", "dates.0.to of the rule 'n', .*: Field required"),
        ("dates: [{name: n, cohort: {words: [a]}, from: 11-15, to: 02-30}]", "'02-30': is no day of the year"),
        ("dates: [{name: n, cohort: {words: [a]}, from: 2026-11-15, to: 12-26}]", "is no day of the year"),
        ("dates: [{name: n, cohort: {words: [a]}, from: 11-15, to: 1226}]", "1226: is no day of the year"),
        ("dates: [{name: n, cohort: {words: [a]}, from: '٠١-٠٢', to: 12-26}]", "is no day of the year"),
        ("a: &a [*a]", "aliases repeat too much"),
        ('exclusions: [{name: n, product: {words: [a]}, cohort: {ids: ["\\ud800"]}}]', "cohort.ids.0 of the rule 'n'"),
        ('"a\\e[31m\\nb": 1', r"a\[31m b is an unknown key"),
        ("{", "is not YAML"),
        (None, "there is no brand rules file at"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(tmp_path, text, said):
    path = tmp_path / "brand_rules.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        read_brand_rules(str(path))
    assert "\n" not in str(caught.value) or "is not YAML" in said


def test_the_example_in_the_docs_can_be_used(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "generate.md").read_text()
    (example,) = re.findall(r"```yaml\n(# brand_rules.yaml.*?)```", page, re.DOTALL)
    path = tmp_path / "brand_rules.yaml"
    path.write_text(example)
    rules = read_brand_rules(str(path)).rules
    assert [r.word for r in rules] == ["never_painted", "not_for_cohort", "scene_not_allowed", "out_of_season"]


def test_the_longest_words_and_a_million_pairs_take_seconds(tmp_path):
    """No rule looks at pairs one by one: 20,000 products x 50 cohorts under 60 rules."""
    longest = ["武" * 290 + str(i) for i in range(200)]
    rules = rules_of(
        tmp_path,
        never=[{"name": "long", "words": longest}, *({"name": f"n{i}", "words": [f"w{i}"]} for i in range(59))],
    )
    goods = pa.Table.from_pylist([product(str(i), f"a w{i % 1000} shoe", ALCOHOL) for i in range(20_000)], PRODUCTS)
    users = pa.Table.from_pylist([cohort(f"c{i}", "gift") for i in range(50)], schema.COHORTS)
    pairs = np.arange(1_000_000)
    began = time.process_time()
    judgement = Judgement(rules, users, DAY)
    judgement.forbidden(goods, pa.array(pairs // 50), pa.array(pairs % 50))
    assert time.process_time() - began < 20
    assert judgement.figures().pairs == 59 * 20 * 50
    assert all(len(r.sample) <= brand_rules.SAMPLE for r in judgement.figures().rules)


def test_products_judged_part_by_part_give_the_figures_of_all(tmp_path):
    rules = rules_of(
        tmp_path,
        never=[{"name": "guns", "words": ["gun"]}, {"name": "swords", "words": ["sword"]}],
        exclusions=[{"name": "wine", "product": {"words": ["wine"]}, "cohort": {"words": ["nobody"]}}],
    )
    goods = [product(f"p{i}", "a gun" if i % 3 else "red wine") for i in range(9)]
    users = pa.Table.from_pylist([cohort("a", "gift"), cohort("b", "gun")], schema.COHORTS)
    together, apart = Judgement(rules, users, DAY), Judgement(rules, users, DAY)
    for judgement, pieces in ((together, [goods]), (apart, [goods[:1], goods[1:3], goods[3:]])):
        for some in pieces:
            p, c = np.divmod(np.arange(len(some) * 2), 2)
            judgement.forbidden(pa.Table.from_pylist(some, PRODUCTS), pa.array(p), pa.array(c))
    one, other = together.figures(), apart.figures()
    assert one.model_dump(exclude={"rules"}) == other.model_dump(exclude={"rules"})
    assert one.notes == [
        "the brand rule 'swords' matches no product and no cohort's query",
        "the brand rule 'wine' matches no cohort",
    ]
    assert [r.pairs for r in one.rules] == [r.pairs for r in other.rules] == [15, 0, 0]
