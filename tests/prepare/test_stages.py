"""The stages on plain tables, without Ray."""

import io
import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from adbooster.contracts import schema
from adbooster.models import preprocessing
from adbooster.models.preprocessing import U2NET
from adbooster.models.saliency import SaliencyNet
from adbooster.models.settings import Captions, Masking, MaskNetwork
from adbooster.pictures import images
from adbooster.prepare import changes
from adbooster.prepare.config import Rules, Source
from adbooster.prepare.stages import BY_ALPHA, UNCHANGED, Captioner, Fetcher, Judge, Refiner, Segmenter, Shrinker
from adbooster.tiny import world
from tests.conftest import MODELS, row, write_png
from tests.pictures.test_images import odd_pictures

MADE = changes.MadeBy("mask-1", "caption-1", "rules-1")


def fetched(root, folder, links, rules=None, known=None, made=MADE) -> list[dict]:
    source = Source(feed_uri=str(folder / "feed.tsv"))
    stage = Fetcher(root, source, rules or Rules(), made)
    plan = [
        row(
            schema.PLANNED,
            sample_id=link,
            product_id=f"P{n}",
            role="main",
            image_uri=link,
            known=(known or {}).get(link),
        )
        for n, link in enumerate(links)
    ]
    done = stage(pa.Table.from_pylist(plan, schema.PLANNED)).to_pylist()
    stage.fetch.close()
    return done


def as_known(rows: list[dict], **more) -> dict[str, dict]:
    return {r["image_uri"]: {n: (r | more).get(n) for n in schema.KNOWN.names} for r in rows}


@pytest.fixture
def shop(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    write_png(folder / "teapot.png", world.packshot("teapot", 256)[0])
    return folder


def test_fetcher_names_what_is_wrong_with_each_picture(root, shop, tmp_path):
    whole = (shop / "teapot.png").read_bytes()
    (shop / "cut.png").write_bytes(whole[: len(whole) // 2])
    (shop / "page.html").write_text("<html>not found</html>")
    write_png(shop / "small.png", world.packshot("mug", 64)[0])
    (shop / "big.png").write_bytes(whole + b"\0" * 2_000_000)
    (tmp_path / "secret.png").write_bytes(whole)
    wanted = {
        "teapot.png": None,
        "cut.png": "unreadable_image",
        "page.html": "unreadable_image",
        "small.png": "image_too_small",
        "big.png": "oversized_image",
        "gone.png": "missing_image",
        "../secret.png": "unreachable_image",
        "nope://x/y.png": "unreachable_image",
    }
    found = {r["image_uri"]: r for r in fetched(root, shop, wanted, Rules(max_mb=1))}
    assert {uri: r["reject"] for uri, r in found.items()} == wanted
    assert root.read(found["teapot.png"]["photo_uri"]) == whole
    assert {r["reject"] for r in found.values()} - {None} <= set(schema.REJECTS)


def test_a_feed_of_odd_pictures_ends_with_one_row_each(root, shop):
    """Every format that Pillow writes, whole, cut at four places and damaged: a row each, and words for the bad ones."""
    rng = np.random.default_rng(0)
    links = []
    for name, content in odd_pictures().items():
        kinds = {"whole": content} | {f"cut{n}": content[: len(content) * n // 5] for n in range(1, 5)}
        damaged = bytearray(content)
        for at in rng.integers(0, len(content), 20):
            damaged[at] = rng.integers(0, 256)
        for kind, changed in (kinds | {"damaged": bytes(damaged)}).items():
            links.append(f"{name}.{kind}")
            (shop / links[-1]).write_bytes(changed)
    found = fetched(root, shop, links)
    assert len(links) > 200
    assert [r["image_uri"] for r in found] == links
    assert {r["reject"] for r in found} <= {None, "unreadable_image", "image_too_small"}
    readable = {
        r["image_uri"].split(".")[0] for r in found if r["reject"] is None and r["image_uri"].endswith(".whole")
    }
    assert {"jpeg_cmyk", "png_16", "png_la", "gif_moving", "webp", "avif", "tiff_lab", "png_palette"} <= readable


def test_nothing_changed_reads_and_decodes_nothing(root, shop, monkeypatch):
    (shop / "page.html").write_text("<html>not found</html>")
    write_png(shop / "small.png", world.packshot("mug", 64)[0])
    links = ["teapot.png", "page.html", "small.png", "gone.png"]
    first = fetched(root, shop, links)
    monkeypatch.setattr(images, "decode", None)
    again = fetched(root, shop, links, known=as_known(first))
    assert [r["reject"] for r in again] == [UNCHANGED] * 4
    links.remove("page.html")
    judged_anew = fetched(root, shop, links, Rules(min_side_px=32), as_known(first), MADE._replace(rules="rules-2"))
    assert [r["reject"] for r in judged_anew] == [None, None, "missing_image"]


def test_a_photo_that_moved_is_read_but_not_decoded(root, shop, monkeypatch):
    first = fetched(root, shop, ["teapot.png"])
    (shop / "teapot.png").rename(shop / "new.png")
    monkeypatch.setattr(images, "decode", None)
    moved = fetched(root, shop, ["new.png"], known={"new.png": as_known(first)["teapot.png"]})[0]
    assert (moved["reject"], moved["photo_uri"]) == (None, first[0]["photo_uri"])
    assert moved["fingerprint"] != first[0]["fingerprint"]


NETWORK, CAPTION_PX = U2NET.model_copy(update={"size_px": (320, 320)}), (96, 96)
MODEL = str(MODELS / "mask" / "u2netp.onnx")


def stored(root, photo: bytes, **more) -> dict:
    uri = root.put(photo, "photo")
    return row(schema.FETCHED, photo_uri=uri, photo_sha256=uri.split("/")[-1].split(".")[0], **more)


def shrunk(root, rows: list[dict], made=MADE) -> pa.Table:
    return Shrinker(root, NETWORK, CAPTION_PX, made)(pa.Table.from_pylist(rows, schema.FETCHED))


def masked(root, photo: bytes, known=None, model="/nowhere.onnx", made=MADE) -> dict:
    rows = shrunk(root, [stored(root, photo, known=known)], made)
    if rows["reject"][0].as_py():
        return schema.fill(rows, schema.MASKED).to_pylist()[0]
    rows = schema.extend(rows, schema.CAPTIONED, caption=["a thing"], caption_by=["caption-1"])
    return Refiner(root, Masking(), made)(Segmenter(model, MaskNetwork(), ("cpu", 1))(rows)).to_pylist()[0]


def test_networks_are_shown_what_they_take_and_nothing_where_all_is_known(root, packshot):
    photo, mask = packshot
    whole = images.encode_lossless(photo)
    cut_out = io.BytesIO()
    Image.fromarray(np.dstack([photo, mask])).save(cut_out, "PNG")
    first = stored(root, whole)
    known = row(schema.KNOWN, photo_sha256=first["photo_sha256"], mask_uri="m", mask_by=MADE.mask)
    captioned = known | {"caption": "a known one", "caption_by": MADE.caption}
    rows = [first, stored(root, cut_out.getvalue()), first | {"known": known}, first | {"known": captioned}]
    found = shrunk(root, rows).to_pylist()
    assert [(r["network_u8"] is None, r["caption_u8"] is None) for r in found] == [
        (False, False),
        (True, False),
        (True, False),
        (True, True),
    ]
    assert len(found[0]["caption_u8"]) == 96 * 96 * 3
    x_u8 = np.frombuffer(found[0]["network_u8"], np.uint8).reshape(1, 3, 320, 320)
    taken = preprocessing.normalize(x_u8, NETWORK)[0]
    assert np.array_equal(taken, preprocessing.prepare(photo, NETWORK, (320, 320)))


WITHOUT_NETWORKS = """
import pickle, sys
from pathlib import Path
for stage, rows in pickle.loads(Path(sys.argv[1]).read_bytes()):
    print(stage(rows).num_rows, "rows")
print(sorted({"torch", "onnxruntime", "transformers", "ray"} & set(sys.modules)))
"""


def test_stages_without_a_network_import_no_network_library(root, packshot, tmp_path):
    """Their processes, of which there are many, would take longer to start and more memory."""
    fetched_row = stored(root, images.encode_lossless(packshot[0]))
    out = io.BytesIO()
    np.save(out, packshot[1].astype(np.float32) / 255)
    segmented = row(schema.SEGMENTED) | fetched_row | {"probability": out.getvalue()}
    todo = [
        (Shrinker(root, NETWORK, CAPTION_PX, MADE), pa.Table.from_pylist([fetched_row], schema.FETCHED)),
        (Refiner(root, Masking(), MADE), pa.Table.from_pylist([segmented], schema.SEGMENTED)),
    ]
    (tmp_path / "todo").write_bytes(pickle.dumps(todo))
    command = [sys.executable, "-c", WITHOUT_NETWORKS, str(tmp_path / "todo")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.stdout.splitlines() == ["1 rows", "1 rows", "[]"], ran.stderr


def test_a_mask_through_the_stages_is_the_networks_own(root, packshot):
    photo = packshot[0]
    whole = SaliencyNet(MODELS / "mask" / "u2netp.onnx", "cpu").mask(photo, Masking()).mask_u8
    found = masked(root, images.encode_lossless(photo), model=MODEL)
    assert found["mask_how"] == "matting"
    assert np.array_equal(images.decode_mask(root.read(found["mask_uri"])), whole)


def test_pictures_of_a_batch_keep_their_own_masks(root, packshot):
    photos = [images.encode_lossless(p) for p in (packshot[0], world.packshot("mug", 256)[0], packshot[0][::-1])]
    rows = shrunk(root, [stored(root, p) for p in photos])
    hidden = rows["network_u8"].to_pylist()
    hidden[1] = None
    rows = rows.set_column(rows.schema.get_field_index("network_u8"), "network_u8", pa.array(hidden, pa.binary()))
    rows = schema.extend(rows, schema.CAPTIONED, caption=["a"] * 3, caption_by=["b"] * 3)
    maps = Segmenter(MODEL, MaskNetwork(), ("cpu", 1))(rows)["probability"].to_pylist()
    assert maps[1] is None
    upright, turned = (np.load(io.BytesIO(maps[i])) for i in (0, 2))
    assert np.abs(upright - turned[::-1]).mean() < 0.02 < np.abs(upright - turned).mean()


def test_the_photos_own_alpha_is_the_mask(root, packshot):
    """No model is there to ask."""
    photo, mask = packshot
    rgba = Image.fromarray(np.dstack([photo, mask]))
    out = io.BytesIO()
    rgba.save(out, "PNG")
    found = masked(root, out.getvalue())
    assert np.array_equal(images.decode_mask(root.read(found["mask_uri"])), mask)
    assert (found["mask_by"], found["mask_how"]) == (BY_ALPHA, "alpha")
    kept = masked(root, out.getvalue(), {n: found.get(n) for n in schema.KNOWN.names}, made=MADE._replace(mask="other"))
    assert kept["mask_uri"] == found["mask_uri"]


def test_a_known_mask_is_kept_until_photo_or_model_change(root, packshot):
    photo = images.encode_lossless(packshot[0])
    first = masked(root, photo, model=MODEL)
    known = {n: first.get(n) for n in schema.KNOWN.names}
    assert masked(root, photo, known)["mask_uri"] == first["mask_uri"]
    assert first["mask_how"] == "matting"
    assert masked(root, photo, known | {"mask_how": None})["mask_how"] is None, "of a sample from before the column"
    assert (first["mask_pieces"], first["mask_border_share"]) == (1, 0)
    for changed in ({"photo": images.encode_lossless(packshot[0][::-1])}, {"made": MADE._replace(mask="other")}):
        with pytest.raises(Exception, match="no model at /nowhere"):
            masked(root, **{"photo": photo, "known": known} | changed)


def test_a_stored_photo_beyond_todays_limits_is_a_row(root):
    found = masked(root, b"P3\n1600 1600\n255\n" + b"1 " * (1600 * 1600 * 3))
    assert (found["reject"], found["mask_uri"], found["mask_how"]) == ("unreadable_image", None, None)


def test_a_known_caption_is_kept_until_photo_or_model_change(root, packshot):
    given = stored(root, images.encode_lossless(packshot[0]))
    known = row(schema.KNOWN, photo_sha256=given["photo_sha256"], caption="a known one", caption_by="caption-1")
    others = [known, known | {"photo_sha256": "b"}, known | {"caption_by": "old"}, None]
    stage = Captioner(str(MODELS / "caption"), Captions(), MADE, ("cpu", 1), CAPTION_PX)
    found = stage(shrunk(root, [given | {"known": k} for k in others]))["caption"].to_pylist()
    assert found[0] == "a known one"
    assert len(set(found[1:])) == 1
    assert "teapot" in found[1] or "white background" in found[1]


FINE = {
    "role": "main",
    "mask_area_share": 0.2,
    "mask_border_share": 0.0,
    "mask_pieces": 1,
    "mask_unsure_share": None,
    "outside_deviation": 1.0,
    "caption": "a teapot",
}


@pytest.mark.parametrize(
    ("changes", "reject", "background"),
    [
        ({}, None, "plain"),
        ({"outside_deviation": 40.0}, None, "scene"),
        ({"mask_area_share": 0.0, "mask_pieces": 0}, "mask_empty", "plain"),
        ({"mask_area_share": 1.0}, "mask_full", "plain"),
        ({"mask_border_share": 0.3}, "mask_touches_border", "plain"),
        ({"mask_border_share": 0.3, "role": "lifestyle"}, None, "plain"),
        ({"mask_pieces": 5}, "mask_in_pieces", "plain"),
        ({"mask_pieces": 2}, None, "plain"),
        ({"mask_unsure_share": 1.0}, None, "plain"),
        ({"caption": ""}, "caption_empty", "plain"),
    ],
)
def test_judge_names_what_is_wrong(changes, reject, background):
    rows = pa.Table.from_pylist([row(schema.MASKED, **FINE | changes)], schema.MASKED)
    found = Judge(Rules())(rows).to_pylist()[0]
    assert (found["reject"], found["background"]) == (reject, background)
    assert reject is None or reject in schema.REJECTS


def test_a_main_photo_with_too_much_that_may_be_a_hole_is_rejected_where_asked():
    rows = [row(schema.MASKED, **FINE | {"mask_unsure_share": 0.1, "role": r}) for r in ("main", "lifestyle")]
    found = Judge(Rules(max_unsure_share=0.05))(pa.Table.from_pylist(rows, schema.MASKED))
    assert found["reject"].to_pylist() == ["mask_unsure", None]
