import json

import pyarrow as pa

from adbooster.contracts import schema
from adbooster.generate import marks
from adbooster.report import gallery, uplift
from adbooster.report.page import embedded, write_report
from adbooster.storage.objects import Root
from tests.conftest import row, scan
from tests.pages import keep_candidates, shop, write_page


def test_texts_cannot_end_the_data_and_no_address_is_outside(root):
    rows = shop(root, 1, 2, title='</script><script>alert(1)</script>" onerror="x', text="<!--<script>")
    write_page(root, rows)
    page = root.read("runs/r1/report.html").decode()
    assert page.count("</script>") == 2
    assert page.count("<script") == 2
    assert "<!--" not in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    data = page.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    assert json.loads(data)["products"][0]["title"].startswith("</script>")


def test_what_is_no_number_in_json_is_null():
    assert json.loads(embedded({"a": [float("nan"), float("inf"), 0.5]})) == {"a": [None, None, 0.5]}


def test_the_evaluation_is_added_without_opening_a_picture(root):
    rows = shop(root)
    keep_candidates(root, rows)
    write_page(root, rows)
    for folder in root.names("objects"):
        root.clear(f"objects/{folder}")
    write_report(root, "r1", {"notes": ["measured"]})
    page = root.read("runs/r1/report.html").decode()
    assert "measured" in page
    assert page.count("data:image/webp") == len(gallery.read(root, "r1")["pictures"])
    root.write_json("runs/r1/evaluation.json", {"notes": ["from its file"]})
    write_report(root, "r1")
    assert "from its file" in root.read("runs/r1/report.html").decode()


def test_a_run_that_painted_nothing_shows_what_is_live(root):
    from adbooster.storage import tables

    tables.merge(root, "creatives", shop(root), "creative_id", None, {})
    write_report(root, "evaluate-1", {"notes": []})
    assert b"Teapot 0" in root.read("runs/evaluate-1/report.html")
    assert gallery.read(root, "evaluate-1")["live"] == 12


def test_pages_pictures_and_marks_on_s3(s3_root, monkeypatch):
    root = Root(s3_root)
    monkeypatch.setattr(gallery, "INLINE_MOST", 3)
    rows = shop(root)
    keep_candidates(root, rows)
    assert write_page(root, rows) == f"{s3_root}/runs/r1/report.html"
    data = gallery.read(root, "r1")
    assert len(data["creatives"][0]["candidates"]) == 3
    assert sorted(data["pictures"]) == [f"thumbs/{name}" for name in root.names("runs/r1/thumbs")]
    said = {"format": marks.FORMAT, "marks": [{"creative_id": rows["creative_id"][0].as_py(), "mark": "rejected"}]}
    root.write_json("marks/anna.json", said)
    assert [m.mark for m in marks.read(f"{s3_root}/marks/")] == ["rejected"]
    found, figures = marks.read_and_store(root, f"{s3_root}/marks/anna.json", scan(rows), "r2")
    assert (len(found.rejected), figures.rejected, figures.unknown) == (1, 1, 0)


def test_pictures_that_are_gone_leave_an_empty_place(root):
    rows = shop(root)
    for folder in root.names("objects"):
        root.clear(f"objects/{folder}")
    data = gallery.collect(root, "r1", scan(rows), 300)
    assert {c["thumb"] for c in data["creatives"]} == {None}
    assert len(data["creatives"]) == 12


def test_at_most_so_many_requests_are_shown_and_all_are_counted(root):
    data = gallery.collect(root, "r1", scan(shop(root)), 5)
    assert (len(data["creatives"]), data["live"], sum(data["histogram"]["winners"])) == (5, 12, 12)
    assert data["rejects"] == {"photos": {"mask_empty": 1}, "fallbacks": {"below_original": 2}}


def test_an_undefined_uplift_is_said():
    assert uplift.percent(None) == "not defined"
    assert uplift.percent(-0.5) == "-50.0%"


def test_uplift_by_family_by_hand():
    rows = [
        row(schema.CREATIVES, cohort_id=c, rank=0, clip_score=s, neutral_score=n)
        for c, s, n in (("a", 0.6, 0.5), ("a", 0.4, 0.3), ("b", 0.3, -0.1))
    ]
    found = uplift.uplift(scan(pa.Table.from_pylist(rows, schema.CREATIVES)), {"a": "events", "b": "sports"})
    assert found["events"].uplift_share == 0.25
    assert found["sports"].uplift_share is None
    assert found["all"].creatives == 3
    # residuals 0.6 - 1.25 * 0.5 and 0.4 - 1.25 * 0.3: deviation 0.0354, over 0.4 and the root of 2, times 1.96
    assert (found["events"].low, found["events"].high) == (0.1275, 0.3725)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    import numpy as np

    draw, held = np.random.default_rng(0), 0
    for _ in range(300):
        neutral = draw.normal(0.3, 0.05, 80)
        scores = 1.5 * neutral + draw.normal(0, 0.08, 80)
        found = uplift._uplift(uplift._moments(np.stack([scores, neutral])))
        held += found.low <= 0.5 <= found.high
    assert 0.91 <= held / 300 <= 0.98
