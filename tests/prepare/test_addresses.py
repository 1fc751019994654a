"""Fences for addresses in a feed: object storage within allowed folders, read with credentials of their own."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest

from adbooster.contracts.errors import ConfigError
from adbooster.prepare import addresses
from adbooster.prepare.checks import check
from adbooster.prepare.config import PrepareConfig, Source
from adbooster.prepare.fetch import NotFetched, open_fetch

SHOP = [addresses.prefix("s3://shop/photos")]
OUTSIDE = [
    "s3://shop/secret.png",
    "s3://shop/photos-private/a.png",
    "s3://shop/photos/../secret.png",
    "s3://shop/photos/./a.png",
    "s3://shop/photos/%2e%2e/secret.png",
    "s3://shop/photos/%252e%252e/secret.png",
    "s3://shop/photos/%25252525252525252e%25252525252525252e/x",
    "s3://shop/photos/..%2fsecret.png",
    "s3://shop/photos/．．/secret.png",
    "s3://shop/photos/‥/secret.png",
    "s3://shop/photos//a.png",
    "s3://shop//photos/a.png",
    "s3:///shop/photos/a.png",
    "s3://shop/photos\\..\\secret.png",
    "s3://shop/photos/%5c..%5csecret.png",
    "s3://SHOP/photos/a.png",
    "s3://shоp/photos/a.png",  # a Cyrillic o
    "s3://user:password@shop/photos/a.png",
    "s3://shop@elsewhere/photos/a.png",
    "s3://shop/photos/a.png?versionId=0001",
    "s3://shop/photos/a.png#1234",
    "s3://shop/photos/a\0.png",
    "s3://shop/photos/a%00.png",
    "s3://shop/photos/a\u202egnp.b",
    "s3://shop/photos::s3://other/a.png",
    "s3://shop/PHOTOS/a.png",
    "s3://other/photos/a.png",
    "s3://arn:aws:s3:eu-west-1:1:accesspoint/shop/photos/a.png",
    "gs://shop/photos/a.png",
    "az://shop/photos/a.png",
    "abfs://shop@account.dfs.core.windows.net/photos/a.png",
    "s3://",
    "s3://shop",
]


@pytest.mark.parametrize("address", OUTSIDE)
def test_what_lies_outside_or_could_is_refused(address):
    with pytest.raises(addresses.Refused):
        addresses.allowed(address, SHOP)


@pytest.mark.parametrize(
    ("address", "uri"),
    [
        ("s3://shop/photos/a.png", "s3://shop/photos/a.png"),
        ("S3A://shop/photos/new/ä 100%25.png", "s3://shop/photos/new/ä 100%25.png"),
        ("s3://shop/photos/a%20b.png", "s3://shop/photos/a%20b.png"),
    ],
)
def test_what_lies_inside_is_fetched_as_it_is_written(address, uri):
    assert addresses.allowed(address, SHOP).uri == uri


@pytest.mark.parametrize(
    ("feed", "folders"),
    [
        ("s3://shop/feeds/feed.tsv", ("s3://shop/feeds",)),
        ("gs://shop/feed.tsv", ("gs://shop",)),
        ("https://shop.example/feed.tsv", ()),
        ("/data/feed.tsv", ()),
    ],
)
def test_the_feeds_own_folder_is_the_default(feed, folders):
    assert addresses.own_folder(feed) == folders


def config(**settings) -> PrepareConfig:
    needed = {"root_uri": "/r", "feed_uri": "/f.tsv", "mask_model": "/m.onnx", "caption_model": "/c"}
    return PrepareConfig(**needed | settings)


@pytest.mark.parametrize("store", ["shop/photos", "https://shop/x", "s3://", "s3://shop/../x", "s3://shop/a?b"])
def test_a_fence_that_is_none_is_an_error_of_the_settings(store):
    with pytest.raises(ValueError, match="should be a bucket or folder such as s3://shop/photos"):
        config(allowed_stores=[store])


def test_credentials_are_names_and_a_missing_one_is_an_error_of_the_settings(monkeypatch):
    names = {"key_env": "PHOTOS_ID", "secret_env": "PHOTOS_SECRET"}
    settings = config(fetch_credentials=names)
    monkeypatch.setenv("PHOTOS_ID", "reader")
    with pytest.raises(ConfigError, match=r"PHOTOS_SECRET, which fetch_credentials\.secret_env names, is not set"):
        settings.fetch_credentials.client_options()
    for wrong in ({"key_env": "A"}, {"token_env": "A_TOKEN"}, names | {"secret_env": "wJalrXUtnFEMI/K7MDENG"}):
        with pytest.raises(ValueError, match="fetch_credentials"):
            config(fetch_credentials=wrong)


def test_what_cannot_be_fenced_is_refused_before_anything_starts(monkeypatch):
    with pytest.raises(ConfigError, match="set allowed_stores"):
        check(config(feed_uri="s3://shop/../feed.tsv"))
    monkeypatch.setenv("PHOTOS_ID", "reader")
    with pytest.raises(ConfigError, match="PHOTOS_SECRET"):
        check(config(fetch_credentials={"key_env": "PHOTOS_ID", "secret_env": "PHOTOS_SECRET"}))
    monkeypatch.setenv("PHOTOS_SECRET", "secret")
    with pytest.raises(ConfigError, match="gs://shop/ is another storage"):
        check(
            config(
                fetch_credentials={"key_env": "PHOTOS_ID", "secret_env": "PHOTOS_SECRET"}, allowed_stores=("gs://shop",)
            )
        )


def fetched(source: Source, *uris: str) -> list[str | bytes | None]:
    client = open_fetch(source, 100_000)
    found = client.all([(uri, None, None) for uri in uris])
    client.close()
    return [p.reject if isinstance(p, NotFetched) else p.content for p in found]


def test_a_feed_cannot_read_another_bucket_or_folder(s3_root):
    bucket = s3_root.split("/")[2]
    fsspec.filesystem("s3").mkdir(f"other-{bucket}")
    places = [f"{bucket}/feeds/a.png", f"{bucket}/private/a.png", f"other-{bucket}/a.png"]
    for place in places:
        fsspec.filesystem("s3").pipe_file(place, place.encode())
    uris = [f"s3://{place}" for place in places]
    own = config(feed_uri=f"s3://{bucket}/feeds/feed.tsv").source()
    assert fetched(own, "a.png", *uris) == [places[0].encode()] * 2 + ["refused_address"] * 2
    assert fetched(own, "../private/a.png", "/private/a.png") == ["refused_address"] * 2
    assert fetched(config().source(), *uris) == ["refused_address"] * 3, "a feed on disk has no object storage"
    some = config(allowed_stores=(f"s3://{bucket}/private/", f"s3://other-{bucket}")).source()
    assert fetched(some, *uris) == ["refused_address", *(place.encode() for place in places[1:])]
    assert fetched(config(feed_uri=f"s3://{bucket}/feeds/feed.tsv", allowed_stores=()).source(), uris[0]) == [
        "refused_address"
    ]


def test_photos_are_read_with_the_credentials_of_their_own(monkeypatch):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers.get("Authorization", ""))
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.send_header("ETag", '"1"')
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(b"photo")

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("PHOTOS_ID", "READER")
    monkeypatch.setenv("PHOTOS_SECRET", "the secret of the reader")
    names = {"key_env": "PHOTOS_ID", "secret_env": "PHOTOS_SECRET"}
    source = config(allowed_stores=("s3://shop",), fetch_credentials=names).source()
    assert fetched(source, "s3://shop/a.png") == [b"photo"]
    server.shutdown()
    server.server_close()
    assert asked
    assert all("Credential=READER/" in header for header in asked), "the environment's own is called test"


def test_a_file_address_in_any_case_is_held_to_the_folder(tmp_path):
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "a.png").write_bytes(b"photo")
    (tmp_path / "secret.png").write_bytes(b"secret")
    source = config(feed_uri=str(tmp_path / "shop" / "feed.tsv")).source()
    inside, outside = f"{tmp_path}/shop/a.png", f"{tmp_path}/shop/%2e%2e/secret.png"
    assert fetched(source, f"FILE://{inside}", f"FILE://{outside}", f"file://{outside}", "..%2fsecret.png") == [
        b"photo",
        "unreachable_image",
        "unreachable_image",
        "missing_image",
    ]
