"""What signing asks of a network: a timestamp authority where it is named, and nobody else, whatever a picture says."""

import io
import shutil
import subprocess
import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from PIL import Image

from adbooster.contracts.errors import ConfigError
from adbooster.provenance import credentials
from adbooster.provenance.certificates import Issued
from adbooster.provenance.credentials import FileSigner, check_signing
from tests.provenance.signers import AUTHORITY, NOW, signing

ANCHORS = AUTHORITY.pem.decode()
TSA = """
[tsa]
default_tsa = own
[own]
serial = {0}/serial
signer_cert = {0}/tsa.pem
certs = {0}/ca.pem
signer_key = {0}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha384, sha512
ess_cert_id_alg = sha256
"""


@pytest.fixture
def server(tmp_path):
    """(its address, the requests that it got); a POST is answered by openssl as a timestamp authority, a GET by 404."""
    asked = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def do_POST(self):
            asked.append(self.path)
            (tmp_path / "query").write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
            command = ["openssl", "ts", "-reply", "-config", "tsa.cnf", "-queryfile", "query", "-out", "reply"]
            subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
            content = (tmp_path / "reply").read_bytes()
            self.send_response(200)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    running = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", asked
    running.shutdown()


def timestamp_authority(folder):
    """The files that openssl needs to be one."""
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "clock")]))
        .issuer_name(AUTHORITY.certificate.subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW - timedelta(hours=1))
        .not_valid_after(NOW + timedelta(days=1))
        .add_extension(x509.BasicConstraints(False, None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING]), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(AUTHORITY.key.public_key()), critical=False)
    )
    clock = Issued(builder.sign(AUTHORITY.key, hashes.SHA256()), key)
    contents = {"tsa.pem": clock.pem, "tsa.key": clock.key_pem, "ca.pem": AUTHORITY.pem, "serial": b"01"}
    contents["tsa.cnf"] = TSA.format(folder).encode()
    for name, content in contents.items():
        (folder / name).write_bytes(content)


def jpeg(**options):
    out = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(out, "JPEG", **options)
    return out.getvalue()


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_a_timestamp_is_in_the_file_and_within_its_reserve(tmp_path, server):
    address, asked = server
    timestamp_authority(tmp_path)
    settings = signing(tmp_path / "signer", tsa_url=f"{address}/tsa")
    check_signing(settings)
    signer, before = FileSigner(settings), jpeg()
    after = signer.sign(before, jpeg(), "0" * 64, "trainedAlgorithmicMedia")
    found = credentials.read(after, ANCHORS)
    assert (found.state, found.problems) == ("Trusted", [])
    assert found.signed_at.startswith(f"{NOW:%Y-}")
    assert len(after) - len(before) <= signer.reserve_bytes
    assert asked == ["/tsa"] * 3


def test_an_authority_that_does_not_answer_is_one_sentence_before_any_file_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(credentials, "ATTEMPTS", 1)
    with pytest.raises(ConfigError, match="a trial signature failed: c2pa cannot sign"):
        check_signing(signing(tmp_path, tsa_url="http://127.0.0.1:9/"))


def test_an_address_in_a_picture_is_never_asked(tmp_path, server):
    """XMP may name where a manifest lies: by default c2pa-rs would fetch it from inside of your network."""
    address, asked = server
    packet = (
        "<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>"
        f"<rdf:Description rdf:about='' xmlns:dcterms='http://purl.org/dc/terms/' dcterms:provenance='{address}/manifest'/>"
        "</rdf:RDF></x:xmpmeta>"
    )
    photo = jpeg(xmp=packet.encode())
    assert not credentials.read(photo, ANCHORS).holds
    signed = FileSigner(signing(tmp_path / "signer")).sign(jpeg(), photo, "0" * 64, "trainedAlgorithmicMedia")
    assert credentials.read(signed, ANCHORS).state == "Trusted"
    assert asked == []
