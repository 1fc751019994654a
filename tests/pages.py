"""A root full of creatives to make pages from, without painting any, and a browser to look at them with."""

import os
import shutil

import numpy as np
import pyarrow as pa
import pytest

from adbooster.contracts import schema
from adbooster.painting import candidates
from adbooster.pictures import images
from adbooster.report import gallery, page, uplift
from adbooster.storage import tables
from adbooster.storage.objects import Root
from tests.conftest import row, scan

FAMILIES = ("events", "seasons", "sports")
WORDS = (None, "second_copy", "below_original", "product_expanded")
NUMBERS = {
    "job": "generate",
    "requests": 12,
    "already_live": 3,
    "painted": 9,
    "rejected": 0,
    "published": 9,
    "retired": 0,
    "coverage": 1.0,
    "gpu_s": 8.0,
    "candidate_rejects": {"second_copy": 3, "product_expanded": 1},
}


def plate(colour, size_px=96) -> bytes:
    """A picture of a box on a ground."""
    picture = np.full((size_px, size_px, 3), colour, np.uint8)
    picture[size_px // 3 : -8, size_px // 3 : -size_px // 3] = 255 - np.array(colour, np.uint8)
    return images.encode_lossless(picture)


def shop(root: Root, products=3, cohorts=4, title="Teapot {i}", text="a halloween night {i}") -> pa.Table:
    """Fill the tables of a root; returns its creatives: every product for every cohort, some the original photo."""
    photo = root.put(plate((250, 250, 250)), "photo")
    mask = np.zeros((96, 96), np.uint8)
    mask[32:88, 32:64] = 255
    mask_uri = root.put(images.encode_mask(mask), "png")
    scenes = [root.put(plate(c), "webp") for c in ((40, 60, 120), (180, 90, 30), (60, 120, 70), (90, 40, 90))]
    told = {"role": "main", "category": "Home", "photo_uri": photo, "photo_sha256": "f" * 64, "mask_uri": mask_uri}
    samples = [
        row(schema.SAMPLES, sample_id=f"s{i}", product_id=f"P{i:05}", title=title.format(i=i), **told)
        for i in range(products)
    ]
    samples.append(row(schema.SAMPLES, sample_id="bad", product_id="bad", role="main", reject="mask_empty"))
    tables.merge(root, "samples", pa.Table.from_pylist(samples, schema.SAMPLES), "sample_id", None, {})
    groups = [
        row(schema.COHORTS, cohort_id=f"c{i}", family=FAMILIES[i % 3], query="teapot", context=text.format(i=i))
        for i in range(cohorts)
    ]
    tables.merge(root, "cohorts", pa.Table.from_pylist(groups, schema.COHORTS), "cohort_id", None, {})
    made = [creative(i, i // cohorts, i % cohorts, scenes, photo) for i in range(products * cohorts)]
    return pa.Table.from_pylist(made, schema.CREATIVES)


def creative(i: int, product: int, cohort: int, scenes: list[str], photo: str) -> dict:
    fallback = i % 5 == 4
    uri = photo if fallback else scenes[cohort % len(scenes)]
    return row(
        schema.CREATIVES,
        creative_id=f"{i:016x}",
        request_id=f"{i * 7919 % 1000003:064x}",
        product_id=f"P{product:05}",
        cohort_id=f"c{cohort}",
        placement="square",
        rank=0,
        prompt="a teapot, a halloween night",
        negative_prompt="people",
        prompt_style="qc",
        text="a halloween night",
        photo_sha256="f" * 64,
        seed=0 if fallback else (1 << 62) + i,
        clip_score=0.5 + i % 40 / 100,
        neutral_score=0.3 + i % 7 / 100,
        margin=0.1,
        candidate_scores=[0.4, 0.5],
        gates=dict.fromkeys(f.name for f in schema.GATES) | {"product_max_diff": 0},
        fallback=fallback,
        fallback_reason="below_original" if fallback else None,
        uri=uri,
        sha256=uri.rsplit("/", 1)[-1].split(".")[0],
        width=96,
        height=96,
        run_id="r1" if i % 2 else "r0",
    )


def keep_candidates(root: Root, rows: pa.Table) -> None:
    """What a painter keeps of a request: three candidates, one turned down."""
    previews = [images.decode(plate(c)) for c in ((20, 20, 60), (200, 120, 40), (30, 90, 50))]
    for i, made in enumerate(rows.to_pylist()):
        seeds = [made["seed"] or 11, 12 + i, 13 + i]
        words, figures = (None, WORDS[i % 4], None), ({}, {"expansion_share": 0.31}, {})
        facts = zip(range(3), seeds, (0.6, 0.5, 0.2), previews, words, figures, strict=True)
        seen = [candidates.candidate(*one) for one in facts]
        winners = {} if made["fallback"] else {0: previews[0]}
        candidates.write(root, made["run_id"], {"request_id": made["request_id"], "round": 0}, seen, winners, 0.3)


def write_page(root: Root, rows: pa.Table, most=300, evaluation=None, **numbers) -> str:
    """The path of a page over these creatives."""
    families = {f"c{i}": FAMILIES[i % 3] for i in range(100)}
    told = {name: u.model_dump() for name, u in uplift.uplift(scan(rows), families).items()} if rows.num_rows else {}
    gallery.write(root, "r1", scan(rows), NUMBERS | {"uplift": told} | numbers, most)
    return page.write_report(root, "r1", evaluation)


@pytest.fixture(scope="module")
def chromium():
    """A Chromium of this machine, driven over a pipe."""
    path = os.environ.get("ADBOOSTER_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
    if not path:
        pytest.skip("no Chromium here: install one (Debian: apt install chromium) or name it in ADBOOSTER_BROWSER")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A page open in a browser of its own, with all that it asked for and complained about."""

    def __init__(self, browser, address: str, **context):
        self.context = browser.new_context(viewport={"width": 1440, "height": 900}, **context)
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda r: self.asked.append(r.url))
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("console", lambda m: m.type in ("error", "warning") and self.complaints.append(m.text))
        self.address = address if "://" in address else f"file://{address}"

    def __enter__(self):
        self.page.goto(self.address)
        self.page.wait_for_selector("html[data-ready]", timeout=60_000)
        return self.page

    def __exit__(self, kind, *_):
        self.context.close()
        if kind is None:
            assert self.complaints == []
            assert [url for url in self.asked if not url.startswith(("file:", "data:", "blob:"))] == []
