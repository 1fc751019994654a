"""The Learning view in a browser: lift by day with its interval, arms, what a reward knows, hostile names."""

from datetime import date, timedelta

import pytest

from adbooster.learn.config import Learning
from tests.pages import Visit, chromium, shop, write_page

__all__ = ["chromium"]
HOSTILE = '<img src=x onerror="alert(1)">\u202e</script>' * 6


def interval(mean, half):
    return {"mean": mean, "low": mean - half, "high": mean + half}


def group(family, mean, **more):
    counts = {"pairs": 80, "control_pairs": 20, "impressions": 90_000, "control_impressions": 20_000}
    path = [
        {
            "day": str(date(2026, 3, 1) + timedelta(i)),
            "lift": interval(mean, 0.6 / (1 + i)),
            "difference": interval(0.001, 0.01),
        }
        for i in range(30)
    ]
    told = {
        "family": family,
        **counts,
        "clicks": 2000,
        "control_clicks": 400,
        "lift": interval(mean, 0.05),
        "sure": mean > 0.05,
    }
    return told | {"note": "", "path": path} | more


def compared(gain):
    return {
        "creatives": 90,
        "impressions": 9000,
        "clicks": 200,
        "auc": 0.61,
        "clip_auc": 0.52,
        "auc_gain": interval(gain, 0.02),
    } | {"log_loss": 0.09, "clip_log_loss": 0.091, "log_loss_gain": interval(gain / 100, 0.0001)}


def found(name="seasons"):
    arm = {
        "weight": 0.7,
        "impressions": 500,
        "clicks": 12,
        "ctr": 0.024,
        "ctr_low": 0.02,
        "ctr_high": 0.03,
        "family": name,
    }
    counts = {"creatives": 60, "products": 20}
    figures = counts | {
        "impressions": 9000,
        "clicks": 200,
        "marks": 0,
        "total": compared(0.09),
        "families": {name: compared(0.08)},
        "calibration": [{"predicted": p, "observed": interval(p * 1.1, 0.002), "n": 100} for p in (0.01, 0.02, 0.03)],
        "weights": {"cosine": 0.4, "ground_line": -0.2},
        "values": [
            {
                "method": "snips",
                "by_score": interval(0.025, 0.002),
                "by_clip": interval(0.02, 0.002),
                "gain": interval(0.005, 0.003),
                "effective_impressions": 4000.5,
            }
        ],
        "surely_better": True,
    }
    trained = {"uri": "rewards/abc", "revision": "ab" * 8, "new": True}
    no_gate = counts | {
        "rejected": 3,
        "threshold": None,
        "why": "too few were rejected",
        "precision": None,
        "recall": None,
    }
    no_gate |= {"auc": 0.5, "calibration": [], "weights": {}}
    learned = {
        "run_id": "r1",
        "day": "2026-03-30",
        "lift": {
            "together": group("all", 0.12),
            "families": [group(name, 0.02), group("sports", 0.2, lift=None, path=[], note="too few pairs")],
            "robot_clicks": 31,
        },
        "experiments": [
            {"name": "wording", "ended": "", "arms": [{"arm": "short", **arm}, {"arm": "long", **arm}]},
            {"name": "old", "ended": "a", "arms": [{"arm": "a", **arm}]},
        ],
        "reward": trained | {"figures": figures},
        "usability": trained | {"figures": no_gate},
        "retired": [
            {
                **dict.fromkeys(("placement", "family", "best_id"), name),
                **dict.fromkeys(("clicks", "probability", "lost_clicks"), 1),
                "creative_id": "0" * 16,
                "product_id": name,
                "cohort_id": "c1",
                "impressions": 4000,
                "ctr": 0.01,
                "best_ctr": 0.02,
            }
        ],
        "notes": [f"a note of {name}"],
    }
    return Learning.model_validate(learned).model_dump(mode="json")


def page_of(root, learned):
    root.write_json("runs/r1/learning.json", learned)
    return write_page(root, shop(root))


def test_lift_arms_and_scores_are_told(root, chromium):
    with Visit(chromium, page_of(root, found())) as page:
        text = page.inner_text("#learning")
        assert (
            "Creatives bring +12.0 % clicks an impression over the originals of 20 held-out pairs, +7.0 % to +17.0 %: this is sure"
            in text
        )
        assert "31 clicks beyond what people make are not counted" in text
        assert "too few pairs" in text
        assert "It orders surely better than CLIP" in text
        assert "It must not reject anything: too few were rejected." in text
        assert page.locator("#learning path.band").count() == 1
        assert page.locator("#learned circle").count() == 3
        states = page.locator("#experiments tbody td:nth-child(2)").all_inner_texts()
        assert states == ["running", "running", "ended on a"]
        assert not page.locator("#retired table").is_visible()
        page.click("#retired summary")
        assert page.locator("#retired tbody tr").count() == 1
        assert page.locator("#to-learning").is_visible()


def test_a_run_that_learned_nothing_has_no_such_view(root, chromium):
    with Visit(chromium, write_page(root, shop(root))) as page:
        assert not page.locator("#learning").is_visible()
        assert not page.locator("#to-learning").is_visible()


@pytest.mark.parametrize("width", [390, 1440])
def test_hostile_names_are_text_and_nothing_sticks_out(root, chromium, width):
    visit = Visit(chromium, page_of(root, found(HOSTILE)))
    visit.page.set_viewport_size({"width": width, "height": 844})
    with visit as page:
        assert HOSTILE in page.locator("#learning").text_content()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
