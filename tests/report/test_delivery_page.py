"""The Delivery view in a browser: slots as channels show them, filters, marks, and hostile texts."""

import pytest
from playwright.sync_api import expect

from adbooster.channels.presets import load_channels
from adbooster.deliver.job import deliver
from adbooster.deliver.withdraw import withdraw
from tests.deliver.conftest import config, rendered, small
from tests.deliver.pictures import publish
from tests.pages import Visit, chromium
from tests.report.test_delivery import HOSTILE, WIDE
from tests.report.test_page import until

__all__ = ["chromium", "rendered", "small"]
LOADED = "[...document.querySelectorAll('#delivery img')].every(i => i.complete && i.naturalWidth > 0)"


def test_slots_are_drawn_in_their_shape_with_frame_and_safe_area_and_filtered(root, small, rendered, chromium):
    publish(root, products=("P1", "P2", "P3"), cohorts=("c1", "c2", "c3", "c4"), box=WIDE)
    path = deliver(config(root, small("google_pmax", "meta"))).gallery_uri
    with Visit(chromium, path) as page:
        assert page.inner_text("#delivered").startswith("12 creatives, 84 slots")
        assert page.locator("article.delivered").count() == 10
        page.click("#more-slots")
        assert page.locator("article.delivered").count() == 12
        assert not page.locator("#more-slots").is_visible()
        first = page.locator("article.delivered").first
        presets = load_channels(("google_pmax", "meta"))
        ratios = {(c.name, name.replace("_", " ")): slot.ratio for c in presets for name, slot in c.slots.items()}
        for figure in first.locator(".slot-figure").all():
            box = figure.locator(".slot").bounding_box()
            channel, _, slot = figure.locator("b").inner_text().partition(" ")
            wide, high = ratios[channel, slot]
            assert abs(box["width"] / box["height"] / (wide / high) - 1) < 0.05
            assert figure.locator(".framed .frame").count() == 1
        assert first.locator(".margins").first.is_visible()
        page.uncheck("#safe-areas")
        assert not first.locator(".margins").first.is_visible()
        page.select_option("#slot-reason", "reason:needs_extension")
        expect(page.locator("#delivered")).to_have_text("12 creatives, 24 slots")
        assert "more scene would have to be painted" in first.inner_text()
        page.select_option("#channel", "meta")
        expect(page.locator("#delivered")).to_have_text("12 creatives, 12 slots")
        page.fill("#delivery-search", "the p2")
        expect(page.locator("#delivered")).to_have_text("4 of 12 creatives, 4 slots")
        page.fill("#delivery-search", "nothing like it")
        assert "No slot fits" in page.inner_text("#slots")
        page.click("#delivery tbody button.link >> nth=0")
        expect(page.locator("#delivered")).to_have_text("12 creatives, 48 slots")
        page.locator("article.delivered summary").first.click()
        assert "https://cdn.shop.example/ads/objects/" in page.locator("article.delivered .feed").first.inner_text()
        for picture in page.locator("#slots img").all():
            picture.scroll_into_view_if_needed()
        until(page, LOADED)


def test_a_mark_in_the_gallery_is_seen_at_the_slots(root, small, rendered, chromium):
    publish(root, products=("P1", "P2"))
    path = deliver(config(root, small("tiktok"))).gallery_uri
    with Visit(chromium, path) as page:
        page.keyboard.press("j")
        page.keyboard.press("r")
        assert page.locator('article.delivered[data-mark="rejected"]').count() == 1
        assert page.locator("article.delivered .mark:visible").all_inner_texts() == ["rejected"]


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_hostile_texts_are_text_and_nothing_sticks_out(root, small, rendered, chromium, width, scheme):
    publish(root, products=(HOSTILE * 40, "P1"), cohorts=(HOSTILE,))
    withdraw(root, "product", ["P1"], "w1")
    path = deliver(config(root, small("google_merchant", "meta", "web"))).gallery_uri
    visit = Visit(chromium, path, color_scheme=scheme)
    visit.page.set_viewport_size({"width": width, "height": 844})
    with visit as page:
        assert HOSTILE in page.locator("article.delivered h3").text_content()
        for summary in page.locator("#delivery summary").all():
            summary.click()
        assert "P1" in page.inner_text("#withdrawn")
        assert "withdrawn" in page.inner_text("#left-out")
        assert page.evaluate("window.taken") is None
        assert page.evaluate("document.scripts.length") == 2
        assert page.evaluate("document.documentElement.scrollWidth") == width
