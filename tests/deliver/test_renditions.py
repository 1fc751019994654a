"""Files of renditions: pixels, bytes, marks; read by Pillow and lxml, and by exiftool where it is installed."""

import hashlib
import io
import json
import shutil
import subprocess

import numpy as np
import pyarrow as pa
import pytest
from lxml import etree
from PIL import Image

from adbooster.contracts import schema
from adbooster.deliver import encoding
from adbooster.deliver.config import Encoding, Fidelities
from adbooster.deliver.stages import Renderer
from adbooster.pictures import images
from adbooster.provenance import xmp
from adbooster.provenance.xmp import Marks
from adbooster.storage.objects import Root
from tests.conftest import row
from tests.deliver.pictures import BOX, master, scene

MARKS = Marks("compositeWithTrainedAlgorithmicMedia", "AdBooster", "w1", "snow <&> fog \x07", "Ann", "urn:sha256:ab")
XMP = xmp.packet(MARKS)
LOOSE = Fidelities(
    min_psnr_db=20, max_delta_e_mean=9, max_delta_e_p99=20
)  # WebP halves the resolution of stripes' colours


def request(root, **changes):
    picture, mask = master(BOX)
    content = images.encode_lossless(picture)
    values = {
        "rendition_id": "r1",
        "master_uri": root.put(content, "webp"),
        "master_sha256": hashlib.sha256(content).hexdigest(),
        "mask_uri": root.put(images.encode_mask(mask), "png"),
        "layout": vars(BOX),
        "frame": {"x_px": 20, "y_px": 40, "width_px": 200, "height_px": 180},
        "width_px": 200,
        "height_px": 180,
        "formats": ["jpeg"],
        "max_bytes": 200_000,
        "digital_source_type": "trainedAlgorithmicMedia",
        "ai_system": "AdBooster",
        "ai_version": "w1",
    }
    return picture, row(schema.RENDITION_REQUESTS, **values | changes)


def render(root, *requests, how=None, allowed=None):
    stage = Renderer(root, how or Encoding(), allowed or Fidelities())
    return stage(pa.Table.from_pylist(list(requests), schema.RENDITION_REQUESTS)).to_pylist()


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_rendition_is_stored_with_its_pixels_and_marks(root, kind):
    picture, asked = request(root, formats=[kind])
    done = render(root, asked, allowed=LOOSE)[0]
    assert done["reject"] is None
    assert done["uri"].endswith({"png": ".png", "jpeg": ".jpg", "webp": ".webp"}[kind])
    content = root.read(done["uri"])
    assert (len(content), hashlib.sha256(content).hexdigest()) == (done["size_bytes"], done["sha256"])
    stored = images.decode(content)
    assert stored.shape == (180, 200, 3)
    if kind == "png":
        assert np.array_equal(stored, picture[40:220, 20:220])
        assert (done["quality"], done["psnr_db"], done["delta_e_mean"]) == (None, None, None)
    else:
        assert done["psnr_db"] > 25
        assert 0 < done["delta_e_mean"] < done["delta_e_p99"] < 15
    with Image.open(io.BytesIO(content)) as opened:
        assert opened.format == kind.upper()
        assert b"sRGB" in opened.info["icc_profile"].replace(b"\0", b"")
    said = xmp.read(content)
    assert said.digital_source_type == "trainedAlgorithmicMedia"
    assert (said.ai_system, said.ai_version, said.prompt) == ("AdBooster", "w1", None)
    assert said.source == f"urn:sha256:{asked['master_sha256']}"


def test_the_same_request_is_the_same_file(root):
    _, asked = request(root, formats=["png"])
    assert render(root, asked) == render(root, asked)
    with Image.open(io.BytesIO(root.read(render(root, asked)[0]["uri"]))) as opened:
        assert opened.info["icc_profile"][24:36] == bytes(12)


def test_what_is_measured_is_the_product_alone(root):
    """A scene that encoding spoils does not count; a product that it spoils does."""
    before, mask = master(BOX)
    product = np.zeros(before.shape[:2], np.uint8)
    product[BOX.slices] = mask
    after = before.copy()
    after[product == 0] = 0
    assert encoding.fidelity(before, after, product) == (99.0, 0.0, 0.0)
    after = before.copy()
    after[BOX.y_px + 20 : BOX.y_px + 60, BOX.x_px + 20 : BOX.x_px + 60] ^= 16
    found = encoding.fidelity(before, after, product)
    assert found.psnr_db < 32
    assert found.delta_e_mean > 1
    assert found.delta_e_p99 > 3


def test_a_file_that_alters_the_product_is_none_or_takes_the_next_format(root):
    _, asked = request(root)
    strict = Fidelities(min_psnr_db=70)
    assert render(root, asked, allowed=strict)[0]["reject"] == "product_altered"
    done = render(root, asked | {"formats": ["jpeg", "png"]}, allowed=strict)[0]
    assert (done["reject"], done["format"]) == (None, "png")
    assert render(root, asked, allowed=Fidelities(max_delta_e_mean=0))[0]["reject"] == "product_altered"
    assert render(root, asked, allowed=Fidelities(max_delta_e_p99=0))[0]["reject"] == "product_altered"


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_bytes_are_kept_by_the_highest_quality_that_fits(kind):
    picture = scene(160, 160)
    sizes = {q: len(encoding.encode(picture, kind, 10**6, (q, q), XMP).content) for q in (50, 70, 72, 90)}
    assert encoding.encode(picture, kind, sizes[90], (50, 90), XMP).quality == 90
    found = encoding.encode(picture, kind, sizes[70], (50, 90), XMP)
    assert 70 <= found.quality < 90
    assert len(found.content) <= sizes[70]
    above = encoding.encode(picture, kind, 10**6, (found.quality + 1,) * 2, XMP)
    assert len(above.content) > sizes[70]
    assert encoding.encode(picture, kind, sizes[50] - 1, (50, 90), XMP) is None
    assert encoding.encode(picture, kind, sizes[50], (50, 90), XMP).quality in (50, 51)


def test_a_slot_that_no_format_fits_into_says_so(root):
    _, asked = request(root, max_bytes=2000, formats=["jpeg", "png"])
    assert render(root, asked)[0]["reject"] == "over_budget"


def test_masters_that_cannot_be_used_are_rows_with_a_word(root):
    _, asked = request(root)
    broken = root.put(b"no picture", "webp")
    rows = [
        asked | {"master_uri": "objects/00/gone.webp"},
        asked | {"mask_uri": "objects/00/gone.png"},
        asked | {"master_sha256": "0" * 64},
        asked | {"master_uri": broken, "master_sha256": hashlib.sha256(b"no picture").hexdigest()},
        asked,
    ]
    words = ["missing_image", "missing_image", "altered_master", "unreadable_image", None]
    assert [r["reject"] for r in render(root, *rows)] == words


class Forgetful(Root):
    """A storage that gives back something else than it was given."""

    def read(self, relative):
        content = super().read(relative)
        return content[:-1] + b"x" if relative.endswith((".jpg", ".png")) and len(content) > 20_000 else content


def test_what_the_storage_does_not_give_back_is_not_delivered(root):
    _, asked = request(root, formats=["png"])
    assert render(Forgetful(root.uri), asked)[0]["reject"] == "failed_readback"


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_marks_are_read_by_other_readers(kind, tmp_path):
    file = encoding.encode(scene(40, 40), kind, 10**6, (90, 90), XMP)
    assert xmp.read(file.content) == xmp.expected(MARKS)
    with Image.open(io.BytesIO(file.content)) as opened:
        content = opened.info["xmp"]
    tree = etree.fromstring(content if isinstance(content, bytes) else content.encode())
    space = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
    code = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
    assert tree.findtext(f".//{space}DigitalSourceType") == code
    assert tree.findtext(f".//{space}AIPromptInformation") == "snow <&> fog"
    assert tree.findtext(f".//{space}AIPromptWriterName") == "Ann"
    if not shutil.which("exiftool"):
        return
    path = tmp_path / f"a.{encoding.EXTENSIONS[kind]}"
    path.write_bytes(file.content)
    said = subprocess.run(["exiftool", "-j", "-G", "-n", path], capture_output=True, text=True, check=True).stdout
    assert json.loads(said)[0]["XMP:DigitalSourceType"] == code


def test_marks_stay_small_and_absent_ones_are_not_written():
    assert b"AIPrompt" not in xmp.packet(Marks("trainedAlgorithmicMedia"))
    assert len(xmp.packet(MARKS._replace(prompt="🐘" * 100_000))) < 65_502
    assert xmp.read(encoding.encode(scene(20, 20), "jpeg", 10**6, (90, 90), b"<not xml").content) == Marks()
