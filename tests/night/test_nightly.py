"""The whole night, on disk and on S3, with real models and a feed with a broken row."""

from datetime import UTC, date, datetime

import pytest

from adbooster.contracts.errors import CanaryRefused, ConfigError, CoverageTooLow, LockHeld
from adbooster.deliver.config import DeliverConfig
from adbooster.night import state
from adbooster.night.checks import check as check_night
from adbooster.night.config import Due, NightlyConfig
from adbooster.night.job import _delivering, _generating, _night, _why_not, nightly
from adbooster.night.schedule import remember, trained
from adbooster.storage import tables
from adbooster.storage.lock import NightLock
from adbooster.storage.objects import Root
from adbooster.tiny import world
from tests.conftest import MODELS, in_tasks

SAME = (
    "creative_id",
    "request_id",
    "product_id",
    "cohort_id",
    "rank",
    "prompt",
    "seed",
    "uri",
    "sha256",
    "weights_revision",
)


def config(root_uri: str, feed, tmp_path) -> NightlyConfig:
    cohorts = tmp_path / "cohorts.yaml"
    cohorts.write_text(
        "- {id: h, family: events, query: a cup, context: a spooky halloween night}\n"
        "- {id: b, family: seasons, query: sneakers, context: a tropical beach holiday}\n"
    )
    return NightlyConfig.model_validate(
        {
            "root_uri": root_uri,
            "run_id": "night",
            "prepare": {
                "feed_uri": str(feed),
                "mask_model": str(MODELS / "mask" / "u2netp.onnx"),
                "caption_model": str(MODELS / "caption"),
                "device": "cpu",
            },
            "cohorts": {"cohorts_uri": str(cohorts)},
            "finetune": {
                "base": str(MODELS / "outpaint"),
                "device": "cpu",
                "workers": 0,
                "threads": 1,
                "size_px": 64,
                "steps": 2,
                "batch": 1,
                "held_out_share": 0.01,
            },
            "generate": {
                "weights": str(MODELS / "outpaint"),
                "rank_model": str(MODELS / "rank"),
                "device": "cpu",
                "dtype": "float32",
                "paint_batch": 4,
                "recipe": {"candidates": 2, "num_inference_steps": 2, "size_px": 256, "paint_px": 64},
            },
        }
    )


def failed_at_generate(settings: NightlyConfig) -> NightlyConfig:
    """Run a night that may not paint; returns the settings to resume it with. What went before has no need to run again."""
    with pytest.raises(CoverageTooLow, match="0.0% of 4 requests are filled, 4 are left by the gpu_hours"):
        nightly(settings.model_copy(update={"gpu_hours": 0.0}))
    told = state.read(Root(settings.root_uri), "night")
    states = {s.step: s.state for s in told.steps}
    assert (told.state, states.pop("canary"), states.pop("learn")) == ("failed", "skipped", "skipped")
    assert states.pop("evaluate") == states.pop("maintain") == "waiting"
    assert states == {"prepare": "finished", "cohorts": "finished", "finetune": "finished", "generate": "failed"}
    for step in told.steps[:3]:  # a step that ran again would have a report of its own
        step.report["seconds"] = 1234.0
    told.save(Root(settings.root_uri))
    return settings.model_copy(update={"resume": True})


def live(root_uri: str) -> list[dict]:
    return sorted(tables.read(Root(root_uri), "creatives", list(SAME)).to_pylist(), key=lambda r: r["creative_id"])


@pytest.mark.timeout(400)
def test_a_night_on_s3_is_the_night_on_disk(local_ray, tmp_path, tiny_feed, s3_root):
    with tiny_feed.open("a") as feed:
        feed.write("P9\tA broken one\tgone.png\t\t\n")
    (tiny_feed.parent / "cut.png").write_bytes((tiny_feed.parent / "teapot.png").read_bytes()[:2000])
    with tiny_feed.open("a") as feed:
        feed.write("P8\tA cut one\tcut.png\t\t\n")
    disk = str(tmp_path / "disk")
    reports = {}
    for uri in (disk, s3_root):
        settings = config(uri, tiny_feed, tmp_path)
        settings = settings.model_copy(
            update={"prepare": settings.prepare.model_copy(update={"max_reject_share": 0.5})}
        )
        check_night(settings)
        with pytest.MonkeyPatch.context() as patch:
            if uri == disk:  # the other one runs its stages in actors
                patch.setattr("adbooster.engine.pools._in_actors", in_tasks)
                settings = failed_at_generate(settings)
            reports[uri] = nightly(settings)
        samples = {r["product_id"]: r["reject"] for r in tables.read(Root(uri), "samples").to_pylist()}
        assert samples == {"P0": None, "P1": None, "P9": "missing_image", "P8": "unreadable_image"}
    assert reports[disk].generate.painted == 4
    assert reports[disk].generate.coverage == 1.0
    assert set(reports[disk].generate.uplift) == {"all", "events", "seasons"}
    assert live(disk) == live(s3_root)
    assert len(live(disk)) == 4
    for creative in live(s3_root):
        assert Root(s3_root).read(creative["uri"]) == Root(disk).read(creative["uri"])
    resumed = state.read(Root(disk), "night")
    states = {s.step: s.state for s in resumed.steps}
    assert states.pop("canary") == states.pop("learn") == states.pop("evaluate") == "skipped"
    assert states == dict.fromkeys(("prepare", "cohorts", "finetune", "generate", "maintain"), "finished")
    assert (resumed.state, resumed.resumed, reports[disk].resumed) == ("finished", 1, 1)
    before = (reports[disk].prepare, reports[disk].cohorts, reports[disk].finetune)
    assert [r.seconds for r in before] == [1234.0] * 3
    page = Root(s3_root).read("runs/night/report.html").decode()
    assert "spooky halloween night" in page


def test_what_cannot_be_resumed_or_is_running_is_said_at_once(tmp_path, tiny_feed):
    root = Root(str(tmp_path / "root"))
    settings = config(root.uri, tiny_feed, tmp_path)
    with pytest.raises(ConfigError, match="there is no night night below .* to resume"):
        check_night(settings.model_copy(update={"resume": True}))
    with pytest.raises(ConfigError, match="the deadline 'soon'"):
        check_night(settings.model_copy(update={"deadline": "soon"}))
    with NightLock(root, "another"), pytest.raises(LockHeld, match="night another has held the lock"):
        nightly(settings)
    assert not root.names("tables")


def test_a_night_that_does_not_train_paints_with_the_weights_of_the_last_that_did(root, tiny_feed, tmp_path):
    settings = config(root.uri, tiny_feed, tmp_path).model_copy(update={"train": Due(rule="days", days=7)})
    begun = state.Night(run_id="night", started_at=datetime.now(UTC))
    assert _why_not(settings, root, begun, None) is None  # nothing was trained yet
    remember(root, "earlier", "abc")
    last = trained(root)
    assert _why_not(settings, root, begun, last) == "the last training is 0.0 days old, due after 7"
    assert _generating(settings, begun, None, last).weights == f"{root.uri}/weights/abc"
    never = settings.model_copy(update={"train": Due(rule="never")})
    assert _generating(never, begun, None, last).weights == settings.generate.weights
    begun.step("finetune").state = "failed"  # it was due when the night began
    assert _why_not(settings, root, begun, last) is None


def test_the_demo_is_a_night_that_can_start():
    from adbooster.cli.load import load

    demo = load(NightlyConfig, ["--config", world.__file__.replace("world.py", "demo.yaml")])
    check_night(demo.model_copy(update={"root_uri": "/tmp/adbooster-demo-check"}))


def test_evaluate_and_canary_take_what_they_share_from_generate(tmp_path, tiny_feed):
    values = config(str(tmp_path / "root"), tiny_feed, tmp_path).model_dump()
    judge = {"judge_model": str(MODELS / "judge")}
    values |= {"evaluate": judge, "canary": judge | {"dtype": "bfloat16"}}
    found = NightlyConfig.model_validate(values)
    assert found.evaluate.recipe == found.canary.recipe == found.generate.recipe
    assert found.evaluate.rank_model == found.generate.rank_model
    assert (found.canary.weights, found.canary.base) == (found.generate.weights, found.generate.weights)
    assert (found.evaluate.dtype, found.canary.dtype) == ("float32", "bfloat16")
    assert (found.evaluate.run_id, found.evaluate.root_uri) == ("night", found.root_uri)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_night_refuses_weights_that_fail_the_canary_and_is_evaluated(local_ray, tmp_path, tiny_feed):
    from tests.canary.test_canary import noise

    root_uri = str(tmp_path / "root")
    values = config(root_uri, tiny_feed, tmp_path).model_dump() | {"train": False}
    values["generate"]["mask_model"] = str(MODELS / "mask" / "u2netp.onnx")
    judge = {"judge_model": str(MODELS / "judge"), "zero_shot": False}
    values |= {"evaluate": judge, "canary": judge | {"panel": {"products": 2, "cohorts": 2}}}
    first = nightly(NightlyConfig.model_validate(values))
    assert first.canary.reasons == ["nothing is live that the weights could be compared with"]
    assert first.evaluate.looked == first.generate.published == 4
    Root(root_uri).write("runs/night/report.json", b"{}")

    before = live(root_uri)
    bad = str(noise(tmp_path / "noise"))
    values["generate"]["weights"] = bad
    second = NightlyConfig.model_validate(values | {"run_id": "second"})
    second = second.model_copy(update={"canary": second.canary.model_copy(update={"base": str(MODELS / "outpaint")})})
    with pytest.raises(CanaryRefused, match="rank_score .*, margin 0.03; .*exposure"):
        nightly(second)
    assert live(root_uri) == before


def test_deliver_decides_on_the_day_of_its_night(root, tmp_path):
    whole = config(root.uri, tmp_path / "feed.csv", tmp_path)
    delivering = DeliverConfig(
        root_uri=root.uri, run_id="n", channels=("web",), public_base_url="https://cdn.shop.example"
    )
    day, own = date(2026, 12, 26), date(2026, 12, 1)
    night = state.Night(run_id="n", started_at=datetime.now(UTC), day=day)
    ruled = whole.generate.model_copy(update={"brand_rules_uri": "rules.yaml"})
    found = _delivering(delivering, _generating(whole.model_copy(update={"generate": ruled}), night, None, None), night)
    assert (found.brand_rules_day, found.variants.day) == (day, day)
    told = delivering.model_copy(update={"variants": delivering.variants.model_copy(update={"day": own})})
    assert _delivering(told, whole.generate, night).variants.day == own


def test_a_resumed_night_keeps_the_day_of_its_brand_rules(root, tmp_path):
    def day(resume: bool, deadline: str, rules: str) -> date | None:
        whole = config(root.uri, tmp_path / "feed.csv", tmp_path)
        generating = whole.generate.model_copy(update={"brand_rules_uri": rules})
        settings = whole.model_copy(update={"resume": resume, "deadline": deadline, "generate": generating})
        return _generating(settings, _night(root, settings), None, None).brand_rules_day

    assert day(False, "2026-12-26T06:30", "rules.yaml") == date(2026, 12, 26)
    assert day(True, "2026-12-27T06:30", "rules.yaml") == date(2026, 12, 26)
    assert day(False, "2026-12-28T06:30", "rules.yaml") == date(2026, 12, 28)
    assert day(False, "2026-12-28T06:30", "") is None
