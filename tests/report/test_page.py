"""The page in a browser: what it shows, how it is used, and that it asks no one."""

import json
import time
from pathlib import Path

import pytest
from playwright.sync_api import expect

from adbooster.contracts import schema
from adbooster.generate import marks
from adbooster.report import gallery
from adbooster.report.page import write_report
from adbooster.storage.objects import Root
from tests.pages import Visit, chromium, keep_candidates, shop, write_page

__all__ = ["chromium"]
HOSTILE = "<script>window.taken = 1</script><img src=x onerror='window.taken = 1'>\" ' & \u202eevil\u2066 {{data}} "
BLOCKED = "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no', 'SecurityError'); }});"
EVALUATION = {
    "run_id": "r1",
    "judge": "model B",
    "rank": "model A",
    "experiments": [
        {
            "experiment": name,
            "scorer": scorer,
            "pick": "best-of-4",
            "family": family,
            "n": 90,
            "creative": 0.61,
            "neutral": 0.4,
            "contextual": None if family == "sports" else 0.5,
            "uplift_neutral": {"mean": 0.5, "low": 0.4, "high": 0.62},
            "difference_contextual": {"mean": -0.021, "low": -0.04, "high": None},
            "uplift_contextual": None if family == "sports" else {"mean": -0.02, "low": -0.1, "high": 0.07},
        }
        for name in ("base, qc", "fine-tuned, qc")
        for scorer in ("judge", "rank")
        for family in ("all", "events", "sports")
    ],
    "figures": [
        {
            "name": "expansion_share",
            "unit": "share",
            "n": 9,
            "value": 0.021,
            "low": 0.01,
            "high": 0.03,
            "meaning": "<b>",
        },
        {"name": "sharpness", "unit": "", "n": 9, "value": None, "low": None, "high": None, "meaning": "of scenes"},
    ],
    "notes": ["not the paper's <i>experiment</i>"],
}


@pytest.fixture
def twelve(root):
    rows = shop(root)
    keep_candidates(root, rows)
    return rows


def until(page, said: str) -> None:
    """Wait for a condition; the page's policy forbids playwright to evaluate texts in it by itself."""
    for _ in range(100):
        if page.evaluate(said):
            return
        page.wait_for_timeout(50)
    raise AssertionError(said)


def shown(page) -> str:
    return page.inner_text("#shown")


def marked(page) -> str:
    return page.inner_text("#marked")


def test_filters(root, twelve, chromium):
    with Visit(chromium, write_page(root, twelve)) as page:
        assert shown(page) == "12 creatives"
        for name, value, found in (
            ("family", "events", 6),
            ("cohort", "1", 3),
            ("product", "2", 4),
            ("word", "second_copy", 3),
            ("kind", "fallback", 2),
            ("kind", "fresh", 6),
        ):
            page.select_option(f"#{name}", value)
            assert shown(page) == f"{found} of 12 creatives", name
            page.click("#reset")
            expect(page.locator("#shown")).to_have_text("12 creatives")
        page.fill("#search", "Teapot p00001")
        assert shown(page) == "4 of 12 creatives"
        page.fill("#search", "no such thing")
        assert "No creative fits" in page.inner_text("#nothing")
        page.click("#nothing button")
        expect(page.locator("#shown")).to_have_text("12 creatives")
        page.select_option("#order", "best")
        scores = page.locator(".numbers b").all_inner_texts()
        assert scores == sorted(scores, reverse=True)


def test_marks_by_keys_are_exported_read_by_the_next_night_and_imported(root, twelve, chromium, tmp_path):
    path = write_page(root, twelve)
    with Visit(chromium, path) as page:
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.id") == "search"
        page.keyboard.type("jar")  # letters in a field are letters
        page.keyboard.press("Escape")
        assert shown(page) == "0 of 12 creatives"
        page.fill("#search", "")
        page.keyboard.press("Escape")
        for key in "jajrjja":
            page.keyboard.press(key)
        page.keyboard.press("ArrowRight")
        page.keyboard.press("a")
        page.keyboard.press("u")
        assert marked(page) == "2 approved, 1 rejected"
        assert page.locator('.card[data-mark="approved"]').count() == 2
        page.select_option("#mark", "rejected")
        assert shown(page) == "1 of 12 creatives"
        page.fill("#marked-by", " Anna ")
        with page.expect_download() as download:
            page.click("#export")
        assert download.value.suggested_filename == "marks-r1.json"
        download.value.save_as(tmp_path / "marks.json")
        page.reload()
        page.wait_for_selector("html[data-ready]")
        assert marked(page) == "2 approved, 1 rejected", "this browser keeps them"
    assert json.loads((tmp_path / "marks.json").read_text())["by"] == "Anna"
    read = marks.read(str(tmp_path / "marks.json"))
    by_id = {c["creative_id"]: c for c in twelve.to_pylist()}
    assert sorted(m.mark for m in read) == ["approved", "approved", "rejected"]
    for mark in read:
        made = by_id[mark.creative_id]
        assert all(getattr(mark, name) == made[name] for name in ("request_id", "product_id", "cohort_id", "sha256"))
    (tmp_path / "other.json").write_text(json.dumps({"format": "something else", "marks": []}))
    with Visit(chromium, path) as page:
        assert marked(page) == "0 approved, 0 rejected"
        page.set_input_files("#import-file", tmp_path / "other.json")
        expect(page.locator("#said")).to_contain_text("nothing was read")
        page.set_input_files("#import-file", tmp_path / "marks.json")
        expect(page.locator("#marked")).to_have_text("2 approved, 1 rejected")
        assert page.locator('.card[data-mark="rejected"]').count() == 1


def test_one_creative_in_full(root, twelve, chromium):
    with Visit(chromium, write_page(root, twelve)) as page:
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        detail = page.locator("#detail")
        assert "3 candidates" in detail.inner_text()
        assert detail.locator(".candidate").count() == 3
        assert detail.locator(".candidate.won").inner_text().startswith("0.600 winner")
        assert "below original" in detail.locator(".candidate").nth(2).inner_text()
        assert "31.0 %" in detail.locator(".candidate").nth(1).inner_text()
        assert f"{twelve['seed'][0].as_py()}" in detail.locator(".candidate.won").inner_text(), "all digits of a seed"
        assert detail.locator("img").count() == 6, "winner, photo, mask, three candidates"
        assert page.evaluate(
            "[...document.querySelectorAll('#detail img')].every(i => i.complete && i.naturalWidth > 0)"
        )
        page.keyboard.press("j")
        page.keyboard.press("r")
        assert detail.locator('[aria-pressed="true"]').inner_text().startswith("Reject")
        page.keyboard.press("Escape")
        assert not detail.is_visible()
        page.wait_for_function("document.activeElement.dataset.i === '1'")  # the focus is where the reader was
        assert marked(page) == "0 approved, 1 rejected"
        page.keyboard.press("?")
        assert "approve" in page.inner_text("#keys")


@pytest.mark.parametrize("where", ["", "/catalogs/de"])
def test_the_link_to_a_stored_file_leads_to_it(root, chromium, where):
    found = Root(root.uri + where)
    path = write_page(found, shop(found, 2))
    with Visit(chromium, path) as page:
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        address = page.locator("#detail a", has_text="stored file").evaluate("a => a.href")
    assert Path(address.removeprefix("file://")).is_file()


def test_hostile_texts_are_text(root, chromium):
    title = HOSTILE + "x" * (5000 - len(HOSTILE))
    rows = shop(root, 1, 2, title=title.replace("{", "{{").replace("}", "}}"), text="</script><script>window.taken = 1")
    with Visit(chromium, write_page(root, rows)) as page:
        card = page.locator(".card").first
        assert card.locator(".product").text_content() == title
        assert card.bounding_box()["height"] < 600
        assert "</script>" in card.locator(".cohort").text_content()
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        body = page.locator("#detail p.product")
        assert body.text_content() == title
        small = body.bounding_box()["height"]
        page.locator("#detail .facts button.link").first.click()
        assert body.bounding_box()["height"] > 3 * small
        assert page.evaluate("window.taken") is None
        assert page.evaluate("document.scripts.length") == 2
        assert page.evaluate("document.documentElement.scrollWidth") == 1440


def test_nothing_can_be_asked_even_if_something_tried(root, twelve, chromium, misbehaving):
    visit = Visit(chromium, write_page(root, twelve))
    with visit as page:
        tried = """async (url) => { try { await fetch(url); return 'asked'; } catch { } const i = new Image(); i.src = url;
            await new Promise(r => setTimeout(r, 300)); const s = document.createElement('script'); s.textContent = 'window.ran = 1';
            document.body.append(s); return window.ran ? 'ran' : 'refused'; }"""
        assert page.evaluate(tried, misbehaving.url) == "refused"
        assert misbehaving.asked == []
        assert visit.complaints, "the browser says what it refused"
        visit.complaints.clear()
        visit.asked.clear()


@pytest.mark.slow
def test_ten_thousand_creatives(root, chromium):
    rows = shop(root, 500, 20)
    began = time.monotonic()
    write_page(root, rows, most=10_000)
    written = time.monotonic() - began
    data = gallery.read(root, "r1")
    for i, made in enumerate(data["creatives"]):  # as if all candidates of all had been kept
        figures = {"expansion_share": 0.01, "copy_similarity": 0.2}
        made["candidates"] = [
            {"seed": str(2**62 + 4 * i + k), "score": 0.5, "word": None, "figures": figures, "thumb": k, "won": k == 0}
            for k in range(4)
        ]
    root.write_json("runs/r1/gallery.json", data)
    path = write_report(root, "r1")
    megabytes = len(root.read("runs/r1/report.html")) / 1e6
    began = time.monotonic()
    with Visit(chromium, path) as page:
        loaded = time.monotonic() - began
        assert shown(page) == "10,000 creatives"
        assert page.locator(".card").count() < 60
        page.keyboard.press("j")
        began = time.monotonic()
        page.keyboard.press("End")
        last = page.locator('.card[data-i="9999"]')
        assert page.evaluate("document.activeElement.dataset.i") == "9999"
        until(page, "document.querySelector('[data-i=\"9999\"] img').naturalWidth > 0")
        assert last.is_visible()
        assert page.locator(".card").count() < 80
        page.fill("#search", "p00499")
        expect(page.locator("#shown")).to_have_text("20 of 10,000 creatives")
        used = time.monotonic() - began
    print(
        f"10,000 creatives, {megabytes:.1f} MB: written in {written:.1f} s, loaded in {loaded:.1f} s, used in {used:.1f} s"
    )
    assert loaded < 20
    assert used < 10


def test_many_pictures_lie_beside_the_page(root, twelve, chromium, monkeypatch):
    monkeypatch.setattr(gallery, "INLINE_MOST", 3)
    with Visit(chromium, write_page(root, twelve)) as page:
        until(page, "[...document.images].length && [...document.images].every(i => i.naturalWidth > 0)")
        assert "base64" not in page.content()
    assert root.names("runs/r1/thumbs")


def test_an_empty_run_and_one_of_originals_only_say_so(root, chromium):
    none = schema.CREATIVES.empty_table()
    why = "40.0% of 12 requests are filled, min_coverage is 95.0%"
    with Visit(chromium, write_page(root, none, why_not=why)) as page:
        assert page.inner_text("h1") == "No creatives yet"
        assert why in page.inner_text("#results")
        assert "No creatives to show" in page.inner_text("#nothing")
    rows = shop(root, 1, 5)
    with Visit(chromium, write_page(root, rows.slice(4))) as page:
        assert "Every creative is the original picture" in page.inner_text("#results")
        assert "below original" in page.inner_text("#results")


def test_the_most_valuable_that_was_left_and_why(root, twelve, chromium):
    factors = {"weight_factor": 4.0, "size_factor": 0.5, "age_factor": 1.0, "gain_factor": 2.125}
    row = {"product_id": "<b>p7</b>", "cohort_id": "hikers", "placement": "square", "value_class": "low_margin"}
    row |= {"value": 4.25, "margin": 0.125, "expected_margin": 0.25, **factors}
    with Visit(chromium, write_page(root, twelve, left=31, left_most_valuable=[row])) as page:
        text = page.inner_text("#results")
        assert "The most valuable of 31 requests left for the next night" in text
        cells = page.locator("#results tbody tr").first.locator("th, td").all_inner_texts()
        assert cells[:5] == ["<b>p7</b>", "hikers", "square", "low margin", "4.25"]
        assert cells[5:] == ["× 4.00", "× 0.500", "× 1.00", "× 2.13", "0.125", "0.250"]
    with Visit(chromium, write_page(root, twelve)) as page:
        assert "left for the next night" not in page.inner_text("#results")


def test_the_evaluation_and_what_is_missing_in_it(root, twelve, chromium):
    with Visit(chromium, write_page(root, twelve, evaluation=EVALUATION)) as page:
        text = page.inner_text("#evaluation")
        assert "+50.0 % +40.0 % to +62.0 %" in text
        assert "not the paper's <i>experiment</i>" in text
        assert "2.1 % 1.0 % to 3.0 %" in text
        assert "−0.021" in text, "a difference where a ratio is not defined"
        assert page.locator("#evaluation svg").count() == 2
        page.select_option("#evaluation .choice select", label="rank (model A), best-of-4")
        assert page.locator("#evaluation tbody").first.locator("tr").count() == 6
    for bare in (
        {},
        {"notes": ["no judge model was given"]},
        {"experiments": [{"experiment": "base"}], "figures": [{"name": "x"}]},
    ):
        with Visit(chromium, write_page(root, twelve, evaluation=bare)) as page:
            assert page.locator("#evaluation").is_visible()


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_and_the_colours_follow(root, twelve, chromium, width, scheme):
    visit = Visit(chromium, write_page(root, twelve, evaluation=EVALUATION), color_scheme=scheme)
    visit.page.set_viewport_size({"width": width, "height": 844})
    with visit as page:
        assert page.evaluate("document.documentElement.scrollWidth") == width
        colour = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
        assert (page.evaluate(colour) > 128) == (scheme == "light")
        page.click("#theme")
        page.click("#theme")
        assert page.evaluate(colour) < 128, "dark is chosen"
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        assert page.evaluate(
            "document.getElementById('detail').scrollWidth <= document.getElementById('detail').clientWidth"
        )


def test_a_browser_that_keeps_nothing_still_works(root, twelve, chromium):
    visit = Visit(chromium, write_page(root, twelve))
    visit.page.add_init_script(BLOCKED)
    with visit as page:
        page.keyboard.press("j")
        page.keyboard.press("a")
        assert marked(page).startswith("1 approved, 0 rejected (this browser keeps nothing")
