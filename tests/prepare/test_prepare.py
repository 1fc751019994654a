import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError, TooManyRejects
from adbooster.prepare.checks import check as check_prepare
from adbooster.prepare.config import PrepareConfig
from adbooster.prepare.job import prepare
from adbooster.storage import tables
from adbooster.storage.objects import Root
from adbooster.tiny import world
from tests.conftest import MODELS, row, write_png

REPO = Path(__file__).parents[2]


def config(root, feed, **changes):
    settings = {
        "root_uri": root.uri,
        "run_id": "r1",
        "feed_uri": str(feed),
        "mask_model": str(MODELS / "mask" / "u2netp.onnx"),
        "caption_model": str(MODELS / "caption"),
        "device": "cpu",
    }
    return PrepareConfig(**settings | changes)


def with_pictures(feed, *links: str):
    lines = [f"X{i}\tX\t{link}\t\t" for i, link in enumerate(links)]
    feed.write_text("id\ttitle\timage_link\tlifestyle_image_link\tgoogle_product_category\n" + "\n".join(lines) + "\n")
    return feed


def samples(root: Root) -> dict[tuple, dict]:
    return {(r["product_id"], r["role"]): r for r in tables.read(root, "samples").to_pylist()}


def test_a_host_that_is_down_tonight_retires_nobody(warm_ray, root, tiny_feed, misbehaving):
    misbehaving.files["teapot"] = (tiny_feed.parent / "teapot.png").read_bytes()
    with_pictures(tiny_feed, f"{misbehaving.url}/etag/teapot", f"{misbehaving.url}/status/200,500,500,404")
    quick = {"allow_private_hosts": True, "http": {"attempts": 1}}
    first = prepare(config(root, tiny_feed, **quick))
    assert (first.new, first.rejects) == (2, {})
    sent = len(misbehaving.asked)
    with pytest.raises(TooManyRejects, match="1 of 2 pictures were rejected \\(1 not reached tonight\\)"):
        prepare(config(root, tiny_feed, run_id="r2", **quick))
    second = prepare(config(root, tiny_feed, run_id="r3", max_reject_share=0.5, device="cuda", **quick))
    assert (second.kept_unreachable, second.unchanged, second.samples_version) == (1, 2, first.samples_version)
    assert [h.get("If-None-Match") is not None for h in misbehaving.headers[sent:]].count(True) == 2
    gone = prepare(config(root, tiny_feed, run_id="r4", max_reject_share=0.5, **quick))
    assert gone.rejects == {"missing_image": 1}
    again = prepare(config(root, tiny_feed, run_id="r5", max_reject_share=0.5, **quick))
    assert (again.new_or_changed, again.rejects) == (0, {"missing_image": 1})


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_killed_run_is_finished_by_the_next(local_ray, tmp_path, tiny_feed):
    """The same table as an undisturbed run, and what was staged is not made again."""
    lines = tiny_feed.read_text().splitlines()
    for n in range(24):
        write_png(tiny_feed.parent / f"{n}.png", world.packshot(list(world.PRODUCTS)[n], 256)[0])
        lines.append(f"N{n}\tProduct {n}\t{n}.png\t\tHome")
    tiny_feed.write_text("\n".join(lines) + "\n")
    small = {"fetch": {"batch": 2}, "shrink": {"batch": 2}, "refine": {"batch": 2}, "judge": {"batch": 2}}
    killed, whole = Root(str(tmp_path / "killed")), Root(str(tmp_path / "whole"))
    settings = config(killed, tiny_feed, **small)
    (tmp_path / "prepare.yaml").write_text(json.dumps(settings.model_dump(mode="json")))
    run = subprocess.Popen(
        [sys.executable, "-m", "jobs.prepare", "--config", str(tmp_path / "prepare.yaml")],
        cwd=REPO,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    staged = "runs/r1/staged/samples-new"
    while not killed.names(staged) and run.poll() is None:
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert tables.version(killed, "samples") is None
    count = tables.read_staged(killed, staged, schema.PREPARED).num_rows
    assert 0 < count < 28, "killed half-way"

    report = prepare(settings)
    undisturbed = prepare(config(whole, tiny_feed, **small))
    assert (report.new, report.rejects) == (undisturbed.new, undisturbed.rejects) == (28, {})
    assert report.taken_over >= count
    assert samples(killed) == samples(whole)
    assert len(tables.open_table(killed, "samples").history()) == 1


def test_too_many_rejects_publish_nothing(warm_ray, root, tiny_feed):
    feed = with_pictures(tiny_feed, "gone.png", "gone2.png")
    with pytest.raises(TooManyRejects, match="2 of 2 pictures were rejected \\(2 missing_image\\)"):
        prepare(config(root, feed))
    assert tables.version(root, "samples") is None


def test_models_are_checked_before_anything_starts(root, tiny_feed):
    with pytest.raises(ConfigError, match="there is no model at /nowhere"):
        check_prepare(config(root, tiny_feed, caption_model="/nowhere"))
    with pytest.raises(ConfigError, match="not an .onnx file"):
        check_prepare(config(root, tiny_feed, mask_model=str(MODELS / "caption")))


def test_a_catalog_night_by_night(local_ray, root, tiny_feed, caplog):
    """First night: everything. Same feed: nothing. Gone: retired. Back: nothing made. Broken: rejected, once."""
    caplog.set_level("INFO", "adbooster")
    first = prepare(config(root, tiny_feed, progress_s=0.2))
    assert (first.pictures, first.new, first.new_or_changed, first.unchanged, first.rejects) == (4, 4, 4, 0, {})
    before = samples(root)
    assert "shoe" in before["P1", "main"]["caption"]
    assert before["P1", "main"]["background"] == "plain"
    assert before["P1", "lifestyle"]["background"] == "scene"
    told = root.read("runs/r1/prepare.stats.txt").decode()
    assert all(stage in told for stage in ("Fetcher", "Shrinker", "Captioner", "Segmenter", "Refiner", "Judge"))
    assert any("prepare: 0 of 4 in" in line for line in caplog.messages), "progress"

    again = prepare(config(root, tiny_feed, run_id="r2"))
    assert (again.new_or_changed, again.unchanged, again.samples_version) == (0, 4, first.samples_version)

    whole = tiny_feed.read_text().splitlines()
    tiny_feed.write_text("\n".join([*whole[:2], "P9\tBroken\tgone.png\t\t"]) + "\n")
    third = prepare(config(root, tiny_feed, run_id="r3", max_reject_share=0.5))
    assert (third.retired, third.unchanged, third.rejects) == (2, 2, {"missing_image": 1})
    assert samples(root)["P1", "main"]["retired_at"] is not None
    assert samples(root)["P0", "main"]["retired_at"] is None
    assert samples(root)["P9", "main"]["reject"] == "missing_image"

    tiny_feed.write_text("\n".join(whole) + "\n")
    back = prepare(config(root, tiny_feed, run_id="r4", device="cuda"))  # whoever needs a model fails
    assert (back.new, back.changed, back.unchanged, back.retired) == (0, 2, 2, 1)
    assert {key: row for key, row in samples(root).items() if key[0] != "P9"} == before


def test_only_what_changed_is_made_again(warm_ray, root, tiny_feed, tmp_path):
    """Touched file, title, rules: no model (cuda is not there). Photo: that one. Mask model: masks alone."""
    prepare(config(root, tiny_feed))
    before = samples(root)
    shop = tiny_feed.parent

    os.utime(shop / "running-shoe.png")
    touched = prepare(config(root, tiny_feed, run_id="r2", device="cuda"))
    assert (touched.new_or_changed, touched.unchanged) == (0, 4)

    tiny_feed.write_text(tiny_feed.read_text().replace("A teapot", "Another teapot"))
    rules = {"rules": {"max_area_share": 0.01}, "max_reject_share": 1}
    judged = prepare(config(root, tiny_feed, run_id="r3", device="cuda", **rules))
    assert (judged.new, judged.changed, judged.rejects) == (0, 4, {"mask_full": 4})
    assert samples(root)["P0", "main"]["title"] == "Another teapot"
    prepare(config(root, tiny_feed, run_id="r4", device="cuda"))

    other = tmp_path / "other.onnx"
    other.write_bytes((MODELS / "mask" / "u2netp.onnx").read_bytes() + b"\x32\x05again")  # ONNX: another doc_string
    masked = prepare(config(root, tiny_feed, run_id="r5", mask_model=str(other)))
    assert masked.changed == 4
    after = samples(root)
    changed = {c for key in before for c in before[key] if before[key][c] != after[key][c]}
    assert changed == {"mask_by", "fingerprint", "title", "etag"}

    write_png(shop / "teapot.png", world.packshot("mug", 256)[0])
    new_photo = prepare(config(root, tiny_feed, run_id="r6", mask_model=str(other)))
    assert (new_photo.new, new_photo.changed, new_photo.unchanged) == (0, 1, 3)
    last = samples(root)
    assert {key for key in last if last[key]["mask_uri"] != after[key]["mask_uri"]} == {("P0", "main")}


def test_a_dry_run_tells_the_plan_and_starts_nothing(warm_ray, root, tiny_feed, capsys):
    prepare(config(root, tiny_feed))
    before, actors = sorted(Path(root.base).rglob("*")), _actors()
    lines = tiny_feed.read_text().splitlines()
    lines = [lines[0], lines[1], "P9\tNew\tteapot.png", "\tx\ty.png"]
    tiny_feed.write_text("\n".join(lines))
    write_png(tiny_feed.parent / "teapot.png", world.packshot("mug", 256)[0])
    settings = config(root, tiny_feed, run_id="dry", dry_run=True, mask={"actors": 2, "gpus": 1})
    check_prepare(settings)
    found = prepare(settings)
    assert (found.rows, found.pictures, found.new, found.changed, found.unchanged, found.retired) == (3, 4, 2, 1, 1, 2)
    told = capsys.readouterr().out
    for word, n in (("rows", 3), ("new", 2), ("changed", 1), ("unchanged", 1), ("retired", 2)):
        assert f"{word:>10} {n:>10}" in told
    assert "1 missing_id" in told
    assert "GPU: asked 2, in the cluster 0: DOES NOT FIT" in told
    assert _actors() == actors
    assert sorted(Path(root.base).rglob("*")) == before


def test_a_table_of_the_first_version_gains_the_new_columns(warm_ray, root, tiny_feed):
    from deltalake import write_deltalake

    old = ["sample_id", "product_id", "role", "title", "reject", "fingerprint", "retired_at"]
    fields = pa.schema([schema.SAMPLES.field(name) for name in old])
    gone = {"sample_id": "s", "product_id": "OLD", "role": "main", "title": "An old one", "fingerprint": "f"}
    write_deltalake(f"{root.uri}/tables/samples", pa.Table.from_pylist([row(fields, **gone)], fields))
    tiny_feed.write_text("id\ttitle\timage_link\n\tno id\ta.png\n")
    report = prepare(config(root, tiny_feed, max_reject_share=1))
    assert (report.new, report.retired, report.rejects) == (1, 1, {"missing_id": 1})
    assert samples(root)["OLD", "main"]["title"] == "An old one"
    again = prepare(config(root, tiny_feed, run_id="r2", max_reject_share=1))
    assert (again.new_or_changed, again.unchanged, again.samples_version) == (0, 1, report.samples_version)


def _actors() -> int:
    import ray._private.state

    return len(ray._private.state.actors())
