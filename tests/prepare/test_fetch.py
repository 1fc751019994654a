import os
import time

import pytest

from adbooster.prepare.addresses import is_public, prefix
from adbooster.prepare.config import Http
from adbooster.prepare.fetch import Fetch, NotFetched, Photo

QUICK = Http(read_s=1, deadline_s=3, attempts=3)


@pytest.fixture
def fetch():
    made = []

    def make(base="/nowhere/feed.tsv", allowed=None, allow_private=True, stores=(), options=None, **http) -> Fetch:
        made.append(Fetch(str(base), allowed, QUICK.model_copy(update=http), 100_000, allow_private, stores, options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def one(fetch: Fetch, uri: str, etag=None, last_modified=None) -> Photo | str:
    found = fetch.all([(uri, etag, last_modified)])[0]
    return found.reject if isinstance(found, NotFetched) else found


def test_a_server_that_misbehaves(fetch, misbehaving):
    client = fetch()
    wanted = {
        "/status/200": None,
        "/status/404": "missing_image",
        "/status/410": "missing_image",
        "/status/403": "unreachable_image",
        "/status/500,200": None,
        "/status/429,503,200": None,
        "/status/500": "unreachable_image",
        "/endless": "oversized_image",
        "/drip": "unreachable_image",
        "/slow/2/x": "unreachable_image",
        "/cut": "unreachable_image",
        "/page": None,
        "/wrong-content-type": None,
        "/redirect/%2Fstatus%2F200": None,
        "/redirect/file%3A%2F%2F%2Fetc%2Fpasswd": "refused_address",
    }
    started = time.monotonic()
    found = client.all([(misbehaving.url + path, None, None) for path in wanted])
    assert time.monotonic() - started < 15
    assert {p: f.reject if isinstance(f, NotFetched) else None for p, f in zip(wanted, found, strict=True)} == wanted
    assert misbehaving.counts["/status/500"] == 3, "as many tries as asked for"
    assert misbehaving.counts["/status/404"] == 1, "what is gone is not asked for again"
    photo = found[4]
    assert isinstance(photo, Photo)
    assert photo.content == misbehaving.files["photo"]
    assert [f.passing for f in found if isinstance(f, NotFetched)][:4] == [False, False, True, True]


def test_a_loop_of_redirects_ends(fetch, misbehaving):
    misbehaving.files["loop"] = b""
    url = f"{misbehaving.url}/redirect/%2Fredirect%2F%252Fredirect%252F%25252Fredirect"
    assert one(fetch(), url) == "unreachable_image"


def test_what_has_not_changed_is_not_sent_again(fetch, misbehaving):
    client = fetch()
    first = one(client, f"{misbehaving.url}/etag/photo")
    assert isinstance(first, Photo)
    assert first.content
    again = one(client, f"{misbehaving.url}/etag/photo", first.etag, first.last_modified)
    assert again == Photo(None, first.etag, None)
    misbehaving.files["photo"] += b"another"
    changed = one(client, f"{misbehaving.url}/etag/photo", first.etag, first.last_modified)
    assert isinstance(changed, Photo)
    assert changed.content == misbehaving.files["photo"]


def test_no_more_than_so_many_from_one_host(fetch, misbehaving):
    fetch(per_host=2).all([(f"{misbehaving.url}/slow/0.1/{n}", None, None) for n in range(12)])
    assert misbehaving.most_under_way == 2


def test_a_host_that_is_down_is_not_waited_for_all_night(fetch, misbehaving, monkeypatch):
    """Its photos wait as long as one photo may take; those of other hosts do not wait at all."""
    other = type(misbehaving)()
    other.files = misbehaving.files
    client = fetch(deadline_s=1, attempts=1, retry_after_s=0.1)
    down = [(f"{misbehaving.url}/status/503/{n}", None, None) for n in range(100)]
    started = time.monotonic()
    found = [*client.all(down), *client.all([(f"{other.url}/status/200", None, None)])]
    other.server.shutdown()
    other.server.server_close()
    assert time.monotonic() - started < 30
    assert all(isinstance(f, NotFetched) and f.passing for f in found[:-1])
    assert isinstance(found[-1], Photo)
    assert len(misbehaving.asked) < 100


def test_retry_after_is_heeded_up_to_a_cap(fetch, misbehaving):
    started = time.monotonic()
    misbehaving._send = lambda h, code, body, headers: type(misbehaving)._send(
        h, code, body, headers | {"Retry-After": "3600"}
    )
    assert isinstance(one(fetch(retry_after_s=0.2), f"{misbehaving.url}/status/429,200"), Photo)
    assert 0.2 <= time.monotonic() - started < 2


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "0.0.0.0", "2130706433", "0x7f000001", "127.1", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_addresses_inside_the_network_are_not_asked(fetch, misbehaving, host):
    found = one(fetch(allow_private=False, attempts=1), f"http://{host}:{misbehaving.port}/status/200")
    assert found in ("refused_address", "unreachable_image")
    if host in ("127.0.0.1", "localhost"):
        assert found == "refused_address"
    assert misbehaving.asked == []


def test_a_redirect_into_the_network_is_not_followed(fetch, misbehaving, monkeypatch):
    """The first server is public, as it were; what it points to is not."""
    from adbooster.prepare import fetch as module

    inside = type(misbehaving)()
    calls = []
    monkeypatch.setattr(module, "is_public", lambda address: calls.append(address) or len(calls) == 1)
    found = one(
        fetch(allow_private=False), f"{misbehaving.url}/redirect/{inside.url.replace('/', '%2F')}%2Fstatus%2F200"
    )
    assert found == "refused_address"
    assert len(misbehaving.asked) == 1
    assert inside.asked == []
    inside.server.shutdown()
    inside.server.server_close()


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:220:1::1", True),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("127.9.9.9", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_public(address, public):
    assert is_public(address) == public


def test_files_below_the_allowed_root_only(fetch, tmp_path):
    shop, secret = tmp_path / "shop", tmp_path / "secret.png"
    shop.mkdir()
    secret.write_bytes(b"secret")
    (shop / "a b.png").write_bytes(b"photo")
    (shop / "link.png").symlink_to(secret)
    (shop / "inside.png").symlink_to(shop / "a b.png")
    (shop / "big.png").write_bytes(b"x" * 100_001)
    os.mkfifo(shop / "pipe.png")
    client = fetch(base=shop / "feed.tsv", allowed=shop)
    wanted = {
        "a b.png": None,
        str(shop / "a b.png"): None,
        f"file://{shop}/a%20b.png": None,
        "inside.png": None,
        "big.png": "oversized_image",
        "gone.png": "missing_image",
        **dict.fromkeys(
            [
                "link.png",
                "pipe.png",
                ".",
                "../secret.png",
                str(secret),
                f"file://{secret}",
                "/dev/zero",
                "x\0y",
                "n" * 5000,
                "nope://x/y.png",
                "simplecache::file:///etc/passwd",
                "ftp://x/y.png",
                "http://[::1",
                "https://",
                "",
            ],
            "unreachable_image",
        ),
    }
    assert {uri: r if isinstance(r := one(client, uri), str) else None for uri in wanted} == wanted
    assert one(fetch(base=shop / "feed.tsv", allowed=None), "a b.png") == "unreachable_image"
    first = one(client, "a b.png")
    assert isinstance(first, Photo)
    assert one(client, "a b.png", first.etag) == Photo(None, first.etag, None)


def test_objects_on_s3_by_their_etag(fetch, s3_root):
    import fsspec

    for name, size in (("a.png", 10), ("big.png", 100_001)):
        with fsspec.open(f"{s3_root}/{name}", "wb") as f:
            f.write(b"x" * size)
    client = fetch(base=f"{s3_root}/feed.tsv", stores=[prefix(s3_root)])
    first = one(client, "a.png")
    assert isinstance(first, Photo)
    assert first.content == b"x" * 10
    assert one(client, "a.png", first.etag) == Photo(None, first.etag, None)
    assert one(client, f"{s3_root}/big.png") == "oversized_image"
    assert one(client, "gone.png") == "missing_image"
    assert one(client, "s3://no-such-bucket-anywhere/x.png") == "refused_address"
    assert one(client, "s3://!!/x.png") == "refused_address"
