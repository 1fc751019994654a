"""C2PA manifests: what they say, when they hold and when not, and what is said of certificates and keys that cannot work."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from PIL import Image
from pydantic import ValidationError

from adbooster.contracts.errors import ConfigError, SigningError
from adbooster.deliver import encoding
from adbooster.deliver.checks import check
from adbooster.deliver.config import DeliverConfig
from adbooster.pictures import images
from adbooster.provenance import certificates, credentials, xmp
from adbooster.provenance.certificates import issue
from adbooster.provenance.credentials import FileSigner, check_signing
from adbooster.provenance.signing import Signing, read_key
from adbooster.provenance.xmp import Marks
from tests.deliver.pictures import scene
from tests.provenance import signers
from tests.provenance.signers import AUTHORITY, SIGNER, signing

MARKS = Marks("compositeWithTrainedAlgorithmicMedia", "AdBooster", "w1", None, None, "urn:sha256:ab")
ANCHORS = AUTHORITY.pem.decode()
PHOTO = images.encode_lossless(scene(30, 30, seed=3))
PHOTO_SHA256 = hashlib.sha256(PHOTO).hexdigest()
KINDS = ("jpeg", "png", "webp")
FLIP = {"jpeg": -200, "png": -200, "webp": 1500}  # a byte of the pixels' code


def encoded(kind):
    return encoding.encode(scene(160, 120), kind, 10**6, (90, 90), xmp.packet(MARKS)).content


def signed(signing, kind="jpeg", photo=PHOTO):
    return FileSigner(signing).sign(encoded(kind), photo, PHOTO_SHA256, "compositeWithTrainedAlgorithmicMedia")


@pytest.mark.parametrize("kind", KINDS)
def test_a_signed_file_says_what_it_is_and_keeps_pixels_and_marks(tmp_path, kind):
    before, after = encoded(kind), signed(signing(tmp_path), kind)
    assert np.array_equal(images.decode(before), images.decode(after))
    assert xmp.read(after) == xmp.expected(MARKS)
    found = credentials.read(after, ANCHORS)
    assert (found.state, found.problems, found.holds) == ("Trusted", [], True)
    assert found.digital_source_type == "compositeWithTrainedAlgorithmicMedia"
    assert found.actions == ["c2pa.created", "c2pa.placed"]
    assert found.placed == [f"urn:sha256:{PHOTO_SHA256}"]
    assert (found.signer, found.algorithm, found.signed_at) == ("signer", "Es256", None)
    assert found.generator == "AdBooster 0.1.0"
    assert credentials.read(after).state == "Valid", "without trust anchors nobody is trusted"
    assert credentials.read(before, ANCHORS) is None


@pytest.mark.parametrize("kind", KINDS)
def test_one_changed_byte_or_other_marks_are_seen_and_a_new_save_loses_the_manifest(tmp_path, kind):
    after = signed(signing(tmp_path), kind)
    flipped = bytearray(after)
    flipped[FLIP[kind]] ^= 1
    found = credentials.read(bytes(flipped), ANCHORS)
    assert (found.state, found.holds) == ("Invalid", False)
    assert "assertion.dataHash.mismatch" in found.problems
    marked = after.replace(b"urn:sha256:ab", b"urn:sha256:ac")
    assert marked != after
    assert credentials.read(marked, ANCHORS).state == "Invalid"
    saved = io.BytesIO()
    with Image.open(io.BytesIO(after)) as opened:
        opened.save(saved, opened.format)
    assert credentials.read(saved.getvalue(), ANCHORS) is None


def test_another_authoritys_signer_is_not_trusted(tmp_path):
    other = issue("another authority")
    found = credentials.read(signed(signing(tmp_path)), other.pem.decode())
    assert (found.state, found.problems) == ("Valid", ["signingCredential.untrusted"])


def test_a_manifest_costs_what_is_kept_free_for_it(tmp_path):
    for n, kind in enumerate(KINDS):
        signer = FileSigner(signing(tmp_path / str(n)))
        before = encoded(kind)
        after = signer.sign(before, PHOTO, PHOTO_SHA256, "trainedAlgorithmicMedia")
        added = len(after) - len(before)
        assert signer.reserve_bytes - 2 * credentials.SPARE_BYTES <= added <= signer.reserve_bytes < 6000


def test_a_photo_that_has_a_manifest_keeps_it_and_one_that_no_reader_takes_is_named(tmp_path):
    settings = signing(tmp_path)
    first = signed(settings)
    again = signed(settings, photo=first)
    assert credentials.read(again, ANCHORS).state == "Trusted"
    assert len(again) > len(first) + 2000
    for odd in (b"", b"no picture at all", b"\x89PNG\r\n\x1a\n"):
        found = credentials.read(signed(settings, photo=odd), ANCHORS)
        assert (found.state, found.placed) == ("Trusted", [f"urn:sha256:{PHOTO_SHA256}"])


@pytest.mark.parametrize(
    "content", [b"", b"no picture", b"\xff\xd8\xff\xe0", b"<svg xmlns='http://www.w3.org/2000/svg'/>"]
)
def test_what_is_no_picture_has_no_credentials_that_hold(content):
    found = credentials.read(content, ANCHORS)
    assert found is None or not found.holds


SIGN = """
import sys
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
key = serialization.load_pem_private_key(open(sys.argv[1], "rb").read(), None)
der = key.sign(sys.stdin.buffer.read(), ec.ECDSA(hashes.SHA256()))
raw = b"".join(n.to_bytes(32, "big") for n in decode_dss_signature(der))
sys.stdout.buffer.write(der if sys.argv[2] == "der" else raw)
"""


def by_command(folder, how="raw", key=SIGNER, code=SIGN, **changes):
    files = signers.write(folder, key=key)
    program = folder / "sign.py"
    program.write_text(code)
    command = (sys.executable, str(program), files.key, how)
    return Signing(chain=files.chain, command=command, trust_anchors=files.anchors, **changes)


@pytest.mark.parametrize("how", ["raw", "der"])
def test_a_program_signs_for_a_key_that_is_elsewhere(tmp_path, how):
    settings = by_command(tmp_path, how)
    check_signing(settings)
    assert credentials.read(signed(settings), ANCHORS).state == "Trusted"


def test_a_program_that_does_not_sign_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(credentials, "ATTEMPTS", 1)
    secret = "print('top secret'); raise SystemExit(3)"
    slow = "import time; time.sleep(30)"
    cases = [
        (by_command(tmp_path / "a", code=secret), "failed with exit status 3"),
        (by_command(tmp_path / "b", code=slow, command_timeout_s=0.5), "took more than 0.5 s"),
        (
            by_command(tmp_path / "c", key=issue("other", AUTHORITY)),
            "no es256 signature under the certificate .*CN=signer",
        ),
        (by_command(tmp_path / "d", code="print('x')"), r"\(2 bytes\) is no es256 signature"),
        (
            by_command(tmp_path / "e").model_copy(update={"command": ("no-such-program",)}),
            "no-such-program is not there",
        ),
    ]
    for settings, says in cases:
        with pytest.raises(ConfigError, match=f"trial signature failed: .*{says}") as e:
            check_signing(settings)
        assert "top secret" not in str(e.value)
    with pytest.raises(SigningError, match="exit status 3"):
        signed(cases[0][0])


def test_what_fails_once_is_tried_again(tmp_path):
    once = f"import os, sys\nif not os.path.exists({str(tmp_path / 'ran')!r}):\n    open({str(tmp_path / 'ran')!r}, 'w')\n    sys.exit(1)\n"
    assert credentials.read(signed(by_command(tmp_path / "a", code=once + SIGN)), ANCHORS).state == "Trusted"


def wrong(folder, **case):
    """Settings whose chain or key is wrong in one way."""
    signer = case.get("signer", SIGNER)
    settings = signing(folder, signer)
    files = signers.Files(settings.chain, settings.key_file, settings.trust_anchors)
    for name in ("chain", "key"):
        if name in case:
            Path(getattr(files, name)).write_bytes(case[name])
    return settings.model_copy(update=case.get("changes", {}))


ENCRYPTED = SIGNER.key.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
)
WRONG = {
    "not PEM": ({"chain": b"no certificate"}, "holds no certificates in PEM"),
    "no chain": ({"changes": {"chain": "/nowhere/chain.pem"}}, "signing.chain /nowhere/chain.pem cannot be read"),
    "no key": ({"changes": {"key_file": "/nowhere/key.pem"}}, "signing.key_file /nowhere/key.pem cannot be read"),
    "no anchors": ({"changes": {"trust_anchors": "/nowhere/ca.pem"}}, "trust_anchors /nowhere/ca.pem cannot be read"),
    "expired": ({"signer": signers.expired()}, r"CN=expired.* expired at 20\d\d-\d\d-\d\d"),
    "early": ({"signer": signers.not_yet_valid()}, r"CN=early.* is valid only from 20\d\d-\d\d-\d\d"),
    "other key": ({"key": issue("other").key_pem}, "key.pem is not the key of the certificate"),
    "no key in PEM": (
        {"key": b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"},
        "holds no private key",
    ),
    "password": ({"key": ENCRYPTED}, "a key with a password"),
    "purpose": ({"signer": issue("plain", AUTHORITY, purpose=False)}, "lacks an extended key usage"),
    "an authority": ({"chain": AUTHORITY.pem}, "lacks the key usage digitalSignature"),
    "order": ({"chain": SIGNER.pem + issue("other").pem}, "was not issued by .*CN=other"),
    "algorithm": ({"changes": {"algorithm": "es384"}}, "of the kind secp256r1, which does not sign es384"),
    "rsa": ({"changes": {"algorithm": "ps256"}}, "does not sign ps256"),
    "secret": ({"changes": {"tsa_url": "https://tsa.example/?token=abcdefgh"}}, "signing holds a secret"),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG.keys())
def test_what_cannot_sign_is_one_sentence(tmp_path, case):
    given, says = case
    with pytest.raises(ConfigError, match=says) as e:
        check_signing(wrong(tmp_path, **given))
    assert "c2VjcmV0" not in str(e.value)


def test_an_authority_that_is_not_the_signers_is_seen_before_any_file_is_made(tmp_path):
    files = signers.write(tmp_path / "other", authority=issue("another authority"))
    with pytest.raises(ConfigError, match="not trusted under signing.trust_anchors"):
        check_signing(signing(tmp_path / "own").model_copy(update={"trust_anchors": files.anchors}))


def test_certificates_and_key_come_from_the_environment(tmp_path, monkeypatch):
    settings = Signing(chain_env="SHOP_CHAIN", key_env="SHOP_SIGNING_KEY")
    with pytest.raises(ConfigError, match="SHOP_CHAIN, which signing.chain_env names, is not set"):
        check_signing(settings)
    monkeypatch.setenv("SHOP_CHAIN", (SIGNER.pem + AUTHORITY.pem).decode())
    with pytest.raises(ConfigError, match="SHOP_SIGNING_KEY, which signing.key_env names, is not set"):
        check_signing(settings)
    monkeypatch.setenv("SHOP_SIGNING_KEY", SIGNER.key_pem.decode())
    check_signing(settings)
    assert credentials.read(signed(settings), ANCHORS).state == "Trusted"
    assert (
        FileSigner(settings).signed_by
        == SIGNER.certificate.fingerprint(SIGNER.certificate.signature_hash_algorithm).hex()
    )


def test_settings_name_one_chain_and_one_key_and_never_hold_it():
    for values in ({}, {"chain": "a"}, {"chain": "a", "key_file": "b", "command": ["c"]}, {"key_env": "A_KEY"}):
        with pytest.raises(ValidationError, match="once"):
            Signing.model_validate(values)
    for values in ({"key_env": "HOME"}, {"tsa_url": ""}, {"tsa_url": "ftp://x"}, {"algorithm": "rs256"}, {"key": "x"}):
        with pytest.raises(ValidationError):
            Signing.model_validate({"chain": "a", "key_file": "b"} | values)
    pasted = Signing(chain="a", key_file=SIGNER.key_pem.decode())
    with pytest.raises(ConfigError, match="should be the path") as e:
        read_key(pasted)
    assert SIGNER.key_pem.decode().splitlines()[1] not in str(e.value)


def test_the_checks_of_the_job_sign_before_anything_is_encoded(root, tmp_path, monkeypatch):
    given = {"root_uri": root.uri, "channels": ("meta",), "public_base_url": "https://cdn.shop.example"}
    check(DeliverConfig(**given, signing=signing(tmp_path / "good")))
    with pytest.raises(ConfigError, match="CN=expired.* expired at"):
        check(DeliverConfig(**given, signing=signing(tmp_path / "bad", signers.expired())))
    monkeypatch.setenv("SHOP_SIGNING_KEY", SIGNER.key_pem.decode())
    config = DeliverConfig(**given, signing=Signing(chain=signing(tmp_path / "env").chain, key_env="SHOP_SIGNING_KEY"))
    check(config)
    dumped = config.model_dump_json()
    assert "SHOP_SIGNING_KEY" in dumped
    assert SIGNER.key_pem.decode().splitlines()[1] not in dumped + repr(config)


def test_development_certificates_sign_and_are_not_overwritten(tmp_path, capsys, monkeypatch):
    import yaml

    from adbooster.cli import console

    monkeypatch.delenv("ADBOOSTER_ROOT_URI", raising=False)
    console.main(["certificates", "dev", "--out", str(tmp_path / "dev")])
    settings = Signing.model_validate(yaml.safe_load(capsys.readouterr().out)["deliver"]["signing"])
    check_signing(settings)
    assert Path(settings.key_file).stat().st_mode & 0o777 == 0o600
    before = Path(settings.key_file).read_bytes()
    with pytest.raises(SystemExit, match="2"):
        console.main(["certificates", "dev", "--out", str(tmp_path / "dev")])
    assert "is not overwritten" in capsys.readouterr().err
    assert Path(settings.key_file).read_bytes() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        certificates.write_dev(tmp_path / "file" / "below")


@pytest.mark.skipif(not shutil.which("exiftool"), reason="exiftool is not installed")
@pytest.mark.parametrize("kind", KINDS)
def test_exiftool_reads_marks_and_manifest_of_a_signed_file(tmp_path, kind):
    path = tmp_path / f"a.{encoding.EXTENSIONS[kind]}"
    path.write_bytes(signed(signing(tmp_path / "own"), kind))
    said = json.loads(subprocess.run(["exiftool", "-j", "-G", path], capture_output=True, text=True, check=True).stdout)
    assert said[0]["XMP:DigitalSourceType"].endswith("compositeWithTrainedAlgorithmicMedia")
    if kind != "webp":  # whose manifests Debian's exiftool 12.57 does not read yet
        assert any(name.startswith("JUMBF:") for name in said[0])
