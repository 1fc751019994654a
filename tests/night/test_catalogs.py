"""Nights of several catalogs of one root, at the same time."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from adbooster.night import state
from adbooster.night.config import NightlyConfig, NightlyReport
from adbooster.night.job import nightly
from adbooster.night.steps import Steps
from adbooster.storage import lock, tables
from adbooster.storage.objects import Root
from adbooster.storage.vacuum import vacuum
from adbooster.tiny import world
from tests.conftest import write_png
from tests.night.test_nightly import config
from tests.storage.test_vacuum import NONE

PRODUCTS = {"de": ("teapot", "running-shoe"), "fr": ("running-shoe", "teapot")}  # P0 and P1 of each shop


def of_catalog(name: str, tmp_path) -> NightlyConfig:
    """The night of a shop whose products have the ids of the other's and other photos."""
    shop = tmp_path / name
    shop.mkdir()
    for i, key in enumerate(PRODUCTS[name]):
        write_png(shop / f"{i}.png", world.packshot(key, 256)[0])
    rows = "".join(f"P{i}\tA product\t{i}.png\n" for i in range(2))
    (shop / "feed.tsv").write_text(f"id\ttitle\timage_link\n{rows}")
    values = config(str(tmp_path / "root"), shop / "feed.tsv", tmp_path).model_dump()
    return NightlyConfig.model_validate(values | {"catalog": name, "train": {"rule": "never"}, "finetune": None})


@pytest.mark.timeout(400)
def test_two_nights_at_once_publish_each_its_own(warm_ray, tmp_path, monkeypatch):
    settings, both = {name: of_catalog(name, tmp_path) for name in PRODUCTS}, Barrier(2, timeout=120)
    root, run = Root(str(tmp_path / "root")), Steps._run

    def met(steps, name, *rest):
        """Before they generate, each waits until the other is there under its own lock."""
        if name == "generate":
            both.wait()
            assert not lock.newest(steps.root).released
        return run(steps, name, *rest)

    monkeypatch.setattr(Steps, "_run", met)
    with ThreadPoolExecutor(2) as threads:
        first: dict[str, NightlyReport] = dict(zip(settings, threads.map(nightly, settings.values()), strict=True))
    german, french = root.catalogs()
    assert (german.catalog, french.catalog) == ("de", "fr")
    rows = {c.catalog: tables.read(c, "creatives").to_pylist() for c in (german, french)}
    for name, shop in (("de", german), ("fr", french)):
        assert first[name].generate.painted == 4
        assert first[name].gallery_uri == f"{root.uri}/catalogs/{name}/runs/night/report.html"
        assert state.status(shop).nights[0].state == "finished"
        assert {r["product_id"] for r in rows[name]} == {"P0", "P1"}
        assert not shop.missing(r["uri"] for r in rows[name])
    # The German P0 is the French P1, so that what is the same is the photo and what differs is the request.
    photos = {
        c.catalog: {s["product_id"]: s["photo_uri"] for s in tables.read(c, "samples").to_pylist()}
        for c in (german, french)
    }
    assert photos["de"] == {"P0": photos["fr"]["P1"], "P1": photos["fr"]["P0"]}
    assert not {r["request_id"] for r in rows["de"]} & {r["request_id"] for r in rows["fr"]}
    assert sorted(root.names("")) == ["catalogs", "objects"]

    assert not vacuum(root, NONE, force=True).objects
    monkeypatch.setattr(Steps, "_run", run)
    again = nightly(NightlyConfig.model_validate(settings["de"].model_dump() | {"run_id": "again"}))
    assert (again.prepare.unchanged, again.generate.painted) == (2, 0)
    assert tables.read(french, "creatives").to_pylist() == rows["fr"]
