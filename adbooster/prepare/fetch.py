"""Photos by their address: http(s), object storage, files below an allowed folder; only what changed is read."""

import asyncio
import email.utils
import logging
import os
import socket
import stat
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import aiohttp
from botocore.exceptions import BotoCoreError
from fsspec.core import url_to_fs
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from adbooster.engine.host_limits import Limits
from adbooster.prepare import addresses
from adbooster.prepare.addresses import STORES, Refused, Stored, absolute, is_public
from adbooster.prepare.config import Http, Source
from adbooster.prepare.hosts import HostDown, Hosts, SharedLimits

log = logging.getLogger(__name__)
MAX_REDIRECTS = 5
CHUNK_BYTES = 1 << 16


class Photo(NamedTuple):
    """What came back: the bytes, or None if they have not changed since last time; and the validators for next time."""

    content: bytes | None
    etag: str | None
    last_modified: str | None


class NotFetched(Exception):
    """No photo: the reject word, the reason, and whether the next night may get it (`passing`)."""

    def __init__(self, reject: str, why: str, passing: bool = False):
        super().__init__(f"{reject}: {why}")
        self.reject, self.why, self.passing = reject, why, passing


class _TryAgain(Exception):
    def __init__(self, why: str, pause_s: float | None = None):
        super().__init__(why)
        self.pause_s = pause_s


class RefusedAddress(OSError):
    """An address inside the network, which a feed must not make this job connect to."""


class Fetch:
    """Fetches photos for one process; relative links are resolved against `base`.

    allowed_root   local files lie below it, links followed; None: no local file at all
    allow_private  addresses that are not public may be requested
    stores         folders of object storage that photos may lie in
    options        of the storage's client: credentials of its own
    """

    def __init__(
        self,
        base: str,
        allowed_root: Path | None,
        http: Http,
        max_bytes: int,
        allow_private: bool = False,
        stores: Sequence[Stored] = (),
        options: Mapping[str, str] | None = None,
    ):
        self.base, self.http, self.max_bytes, self.allow_private = base, http, max_bytes, allow_private
        self.allowed_root = allowed_root and allowed_root.resolve()
        self.stores, self.options = stores, dict(options or {})
        self.runner = asyncio.Runner()
        self.threads = ThreadPoolExecutor(http.concurrency)
        share = Limits(http.per_host, http.requests_per_s, http.retry_after_s)
        self.hosts = Hosts(SharedLimits(share), http.deadline_s)
        self.session: aiohttp.ClientSession | None = None

    def all(self, wanted: list[tuple[str, str | None, str | None]]) -> list[Photo | NotFetched]:
        """Photos by (address, etag, last_modified) of last time (None: read anyway), in the order given."""
        return self.runner.run(self._all(wanted))

    def close(self) -> None:
        if self.session:
            self.runner.run(self.session.close())
        self.runner.close()
        self.threads.shutdown()

    async def _all(self, wanted: list[tuple[str, str | None, str | None]]) -> list[Photo | NotFetched]:
        slots = asyncio.Semaphore(self.http.concurrency)

        async def photo(uri: str, etag: str | None, last_modified: str | None) -> Photo | NotFetched:
            try:
                return await self._photo(slots, uri, etag, last_modified)
            except NotFetched as e:
                log.info("no photo from %r: %s", uri[:200], e)
                return e

        async with self.hosts.open():
            return await asyncio.gather(*(photo(*w) for w in wanted))

    async def _photo(self, slots: asyncio.Semaphore, uri: str, etag: str | None, last_modified: str | None) -> Photo:
        try:
            address = absolute(uri, self.base)
            scheme = urlsplit(address).scheme.lower() if "://" in address else "file"
        except ValueError as e:
            raise NotFetched("unreachable_image", str(e)) from e
        if scheme in ("http", "https"):
            try:
                async with self.hosts.permit(_host(address)), slots:
                    return await self._with_retries(address, etag, last_modified)
            except HostDown as e:
                raise NotFetched("unreachable_image", str(e), True) from e
        if scheme != "file" and (scheme not in STORES or "::" in address):
            raise NotFetched("unreachable_image", f"photos are not fetched by the scheme {scheme[:20]!r}")
        read = self._file if scheme == "file" else self._stored
        async with slots:
            return await asyncio.get_running_loop().run_in_executor(self.threads, read, address, etag)

    def _file(self, address: str, etag: str | None) -> Photo:
        path = unquote(address[len("file://") :]) if address[:7].lower() == "file://" else address
        try:
            whole = Path(path).resolve()  # a link out of the folder is outside
            if self.allowed_root is None or not whole.is_relative_to(self.allowed_root):
                raise NotFetched("unreachable_image", "it lies outside the allowed folder")
            # Not blocking: a named pipe must not stop the night.
            with open(os.open(whole, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as f:
                about = os.fstat(f.fileno())
                if not stat.S_ISREG(about.st_mode):
                    raise NotFetched("unreachable_image", "it is not a file")
                now = file_etag(about)
                if now == etag:
                    return Photo(None, etag, None)
                if about.st_size > self.max_bytes:
                    raise NotFetched("oversized_image", f"{about.st_size} bytes")
                return Photo(self._within(f.read(self.max_bytes + 1)), now, None)
        except FileNotFoundError as e:
            raise NotFetched("missing_image", str(e)) from e
        except (OSError, ValueError, RuntimeError) as e:
            raise NotFetched("unreachable_image", str(e)) from e

    def _stored(self, address: str, etag: str | None) -> Photo:
        """Object storage, within `stores`; the client tries again by itself."""
        try:
            found = addresses.allowed(address, self.stores)
            fs, path = url_to_fs(found.uri, use_listings_cache=False, **self.options)
            if path != found.path:  # the client understands the address in another way
                raise Refused(f"it is read as {path[:200]!r}")
            about = fs.info(path)
            now = str(about.get("ETag") or about.get("etag") or about.get("mtime") or "") or None
            if now and now == etag:
                return Photo(None, etag, None)
            if (about.get("size") or 0) > self.max_bytes:
                raise NotFetched("oversized_image", f"{about['size']} bytes")
            return Photo(self._within(fs.cat_file(path, end=self.max_bytes + 1)), now, None)
        except Refused as e:
            raise NotFetched("refused_address", str(e)) from e
        except FileNotFoundError as e:
            raise NotFetched("missing_image", str(e)) from e
        except (OSError, ValueError, TypeError, ImportError, BotoCoreError) as e:
            passing = not isinstance(e, PermissionError | ImportError)
            raise NotFetched("unreachable_image", f"{type(e).__name__}: {e}", passing) from e

    def _within(self, content: bytes) -> bytes:
        if len(content) > self.max_bytes:
            raise NotFetched("oversized_image", f"over {self.max_bytes} bytes")
        return content

    async def _with_retries(self, url: str, etag: str | None, last_modified: str | None) -> Photo:
        tries = AsyncRetrying(
            stop=stop_after_attempt(self.http.attempts),
            retry=retry_if_exception_type(_TryAgain),
            wait=self._pause,
            reraise=True,
        )
        try:
            async with asyncio.timeout(self.http.deadline_s) as limit:
                return await tries(self._try, limit, url, etag, last_modified)
        except TimeoutError as e:
            raise NotFetched("unreachable_image", f"not there within {self.http.deadline_s:g} s", True) from e
        except _TryAgain as e:
            raise NotFetched("unreachable_image", str(e), True) from e

    def _pause(self, state: RetryCallState) -> float:
        error = state.outcome and state.outcome.exception()
        if isinstance(error, _TryAgain) and error.pause_s is not None:
            return min(error.pause_s, self.http.retry_after_s)
        return wait_random_exponential(multiplier=0.5, max=20)(state)

    async def _try(self, limit: asyncio.Timeout, url: str, etag: str | None, last_modified: str | None) -> Photo:
        """One try, after the pause that the host asked of everybody, which does not count."""
        if pause_s := self.hosts.pause_s(_host(url)):
            limit.reschedule((limit.when() or 0.0) + pause_s)
            await asyncio.sleep(pause_s)
        return await self._follow(url, etag, last_modified)

    async def _follow(self, url: str, etag: str | None, last_modified: str | None) -> Photo:
        """Through redirects; each address on the way is checked as it is connected to."""
        headers = {"If-None-Match": etag, "If-Modified-Since": last_modified}
        headers = {name: value for name, value in headers.items() if value}
        for _ in range(MAX_REDIRECTS + 1):
            host, began = _host(url), time.monotonic()
            try:
                async with self._client().get(url, headers=headers, allow_redirects=False) as reply:
                    pause_s = _seconds(reply.headers.get("Retry-After")) if _may_pass(reply.status) else None
                    self.hosts.saw(host, reply.status, time.monotonic() - began, pause_s)
                    if reply.status in (301, 302, 303, 307, 308):
                        url = absolute(reply.headers.get("Location", ""), url)
                        if urlsplit(url).scheme not in ("http", "https"):
                            raise NotFetched("refused_address", "it redirects to an address that is not http")
                        continue
                    return await self._body(reply, etag, last_modified)
            except (aiohttp.InvalidURL, ValueError) as e:
                raise NotFetched("unreachable_image", f"not an address: {e}") from e
            except aiohttp.ClientConnectorError as e:
                if isinstance(e.os_error, RefusedAddress):
                    raise NotFetched("refused_address", str(e.os_error)) from e
                self.hosts.saw(host, None, time.monotonic() - began)
                raise _TryAgain(str(e)) from e
            except (aiohttp.ClientError, TimeoutError, OSError) as e:
                self.hosts.saw(host, None, time.monotonic() - began)
                raise _TryAgain(f"{type(e).__name__}: {e}") from e
        raise NotFetched("unreachable_image", f"more than {MAX_REDIRECTS} redirects")

    async def _body(self, reply: aiohttp.ClientResponse, etag: str | None, last_modified: str | None) -> Photo:
        if reply.status == 304 and (etag or last_modified):
            return Photo(None, reply.headers.get("ETag", etag), reply.headers.get("Last-Modified", last_modified))
        if reply.status in (404, 410):
            raise NotFetched("missing_image", f"status {reply.status}")
        if _may_pass(reply.status):
            raise _TryAgain(f"status {reply.status}", _seconds(reply.headers.get("Retry-After")))
        if reply.status != 200:
            raise NotFetched("unreachable_image", f"status {reply.status}", True)
        if (reply.content_length or 0) > self.max_bytes:
            raise NotFetched("oversized_image", f"{reply.content_length} bytes")
        content = bytearray()
        async for chunk in reply.content.iter_chunked(CHUNK_BYTES):
            content += chunk
            if len(content) > self.max_bytes:
                raise NotFetched("oversized_image", f"over {self.max_bytes} bytes")
        return Photo(bytes(content), reply.headers.get("ETag"), reply.headers.get("Last-Modified"))

    def _client(self) -> aiohttp.ClientSession:
        if self.session is None:
            self.session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self.http.concurrency, socket_factory=self._socket),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.http.connect_s, sock_read=self.http.read_s),
                headers={"User-Agent": self.http.user_agent, "Accept": "image/*", "Accept-Encoding": "identity"},
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self.session

    def _socket(self, address: tuple) -> socket.socket:
        """The socket for one resolved address, checked here, so that the address checked is the one connected to."""
        family, kind, protocol, _, where = address
        if not self.allow_private and not is_public(where[0]):
            raise RefusedAddress("the address is not a public one")  # the same text for all addresses of a name
        made = socket.socket(family, kind, protocol)
        made.setblocking(False)
        return made


def open_fetch(source: Source, max_bytes: int) -> Fetch:
    """A Fetch for the photos that a feed names."""
    folder = str(Path(source.feed_uri).parent) if "://" not in source.feed_uri else ""
    allowed = source.allowed_file_root or folder
    allowed_root = Path(allowed) if allowed else None
    stores = addresses.fences(source.allowed_stores, source.feed_uri)
    options = source.fetch_credentials.client_options()
    return Fetch(source.feed_uri, allowed_root, source.http, max_bytes, source.allow_private_hosts, stores, options)


def file_etag(about: os.stat_result) -> str:
    """Size and times in ns; the time of change too, which copying tools cannot set back."""
    return f"{about.st_size}-{about.st_mtime_ns}-{about.st_ctime_ns}"


def _host(url: str) -> str:
    """Name and port, without the user that an address may name."""
    return urlsplit(url).netloc.lower().rpartition("@")[2]


def _may_pass(status: int) -> bool:
    """Whether the same request may be answered well a little later."""
    return status in (408, 425, 429) or status >= 500


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After: seconds, or a date."""
    if not retry_after:
        return None
    if retry_after.strip().isdigit():
        return float(retry_after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return None
