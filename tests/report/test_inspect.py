"""`adbooster inspect`: what a picture is, from the tables and from its own bytes, and what of it does not hold."""

import io
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pyarrow as pa
import pytest
from cryptography.hazmat.primitives import serialization
from PIL import Image

from adbooster.cli import console
from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.deliver.job import deliver
from adbooster.pictures import images
from adbooster.report import inspect as inspection
from adbooster.report.inspect import inspect
from adbooster.storage import tables
from tests.deliver.conftest import config, rendered, small
from tests.deliver.pictures import BOX, publish
from tests.provenance.signers import AUTHORITY, signing

__all__ = ["rendered", "small"]  # fixtures
ANCHORS = AUTHORITY.pem.decode()
LOOSE = {"min_psnr_db": 20, "max_delta_e_mean": 9, "max_delta_e_p99": 20}
HOLDS = {"file": True, "xmp": True, "credentials": True, "product": True}


@pytest.fixture
def shop(root, small, rendered, tmp_path):
    """A root with one creative that is delivered, signed; and its files by channel and slot."""
    publish(root)
    signer = signing(tmp_path / "signer")
    deliver(config(root, small("meta", "web"), signing=signer, fidelity=LOOSE))
    return root


def file(root, tmp_path, slot="square"):
    """A delivered file, copied out of the root: (its row, its path)."""
    rows = [r for r in tables.read(root, "deliveries").to_pylist() if r["slot"] == slot and r["uri"]]
    path = tmp_path / Path(rows[0]["uri"]).name
    path.write_bytes(root.read(rows[0]["uri"]))
    return rows[0], path


def verdicts(found):
    return {check.name: check.holds for check in found.checks}


def test_a_delivered_file_is_known_and_all_of_it_holds(shop, tmp_path):
    row, path = file(shop, tmp_path)
    found = inspect(shop, str(path), ANCHORS)
    assert (found.what, found.holds, verdicts(found)) == ("rendition", True, HOLDS)
    assert found.delivered[0]["slot"] == "square"
    assert found.creative.request["prompt"] == "a scene for c1"
    assert (found.creative.product["product_id"], found.creative.request["cohort_id"]) == ("P1", "c1")
    assert found.creative.weights["weights_revision"] == "w1"
    assert found.xmp["source"] == f"urn:sha256:{row['master_sha256']}"
    assert found.credentials.state == "Trusted"
    assert f"{row['psnr_db']:.1f} dB" in next(c.says for c in found.checks if c.name == "product")


def test_without_trust_anchors_a_signature_is_valid_and_with_others_it_fails(shop, tmp_path):
    from adbooster.provenance.certificates import issue

    _, path = file(shop, tmp_path)
    assert inspect(shop, str(path)).holds
    other = inspect(shop, str(path), issue("another authority").pem.decode())
    assert verdicts(other) == HOLDS | {"credentials": False}


def test_an_altered_file_names_the_creative_that_it_was(shop, tmp_path):
    row, path = file(shop, tmp_path)
    content = bytearray(path.read_bytes())
    content[-200] ^= 1
    path.write_bytes(content)
    found = inspect(shop, str(path), ANCHORS)
    assert (found.what, found.holds) == ("unknown", False)
    assert verdicts(found) == {"file": False, "credentials": False}
    assert found.creative.creative_id == row["creative_id"]
    saved = io.BytesIO()
    Image.open(path).save(saved, "JPEG")
    path.write_bytes(saved.getvalue())
    stripped = inspect(shop, str(path), ANCHORS)
    assert (stripped.holds, stripped.creative, stripped.credentials, stripped.xmp) == (False, None, None, {})


def test_what_a_file_says_alone_is_not_enough(shop, root, tmp_path):
    _, path = file(shop, tmp_path)
    alone = inspect(None, str(path), ANCHORS)
    assert (alone.what, alone.holds) == ("unknown", False)
    assert verdicts(alone) == {"file": False, "credentials": True}
    assert alone.xmp["ai_system"] == "AdBooster"
    (tmp_path / "note.txt").write_text("no picture")
    for name in ("note.txt",):
        found = inspect(root, str(tmp_path / name), ANCHORS)
        assert (found.what, found.format, found.holds) == ("unknown", None, False)


def test_a_creatives_id_and_file_prove_its_product(shop, tmp_path):
    creative = tables.read(shop, "creatives").to_pylist()[0]
    found = inspect(shop, creative["creative_id"])
    assert (found.what, found.holds, verdicts(found)) == ("creative", True, {"file": True, "product": True})
    assert {r["channel"] for r in found.delivered} == {"meta", "web"}
    path = tmp_path / "master.webp"
    path.write_bytes(shop.read(creative["uri"]))
    assert verdicts(inspect(shop, str(path))) == {"file": True, "product": True}
    shop.remove([creative["uri"]])
    gone = inspect(shop, creative["creative_id"])
    assert (gone.holds, verdicts(gone)) == (False, {"file": False})
    with pytest.raises(ConfigError, match="no creative '0000000000000000' is known"):
        inspect(shop, "0" * 16)


def test_a_product_that_is_not_the_photos_is_refuted(shop, tmp_path):
    """One level in one pixel of the stored creative, in a table that would vouch for it."""
    import hashlib

    creative = tables.read(shop, "creatives").to_pylist()[0]
    picture = images.decode(shop.read(creative["uri"])).copy()
    picture[BOX.y_px + BOX.height_px // 2, BOX.x_px + BOX.width_px // 2] ^= 1
    content = images.encode_lossless(picture)
    forged = creative | {"uri": shop.put(content, "webp"), "sha256": hashlib.sha256(content).hexdigest()}
    rows = pa.Table.from_pylist([forged], schema.CREATIVES)
    tables.merge(shop, "creatives", rows, "creative_id", tables.version(shop, "creatives"), {})
    found = inspect(shop, creative["creative_id"])
    assert verdicts(found) == {"file": True, "product": False}
    assert "up to 1 of 255 levels" in found.checks[1].says
    _, path = file(shop, tmp_path)
    assert verdicts(inspect(shop, str(path), ANCHORS)) == HOLDS | {"product": False}


def test_a_row_that_says_otherwise_is_told(shop, tmp_path):
    row, path = file(shop, tmp_path)
    wrong = row | {"digital_source_type": "trainedAlgorithmicMedia", "psnr_db": 90.0}
    rows = pa.Table.from_pylist([wrong], schema.DELIVERIES)
    tables.merge(shop, "deliveries", rows, "delivery_id", tables.version(shop, "deliveries"), {})
    assert verdicts(inspect(shop, str(path), ANCHORS)) == {
        "file": True,
        "xmp": False,
        "credentials": False,
        "product": False,
    }


def test_a_file_that_was_delivered_once_is_still_known(shop, tmp_path):
    row, path = file(shop, tmp_path)
    nothing = schema.DELIVERIES.empty_table()
    version = tables.version(shop, "deliveries")
    tables.merge(shop, "deliveries", nothing, "delivery_id", version, {}, delete=[row["delivery_id"]])
    found = inspect(shop, str(path), ANCHORS)
    assert (found.holds, found.checks[0].says) == (True, "it was delivered, and is not any more")


def test_what_the_history_lost_cannot_be_proven_and_is_said(shop, tmp_path):
    _, path = file(shop, tmp_path)
    shop.clear("tables/creatives")
    found = inspect(shop, str(path), ANCHORS)
    assert (found.what, found.creative, verdicts(found)) == ("rendition", None, HOLDS | {"product": False})
    assert "cannot be proven any more" in found.checks[-1].says


def test_files_of_roots_that_sign_nothing_hold(root, small, rendered, tmp_path):
    publish(root)
    deliver(config(root, small("web"), fidelity=LOOSE))
    for slot in {r["slot"] for r in tables.read(root, "deliveries").to_pylist() if r["uri"]}:
        found = inspect(root, str(file(root, tmp_path, slot)[1]))
        assert verdicts(found) == HOLDS | {"credentials": None}
        assert found.holds


def test_the_command_says_it_and_its_exit_code(shop, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("ADBOOSTER_ROOT_URI", raising=False)
    _, path = file(shop, tmp_path)
    flags = ["--root-uri", shop.uri, "--trust-anchors", str(tmp_path / "signer" / "ca.pem")]
    console.main(["inspect", str(path), *flags])
    said = capsys.readouterr().out
    for part in (
        "square",
        "a scene for c1",
        "P1",
        "Trusted, signed by signer",
        "every pixel of it is the photo's",
        "all of it holds",
    ):
        assert part in said
    console.main(["inspect", str(path), *flags, "--json"])
    assert json.loads(capsys.readouterr().out)["holds"] is True
    with pytest.raises(SystemExit, match="1"):
        console.main(["inspect", str(path)])
    assert "it does not hold: file" in capsys.readouterr().out
    for given, says in (
        ("/nowhere.jpg", "cannot be read"),
        ("http://shop.example/a.jpg", "no https address"),
        ("s3://shop/a.jpg", "no https address"),
    ):
        with pytest.raises(SystemExit, match="2"):
            console.main(["inspect", given, *flags])
        assert says in capsys.readouterr().err


@pytest.fixture
def https(tmp_path, monkeypatch):
    """A server of files of tmp_path, whose certificate this process trusts; /away leads to http."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
    certificate = builder.add_extension(alternative, False).sign(key, hashes.SHA256())
    pem, key_pem = tmp_path / "tls.pem", tmp_path / "tls.key"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    how = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key_pem.write_bytes(key.private_bytes(serialization.Encoding.PEM, *how))

    class Files(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/away":
                self.send_response(302)
                self.send_header("Location", "http://127.0.0.1/a.jpg")
                self.end_headers()
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write((tmp_path / self.path[1:]).read_bytes())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Files)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key_pem)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    yield f"https://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_an_address_is_fetched_and_nothing_but_https_is_followed(shop, tmp_path, https, monkeypatch):
    _, path = file(shop, tmp_path)
    found = inspect(shop, f"{https}/{path.name}", ANCHORS)
    assert (found.what, verdicts(found)) == ("rendition", HOLDS)
    with pytest.raises(ConfigError, match="leads on to http://127.0.0.1/a.jpg"):
        inspect(shop, f"{https}/away")
    monkeypatch.setattr(inspection, "MAX_BYTES", 1000)
    with pytest.raises(ConfigError, match="which no rendition has"):
        inspect(shop, f"{https}/{path.name}")
    with pytest.raises(ConfigError, match="which no rendition has"):
        inspect(shop, str(path))
