"""The dashboard draws what the code counts."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
BOARD = json.loads((REPO / "cluster" / "grafana.json").read_text())
PANELS = [p for p in BOARD["panels"] if p["type"] != "row"]
NEEDED = {
    "adbooster_creatives_total",
    "adbooster_rejects_total",
    "adbooster_candidates_total",
    "adbooster_gpu_seconds_total",
    "adbooster_queue_depth",
}


def drawn() -> list[str]:
    return [target["expr"] for panel in PANELS for target in panel["targets"]]


def counted() -> set[str]:
    """The names that the code counts under: the list that opens adbooster/engine/metrics.py."""
    found = importlib.util.find_spec("adbooster.engine.metrics")
    assert found
    assert found.origin
    return set(re.findall(r"^(adbooster_\w+) {2,}", Path(found.origin).read_text(), re.MULTILINE))


def test_every_metric_drawn_is_one_that_is_counted():
    ours = {name for expr in drawn() for name in re.findall(r"ray_(adbooster_\w+)", expr)}
    assert ours >= NEEDED
    assert ours <= counted()
    bare = [expr for expr in drawn() if re.search(r"(?<!ray_)adbooster_", expr)]
    assert not bare, "Ray exports them with its prefix"


def test_counters_are_drawn_as_rates_and_gauges_as_they_are():
    for expr in drawn():
        for name in re.findall(r"\b\w+_total\b", expr):
            assert re.search(rf"(rate|increase)\({name}", expr), expr
        assert not re.search(r"(rate|increase)\(\w+_depth", expr)


@pytest.mark.parametrize("panel", PANELS, ids=lambda p: p["title"])
def test_a_panel_is_whole(panel):
    assert panel["type"] in ("stat", "timeseries")
    assert panel["description"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    refs = [t["refId"] for t in panel["targets"]]
    assert refs == sorted(set(refs))
    for target in panel["targets"]:
        for opening, closing in ("()", "{}", "[]"):
            assert target["expr"].count(opening) == target["expr"].count(closing)
        by = re.findall(r"by \((\w+)\)", target["expr"])
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= set(by)


def test_the_board_is_one_that_grafana_takes():
    ids = [p["id"] for p in BOARD["panels"]]
    assert len(ids) == len(set(ids))
    assert (BOARD["uid"], BOARD["title"]) == ("adbooster", "AdBooster")
    names = {v["name"] for v in BOARD["templating"]["list"]}
    assert set(re.findall(r"\$(\w+)", " ".join(drawn()))) - {"__range"} <= names
    taken = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, f"{panel['title']} lies over another"
        taken |= cells
    assert "http" not in json.dumps(BOARD), "no address of anyone's server"
