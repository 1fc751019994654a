import pyarrow as pa

from adbooster.contracts import schema
from adbooster.generate import priority
from tests.conftest import row


def requests(*pairs):
    rows = [
        row(schema.REQUESTS, request_id=f"{p}{c}", product_id=p, cohort_id=c, placement="square", round=0)
        for p, c in pairs
    ]
    return pa.Table.from_pylist(rows, schema.REQUESTS)


def live(**margins):
    rows = [
        row(schema.CREATIVES, product_id=name[0], cohort_id=name[1:], placement="square", rank=0, margin=m)
        for name, m in margins.items()
    ]
    return pa.Table.from_pylist(rows, schema.CREATIVES)


def test_new_products_come_first_then_low_margins_then_the_rest():
    asked = requests(("a", "1"), ("a", "2"), ("a", "3"), ("a", "4"), ("a", "5"), ("b", "1"), ("c", "1"))
    there = live(a1=0.4, a2=0.1, a3=0.3, a4=0.2)
    ordered = priority.by_value(asked, there)
    assert ordered["request_id"].to_pylist() == ["b1", "c1", "a2", "a4", "a5", "a3", "a1"]
    classes = dict(zip(*(priority.valued(asked, there)[n].to_pylist() for n in ("request_id", "value")), strict=True))
    assert classes == {
        **dict.fromkeys(["b1", "c1"], "new_product"),
        **dict.fromkeys(["a2", "a4"], "low_margin"),
        "a5": "new_place",
        **dict.fromkeys(["a3", "a1"], "high_margin"),
    }


def test_where_nothing_is_live_the_order_stays():
    asked = requests(("b", "2"), ("a", "1"), ("c", "1"))
    assert priority.by_value(asked, live()).equals(asked)


def test_what_is_left_is_told_by_class_and_named_in_a_file(root):
    uri, counts = priority.write_left(root, "r", requests(("a", "1"), ("b", "1"), ("b", "2")), live(a1=0.5))
    assert uri == f"{root.uri}/runs/r/left.parquet"
    assert counts == {"new_product": 2, "low_margin": 1}
