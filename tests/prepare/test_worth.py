import pytest

from adbooster.catalog import worth
from adbooster.prepare.job import prepare
from tests.prepare.test_prepare import config, samples
from tests.whole_feed import whole_feed

HEAD = "id\ttitle\timage_link\tadditional_image_link\tmargin\tavailability\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", 2.0),
        (" 0.5 ", 0.5),
        (".5", 0.5),
        ("0", 0.0),
        ("1e2", 100.0),
        *[(bad, None) for bad in ("-1", "nan", "inf", "1e39", "high", "1_000", "9,50", "9.50 EUR")],
    ],
)
def test_weights(text, value):
    assert worth.weight(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("in stock", True),
        ("in_stock", True),
        ("IN_STOCK", True),
        ("https://schema.org/InStock", True),
        ("preorder", True),
        ("backorder", True),
        ("available for order", True),
        ("out of stock", False),
        ("out_of_stock", False),
        ("discontinued", False),
        ("maybe", None),
    ],
)
def test_availability(text, value):
    assert worth.available(text) is value


def test_both_are_on_every_picture_and_bad_ones_are_noted(tmp_path):
    body = "A\tA\ta.png\tb.png\t2.5\tin_stock\nB\tB\tb.png\t\t-1\tout_of_stock\nC\tC\tc.png\t\tmuch\tmaybe\nD\tD\td.png\t\t\t\n"
    (tmp_path / "feed.tsv").write_text(HEAD + body)
    found = whole_feed(tmp_path / "feed.tsv", columns={"weight": "margin"})
    values = [(r["product_id"], r["weight"], r["available"], r["reject"]) for r in found.pictures.to_pylist()]
    assert values == [
        ("A", 2.5, True, None),
        ("A", 2.5, True, None),
        ("B", None, False, None),
        ("C", None, None, None),
        ("D", None, None, None),
    ]
    assert found.notes == [
        "rows whose weight is no number of 0 or more, and counts as 1: 2, such as '-1' of 'B'",
        "rows whose availability is no value of Google's or Meta's, and counts as unknown: 1, such as 'maybe' of 'C'",
    ]


def test_a_column_named_weight_is_none_unless_the_settings_say_so(tmp_path):
    (tmp_path / "feed.tsv").write_text("id\ttitle\timage_link\tweight\nA\tA\ta.png\t7\n")
    assert whole_feed(tmp_path / "feed.tsv").pictures["weight"].to_pylist() == [None]
    mapped = whole_feed(tmp_path / "feed.tsv", columns={"weight": "weight"})
    assert mapped.pictures["weight"].to_pylist() == [7.0]


def test_another_worth_makes_nothing_again_and_is_written(warm_ray, root, tiny_feed):
    lines = tiny_feed.read_text().splitlines()

    def night(run_id: str, worth: list[str], **changes):
        rows = [line + "\t" + more for line, more in zip(lines, ["margin\tavailability", *worth], strict=True)]
        tiny_feed.write_text("\n".join(rows) + "\n")
        return prepare(config(root, tiny_feed, run_id=run_id, columns={"weight": "margin"}, **changes))

    first = night("r1", ["2\tin_stock", "\t"])
    before = samples(root)
    assert (first.updated, before["P0", "lifestyle"]["weight"], before["P1", "main"]["available"]) == (0, 2.0, None)
    no_models = {"device": "cuda"}
    second = night("r2", ["3.5\tout of stock", "\t"], **no_models)
    assert (second.new_or_changed, second.unchanged, second.updated, second.bad_weights) == (0, 4, 2, 0)
    after = samples(root)
    for key in before:
        changes = {"weight": 3.5, "available": False} if key[0] == "P0" else {}
        assert after[key] == before[key] | changes, "fingerprints too"
    same = night("r3", ["3.5\tout of stock", "\t"], **no_models)
    assert (same.updated, same.samples_version) == (0, second.samples_version)
    bad = night("r4", ["-3\tout of stock", "\tsomewhere"], **no_models)
    assert (bad.updated, bad.bad_weights, len(bad.notes)) == (2, 1, 2)
    assert samples(root)["P0", "main"]["weight"] is None
