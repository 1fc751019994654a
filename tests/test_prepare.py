import numpy as np
import pyarrow as pa
import pytest

from adbooster import feeds, images, prepare, schema, tables
from adbooster.errors import ConfigError, TooManyRejects
from adbooster.tiny import world
from tests.conftest import MODELS, row, write_png


def config(root, feed, **changes):
    settings = {
        "root_uri": root.uri,
        "run_id": "r1",
        "feed_uri": str(feed),
        "mask_model": str(MODELS / "mask" / "u2netp.onnx"),
        "caption_model": str(MODELS / "caption"),
        "device": "cpu",
    }
    return prepare.PrepareConfig(**settings | changes)


def fetched(root, feed, rules=None, allowed="", known=None) -> dict[str, dict]:
    stage = prepare.Fetcher(root, str(feed), allowed, rules or prepare.Rules(), "models", known or {})
    return {r["image_uri"]: r for r in stage(feeds.pictures(feeds.read_feed(str(feed)))).to_pylist()}


def with_pictures(feed, *links: str):
    lines = [f"X{i}\tX\t{link}\t\t" for i, link in enumerate(links)]
    feed.write_text("id\ttitle\timage_link\tlifestyle_image_link\tgoogle_product_category\n" + "\n".join(lines) + "\n")
    return feed


def test_fetcher_names_what_is_wrong_with_each_picture(root, tiny_feed, tmp_path):
    shop = tiny_feed.parent
    whole = (shop / "teapot.png").read_bytes()
    (shop / "cut.png").write_bytes(whole[: len(whole) // 2])
    (shop / "page.html").write_text("<html>not found</html>")
    write_png(shop / "small.png", world.packshot("mug", 64)[0])
    (shop / "big.png").write_bytes(whole + b"\0" * 2_000_000)
    (tmp_path / "secret.png").write_bytes(whole)
    feed = with_pictures(
        tiny_feed,
        "teapot.png",
        "cut.png",
        "page.html",
        "small.png",
        "big.png",
        "gone.png",
        "../secret.png",
        "nope://x/y.png",
    )
    found = fetched(root, feed, prepare.Rules(max_mb=1))
    assert {uri: r["reject"] for uri, r in found.items()} == {
        "teapot.png": None,
        "cut.png": "unreadable_image",
        "page.html": "unreadable_image",
        "small.png": "image_too_small",
        "big.png": "oversized_image",
        "gone.png": "missing_image",
        "../secret.png": "unreachable_image",
        "nope://x/y.png": "unreachable_image",
    }
    assert root.read(found["teapot.png"]["photo_uri"]) == whole
    assert {r["reject"] for r in found.values()} - {None} <= set(schema.REJECTS)


def test_files_below_an_allowed_root_only(root, tiny_feed, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes((tiny_feed.parent / "teapot.png").read_bytes())
    feed = with_pictures(tiny_feed, str(tmp_path / "photos" / "a.png"))
    assert [r["reject"] for r in fetched(root, feed).values()] == ["unreachable_image"]
    assert [r["reject"] for r in fetched(root, feed, allowed=str(tmp_path / "photos")).values()] == [None]


def test_a_known_fingerprint_is_unchanged_until_photo_or_title_change(root, tiny_feed):
    first = fetched(root, tiny_feed)
    known = {r["sample_id"]: r["fingerprint"] for r in first.values()}
    assert {r["reject"] for r in fetched(root, tiny_feed, known=known).values()} == {prepare.UNCHANGED}
    write_png(tiny_feed.parent / "teapot.png", world.packshot("mug", 256)[0])
    tiny_feed.write_text(tiny_feed.read_text().replace("A running-shoe", "Another title"))
    again = fetched(root, tiny_feed, known=known)
    assert {uri for uri, r in again.items() if r["reject"] is None} == {
        "teapot.png",
        "running-shoe.png",
        "running-shoe-scene.png",
    }


@pytest.mark.parametrize(
    ("grey", "share", "reject"),
    [(None, 0.2, None), (0, 0.0, "mask_empty"), (255, 1.0, "mask_full"), (255, 0.5, "mask_touches_border")],
)
def test_judge_names_what_is_wrong_with_a_mask(root, packshot, grey, share, reject):
    photo, mask = packshot
    mask = mask if grey is None else np.full_like(mask, grey)
    assert judged(root, photo, mask, role="main", mask_area_share=share)["reject"] == reject


def judged(root, photo, mask, **values) -> dict:
    given = {
        "photo_uri": root.put(images.encode_lossless(photo), "photo"),
        "mask_uri": root.put(images.encode_mask(mask), "png"),
        "caption": "a teapot",
    }
    rows = pa.Table.from_pylist([row(schema.CAPTIONED, **given, **values)], schema.CAPTIONED)
    return prepare.Judge(root, prepare.Rules())(rows).to_pylist()[0]


def test_judge_tells_a_scene_from_a_plain_page(root, packshot):
    scene = judged(root, *world.compose("autumn", "mug", 256, 4), role="lifestyle", mask_area_share=0.1)
    plain = judged(root, *packshot, role="main", mask_area_share=0.1)
    assert (scene["reject"], scene["background"]) == (None, "scene")
    assert (plain["reject"], plain["background"]) == (None, "plain")


def test_a_catalog_night_by_night(local_ray, root, tiny_feed):
    """First night: everything. Same feed: nothing. One product gone, one broken: one retired, one rejected."""
    first = prepare.prepare(config(root, tiny_feed))
    assert (first.pictures, first.new_or_changed, first.unchanged, first.rejects) == (4, 4, 0, {})
    rows = {(r["product_id"], r["role"]): r for r in tables.read(root, "samples").to_pylist()}
    assert "shoe" in rows["P1", "main"]["caption"]
    assert rows["P1", "main"]["background"] == "plain"
    assert rows["P1", "lifestyle"]["background"] == "scene"

    again = prepare.prepare(config(root, tiny_feed))
    assert (again.new_or_changed, again.unchanged, again.samples_version) == (0, 4, first.samples_version)

    lines = tiny_feed.read_text().splitlines()
    tiny_feed.write_text("\n".join([lines[0], lines[1], "P9\tBroken\tgone.png\t\t"]) + "\n")
    last = prepare.prepare(config(root, tiny_feed, run_id="r3", max_reject_share=0.5))
    assert (last.retired, last.unchanged, last.rejects) == (2, 2, {"missing_image": 1})
    rows = {(r["product_id"], r["role"]): r for r in tables.read(root, "samples").to_pylist()}
    assert rows["P1", "main"]["retired_at"] is not None
    assert rows["P0", "main"]["retired_at"] is None
    assert rows["P9", "main"]["reject"] == "missing_image"


def test_too_many_rejects_publish_nothing(local_ray, root, tiny_feed):
    feed = with_pictures(tiny_feed, "gone.png", "gone2.png")
    with pytest.raises(TooManyRejects, match="2 of 2 pictures were rejected \\(2 missing_image\\)"):
        prepare.prepare(config(root, feed))
    assert tables.version(root, "samples") is None


def test_models_are_checked_before_anything_starts(root, tiny_feed):
    with pytest.raises(ConfigError, match="there is no model at /nowhere"):
        prepare.check(config(root, tiny_feed, caption_model="/nowhere"))
    with pytest.raises(ConfigError, match="not an .onnx file"):
        prepare.check(config(root, tiny_feed, mask_model=str(MODELS / "caption")))
