import json

import pytest

from adbooster.contracts.settings import Pool
from adbooster.generate.job import generate
from adbooster.generate.suggestions import suggest
from tests.generate.test_generate import config

MEASURED = {"Placer": 0.1, "Painter": 0.25, "Finisher": 0.6}


def measured(root, run_id, row_s):
    stages = {name: {"rows": 100, "row_s": s} for name, s in row_s.items()}
    root.write(f"runs/{run_id}/stages.json", json.dumps({"generate": stages}).encode())


def settings(root, **changes):
    pools = {"paint": Pool(actors=2, batch=4), "place": Pool(cpus=0.1), "finish": Pool(cpus=0.1)}
    return config(root, paint_batch=16, recipe={"candidates": 4}).model_copy(update=pools | changes)


def test_actors_follow_from_what_the_last_run_measured(local_ray, root):
    assert suggest(settings(root), root, 1000) is None
    measured(root, "2026-01-01", dict.fromkeys(MEASURED, 9.0))
    measured(root, "2026-01-02", MEASURED)
    root.write("runs/2026-01-03/stages.json", b"{}")  # a night that painted nothing
    found = suggest(settings(root), root, 1000)
    assert found.measured_in == "2026-01-02"
    assert found.actors == {"place": 1, "paint": 2, "finish": 6}, "two painters finish 8 requests/s, one finisher 1.7"
    assert found.night_s == 125
    assert found.night_s_as_set == 600, "one finisher is what the night waits for"
    assert found.paint_batch_of_requests == 20
    assert found.fits
    assert suggest(settings(root, finish=Pool(cpus=0.1, max_actors=6)), root, 1000).night_s_as_set == 125
    assert not suggest(settings(root, finish=Pool(cpus=8)), root, 1000).fits


def test_a_dry_run_says_what_to_set(local_ray, stocked, capsys):
    measured(stocked, "2026-01-02", MEASURED)
    report = generate(config(stocked, dry_run=True))
    assert report.suggestion["actors"]["finish"] == 3
    said = capsys.readouterr().out
    assert "run 2026-01-02" in said
    assert "finish 3 (set: 1)" in said


def test_gpu_hours_count_gpus(local_ray, root):
    measured(root, "2026-01-02", MEASURED)
    assert suggest(settings(root, paint=Pool(gpus=0.5)), root, 14400).gpu_hours == pytest.approx(0.5)
