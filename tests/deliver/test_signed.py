"""Signed delivery: what is stored, what it is named, and what is not delivered."""

import hashlib
import json

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from adbooster.channels.presets import load_channels
from adbooster.contracts import schema
from adbooster.deliver.config import DeliverConfig, Encoding, Fidelities
from adbooster.deliver.job import deliver
from adbooster.deliver.plan import plan
from adbooster.deliver.stages import Renderer
from adbooster.pictures import images
from adbooster.provenance import credentials
from adbooster.provenance.certificates import issue
from adbooster.provenance.credentials import FileSigner
from adbooster.storage import tables
from adbooster.storage.objects import Root
from tests.conftest import row
from tests.deliver.conftest import config
from tests.deliver.pictures import publish
from tests.deliver.test_renditions import request
from tests.provenance.signers import AUTHORITY, SIGNER, signing

ANCHORS = AUTHORITY.pem.decode()
KINDS = ["jpeg", "png", "webp"]
LOOSE = Fidelities(min_psnr_db=20, max_delta_e_mean=9, max_delta_e_p99=20)


def ask(root, **changes):
    picture, asked = request(root, **changes)
    photo = images.encode_lossless(picture[40:140, 60:160])
    return asked | {"photo_uri": root.put(photo, "photo")}, hashlib.sha256(photo).hexdigest()


def render(root, asked, signing, how=None):
    rows = pa.Table.from_pylist([asked], schema.RENDITION_REQUESTS)
    return Renderer(root, how or Encoding(), LOOSE, signing)(rows).to_pylist()[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_signed_rendition_is_the_unsigned_ones_picture_with_a_manifest(root, tmp_path, kind):
    asked, photo_sha256 = ask(root, formats=[kind])
    plain, done = render(root, asked, None), render(root, asked, signing(tmp_path))
    assert (plain["signed_by"], done["signed_by"], done["reject"]) == (
        None,
        FileSigner(signing(tmp_path)).signed_by,
        None,
    )
    content = root.read(done["uri"])
    assert hashlib.sha256(content).hexdigest() == done["sha256"]
    assert len(content) == done["size_bytes"] > plain["size_bytes"] + 3000
    found = credentials.read(content, ANCHORS)
    assert (found.state, found.digital_source_type) == ("Trusted", asked["digital_source_type"])
    assert found.placed == [f"urn:sha256:{photo_sha256}"]
    assert (images.decode(content) == images.decode(root.read(plain["uri"]))).all()
    same = ("width_px", "height_px", "format", "quality", "psnr_db", "delta_e_mean", "delta_e_p99")
    assert {n: done[n] for n in same} == {n: plain[n] for n in same}


def test_the_manifest_counts_among_the_bytes(root, tmp_path):
    asked, _ = ask(root)
    free = render(root, asked, None)["size_bytes"]
    tight = render(root, asked | {"max_bytes": free + 1000}, signing(tmp_path), Encoding(quality=92, min_quality=40))
    assert tight["reject"] is None
    assert tight["size_bytes"] <= free + 1000
    assert tight["quality"] < 92
    for most in (free + 1000, 2000):
        strict = render(root, asked | {"max_bytes": most}, signing(tmp_path), Encoding(quality=92, min_quality=92))
        assert strict["reject"] == "over_budget"


def test_a_photo_with_a_manifest_of_its_own_is_made_room_for(root, tmp_path):
    settings = signing(tmp_path)
    asked, _ = ask(root)
    free = render(root, asked, settings)["size_bytes"]
    signed = FileSigner(settings).sign(
        root.read(render(root, asked, None)["uri"]), b"", "0" * 64, "trainedAlgorithmicMedia"
    )
    asked |= {"photo_uri": root.put(signed, "photo"), "max_bytes": free + 1000}
    done = render(root, asked, settings, Encoding(quality=92, min_quality=30))
    assert done["reject"] is None
    assert done["size_bytes"] <= free + 1000
    assert done["quality"] < 92
    assert render(root, asked, settings, Encoding(quality=92, min_quality=92))["reject"] == "over_budget"


class Stripping(Root):
    """A storage that gives back pictures without their metadata, as image services do."""

    def read(self, relative):
        content = super().read(relative)
        return content.replace(b"c2pa", b"c3pa") if relative.endswith(".jpg") else content


def test_what_is_not_trusted_or_not_given_back_is_not_delivered(root, tmp_path):
    asked, _ = ask(root)
    settings = signing(tmp_path / "a")
    assert render(Stripping(root.uri), asked, settings)["reject"] == "failed_readback"
    other = signing(tmp_path / "b", issue("stranger", issue("another authority")))
    assert render(root, asked, other)["reject"] == "failed_readback"
    unanchored = render(root, asked, other.model_copy(update={"trust_anchors": ""}))
    assert (unanchored["reject"], credentials.read(root.read(unanchored["uri"])).state) == (None, "Valid")
    assert render(root, asked | {"photo_uri": "objects/00/gone.photo"}, settings)["reject"] == "missing_image"


def test_a_credential_that_ends_while_renditions_are_made_is_not_delivered(root, tmp_path, monkeypatch):
    """What is read back is judged, not what was meant."""
    asked, _ = ask(root)
    invalid = credentials.Credentials(state="Invalid", problems=["signingCredential.expired"])
    monkeypatch.setattr(credentials, "read", lambda *_: invalid)
    assert render(root, asked, signing(tmp_path))["reject"] == "failed_readback"


def stock(root):
    """A product with a photo and a live creative, in the tables alone: plans open no picture."""
    at = {"x_px": 400, "y_px": 500, "width_px": 200, "height_px": 300}
    creative = {"creative_id": "c" * 16, "product_id": "P1", "cohort_id": "k1", "placement": "square", "rank": 0}
    creative |= {"photo_sha256": "a" * 64, "layout": at, "weights_revision": "w1", "fallback": False, "prompt": "snow"}
    creative |= {"uri": "objects/bb/b.webp", "sha256": "b" * 64, "width": 1080, "height": 1080}
    sample = {"sample_id": "s1", "product_id": "P1", "role": "main", "photo_sha256": "a" * 64}
    sample |= {"photo_uri": "objects/aa/a.photo", "mask_uri": "objects/cc/c.png"}
    for name, values, on in (("creatives", creative, "creative_id"), ("samples", sample, "sample_id")):
        rows = pa.Table.from_pylist([row(tables.TABLES[name], **values)], tables.TABLES[name])
        tables.merge(root, name, rows, on, None, {})


SQUARE = {"ratio": [1, 1], "min_px": [500, 500], "wanted_px": [1080, 1080], "formats": ["jpeg"], "max_bytes": 500_000}
SHOP = {"name": "shop", "feed": "manifest", "limits": {"id": 50, "url": 500, "images": 5}, "slots": {"one": SQUARE}}
FORMER = "184573f7030d62acc9eed1d4d705eff1ec8054a578c9ef8a224ce0bc64e3b0ab"


def named(root, folder, signing=None):
    """What the file of the one creative in the one slot is called."""
    (folder / "shop.yaml").write_text(json.dumps(SHOP))
    channels = (str(folder / "shop.yaml"),)
    given = {"root_uri": root.uri, "run_id": "d1", "public_base_url": "https://cdn.shop.example", "channels": channels}
    asked = plan(DeliverConfig(**given, signing=signing), root, load_channels(channels)).requests.to_pylist()
    assert [r["photo_uri"] for r in asked] == ["objects/aa/a.photo" if signing else None]
    return asked[0]["rendition_id"]


def test_files_that_are_not_signed_are_called_what_they_were_called(root, tmp_path):
    """By the code before there were signatures: nothing is made again."""
    stock(root)
    assert named(root, tmp_path) == FORMER


def test_another_certificate_signs_anew_unless_a_timestamp_keeps_the_old_files_valid(root, tmp_path):
    stock(root)
    renewed, other = issue("signer", AUTHORITY), issue("another signer", AUTHORITY)
    plain = {n: signing(tmp_path / n, s) for n, s in (("a", SIGNER), ("b", SIGNER), ("c", renewed))}
    stamped = {n: s.model_copy(update={"tsa_url": "https://tsa.example/"}) for n, s in plain.items()}
    stamped["d"] = signing(tmp_path / "d", other, tsa_url="https://tsa.example/")
    without = {n: named(root, tmp_path, s) for n, s in plain.items()}
    with_time = {n: named(root, tmp_path, s) for n, s in stamped.items()}
    assert without["a"] == without["b"], "where the files lie says nothing"
    assert with_time["a"] == with_time["b"] == with_time["c"]
    assert len({named(root, tmp_path), without["a"], without["c"], with_time["a"], with_time["d"]}) == 5


def test_rows_of_versions_that_knew_no_signatures_are_taken_up(root, small, rendered):
    publish(root)
    channels = small("meta")
    first = deliver(config(root, channels))
    rows = tables.read(root, "deliveries").drop_columns(["signed_by"])
    write_deltalake(f"{root.uri}/tables/deliveries", rows, mode="overwrite", schema_mode="overwrite")
    again = deliver(config(root, channels, run_id="d2"))
    assert first.to_render > 0
    assert (again.to_render, again.changed, again.removed) == (0, 0, 0)
    assert tables.read(root, "deliveries")["signed_by"].null_count == rows.num_rows


def test_a_catalog_is_delivered_signed_and_signed_again_by_a_new_certificate(root, small, rendered, tmp_path):
    publish(root)
    channels = small("meta")
    first = deliver(config(root, channels))
    signed = deliver(config(root, channels, run_id="d2", signing=signing(tmp_path / "1")))
    assert signed.rendered == first.rendered > 0
    again = deliver(config(root, channels, run_id="d3", signing=signing(tmp_path / "1")))
    assert (again.to_render, again.changed) == (0, 0)
    renewed = issue("signer", AUTHORITY)
    anew = deliver(config(root, channels, run_id="d4", signing=signing(tmp_path / "2", renewed)))
    assert anew.rendered == first.rendered
    rows = [r for r in tables.read(root, "deliveries").to_pylist() if r["uri"]]
    signers = {r["signed_by"] for r in rows}
    assert signers == {FileSigner(signing(tmp_path / "2", renewed)).signed_by}
    for r in rows:
        assert credentials.read(root.read(r["uri"]), ANCHORS).state == "Trusted"
