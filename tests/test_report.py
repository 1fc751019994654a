import pyarrow as pa

from adbooster import report, schema
from tests.conftest import row


def test_hostile_texts_show_as_text(root, packshot):
    from adbooster import images

    uri = root.put(images.encode_lossless(packshot[0]), "photo")
    bad = '<script>alert(1)</script>" onerror="x'
    request = row(schema.REQUESTS, request_id="q", product_id=bad, cohort_id="c", family=bad, text=bad, photo_uri=uri)
    creative = row(
        schema.CREATIVES,
        product_id=bad,
        cohort_id="c",
        rank=0,
        clip_score=0.5,
        neutral_score=0.4,
        fallback=False,
        uri=uri,
    )
    told = (
        "requests",
        "already_live",
        "painted",
        "rejected",
        "fallbacks",
        "published",
        "retired",
        "coverage",
        "seconds",
    )
    numbers = dict.fromkeys(told, 1) | {"weights_revision": "w", "recipe_id": "r", "uplift": {}}
    numbers["uplift"] = {bad: {"creatives": 1, "clip_score": 0.5, "neutral_score": 0.4, "uplift_share": 0.25}}
    report.write_gallery(
        root,
        "run",
        pa.Table.from_pylist([creative], schema.CREATIVES),
        pa.Table.from_pylist([request], schema.REQUESTS),
        numbers,
        9,
    )
    page = root.read("runs/run/report.html").decode()
    assert "<script" not in page
    assert 'onerror="' not in page
    assert "&lt;script&gt;" in page
    assert "+25.0%" in page
    assert "http" not in page


def test_an_undefined_uplift_is_said():
    assert report.percent(None) == "not defined"
    assert report.percent(-0.5) == "-50.0%"


def test_uplift_by_family_by_hand():
    rows = [
        row(schema.CREATIVES, cohort_id=c, rank=0, clip_score=s, neutral_score=n)
        for c, s, n in (("a", 0.6, 0.5), ("a", 0.4, 0.3), ("b", 0.3, -0.1))
    ]
    found = report.uplift(pa.Table.from_pylist(rows, schema.CREATIVES), {"a": "events", "b": "sports"})
    assert found["events"].uplift_share == 0.25
    assert found["sports"].uplift_share is None
    assert found["all"].creatives == 3
