"""A root that the code before the rooms wrote is taken up as it is: nothing is made or painted again.

tests/former_root holds that root (tables and objects of two products, two cohorts, four creatives), the shop that it was
made from, models of a few hundred parameters, and the settings, all written by commit 00a4f05.
"""

import shutil
from pathlib import Path

import pytest

from adbooster.cli.load import load
from adbooster.deliver.config import DeliverConfig
from adbooster.night import state
from adbooster.night.config import NightlyConfig
from adbooster.night.job import nightly
from adbooster.storage import tables
from adbooster.storage.objects import Root

FORMER = Path(__file__).parents[1] / "former_root"
KEPT = ("photo_uri", "mask_uri", "mask_by", "mask_area_share", "caption", "caption_by", "background", "fingerprint")


@pytest.fixture
def settings(tmp_path):
    shutil.copytree(FORMER / "root", tmp_path / "root")
    flags = ["--config", str(FORMER / "night.yaml"), "--root-uri", str(tmp_path / "root"), "--run-id", "now"]
    return load(NightlyConfig, flags)


def test_a_root_of_the_former_version_is_taken_up(warm_ray, settings):
    root = Root(settings.root_uri)
    before = {name: tables.read(root, name).to_pylist() for name in ("samples", "creatives", "cohorts")}
    given = {"root_uri": settings.root_uri, "run_id": "now", "channels": ("meta",)}
    delivering = DeliverConfig(**given, public_base_url="https://cdn.shop.example")
    report = nightly(settings.model_copy(update={"deliver": delivering}))
    assert (report.prepare.pictures, report.prepare.new_or_changed, report.prepare.unchanged) == (5, 0, 5)
    assert (report.cohorts.cohorts, report.cohorts.new_or_changed) == (2, 0)
    generated = report.generate
    assert generated is not None
    assert (generated.requests, generated.already_live, generated.to_paint) == (4, 4, 0)
    assert (generated.painted, generated.published, generated.retired) == (0, 0, 0)
    assert tables.version(root, "creatives") == 0, "nothing was committed"
    assert tables.read(root, "creatives").to_pylist() == before["creatives"]
    assert report.deliver is not None
    assert (report.deliver.creatives, report.deliver.left_out) == (4, {"original": 4})
    assert root.exists("delivery/meta/latest.json")
    assert [s.step for s in state.read(root, "now").steps if s.state == "finished"][-2:] == ["deliver", "maintain"]
    after = {row["sample_id"]: row for row in tables.read(root, "samples").to_pylist()}
    for row in before["samples"]:
        assert {name: after[row["sample_id"]][name] for name in KEPT} == {name: row[name] for name in KEPT}


def test_another_recipe_on_it_is_painted(warm_ray, settings):
    """The test above would not notice a night that never paints."""
    other = settings.generate.model_copy(update={"recipe": settings.generate.recipe.model_copy(update={"seed": 1})})
    generated = nightly(settings.model_copy(update={"generate": other})).generate
    assert generated is not None
    assert (generated.already_live, generated.to_paint) == (0, 4)
    assert generated.published == 4
