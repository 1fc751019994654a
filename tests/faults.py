"""An S3 endpoint that fails: a proxy before a real one that answers some requests with an error, late, or not at all."""

import email.utils
import http.client
import random
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}
SHARES = ("refused", "lost", "reset", "slow", "slow_down", "cut")
SKEW_S = 15 * 60  # S3 refuses requests that are signed further off its own clock
ANSWERS = {
    "refused": (500, "InternalError", "We encountered an internal error."),
    "lost": (500, "InternalError", "We encountered an internal error."),
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "denied": (403, "AccessDenied", "Access Denied"),
    "unchecked": (
        400,
        "InvalidRequest",
        "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests",
    ),
    "skewed": (
        403,
        "RequestTimeTooSkewed",
        "The difference between the request time and the server's time is too large.",
    ),
}


@dataclass
class Faults:
    """Shares of requests, 0 to 1, drawn from one seeded generator; they may be set while the proxy runs."""

    refused: float = 0.0
    """answered with 500 and not done"""
    lost: float = 0.0
    """done, and answered with 500 all the same"""
    reset: float = 0.0
    """done, and the connection is reset before the answer"""
    slow: float = 0.0
    """done after `slow_s`"""
    slow_s: float = 0.5
    slow_down: float = 0.0
    """answered with 503 SlowDown and not done"""
    cut: float = 0.0
    """not done, and the connection is reset: a network that is gone"""
    for_s: float | None = None
    """seconds after `use` in which shares of requests fail, then none does; null: without end"""
    expired: frozenset[str] = frozenset()
    """access keys whose requests get ExpiredToken"""
    locked: bool = False
    """a bucket with object lock and a policy: no delete is allowed, and a put needs a checksum"""
    clock_s: float = 0.0
    """the storage's clock is so much ahead of ours, in all that it stamps"""
    checks_clock: bool = False
    """requests signed by a clock that is off by more than 15 minutes are refused, as S3 does"""
    seed: int = 0
    where: str = ""
    """a regular expression of `METHOD path`: only these requests fail"""
    most: int | None = None
    """so many faults, then none"""
    counts: dict[str, int] = field(default_factory=dict)


class FaultyS3:
    """Forwards everything, ranges and conditional puts too, but for the faults.

    with FaultyS3("http://127.0.0.1:5000", Faults(refused=0.05)) as s3: ... s3.endpoint
    """

    def __init__(self, upstream: str, faults: Faults):
        self.upstream = urlsplit(upstream)
        self.done: list[tuple[float, str, str, int]] = []
        """(time.time(), method, path, status) of every request whose true answer was given"""
        self._lock = threading.Lock()
        self.use(faults)
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self):
                proxy.handle(self)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_one

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_):  # a client that went away
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def use(self, faults: Faults) -> None:
        """From now on these, drawn from their seed anew."""
        with self._lock:
            self.faults, self._random, self._since = faults, random.Random(faults.seed), time.monotonic()

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def _fault(self, request: BaseHTTPRequestHandler) -> str:
        """What is wrong with this request: the state of the bucket and of the credentials first, then chance."""
        if standing := self._standing(request):
            with self._lock:
                self.faults.counts[standing] = self.faults.counts.get(standing, 0) + 1
            return standing
        if not re.search(self.faults.where, f"{request.command} {request.path}"):
            return ""
        with self._lock:
            if self.faults.for_s is not None and time.monotonic() - self._since > self.faults.for_s:
                return ""
            if self.faults.most is not None and sum(self.faults.counts.values()) >= self.faults.most:
                return ""
            at = self._random.random()
            for name in SHARES:
                at -= getattr(self.faults, name)
                if at < 0:
                    self.faults.counts[name] = self.faults.counts.get(name, 0) + 1
                    return name
        return ""

    def _standing(self, request: BaseHTTPRequestHandler) -> str:
        headers, signed_by = request.headers, request.headers.get("Authorization", "")
        if any(f"Credential={key}/" in signed_by for key in self.faults.expired):
            return "expired"
        if self.faults.locked and (request.command == "DELETE" or "?delete" in request.path):
            return "denied"
        checks = ("content-md5", "x-amz-checksum-", "x-amz-sdk-checksum-algorithm", "x-amz-trailer")
        checked = any(name.lower().startswith(checks) for name in headers)
        if self.faults.locked and request.command == "PUT" and "partNumber=" not in request.path and not checked:
            return "unchecked"
        if self.faults.checks_clock and (at := headers.get("X-Amz-Date")):
            signed = datetime.strptime(at, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
            return "skewed" if abs(signed - time.time() - self.faults.clock_s) > SKEW_S else ""
        return ""

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body, fault = _body(request), self._fault(request)
        if fault == "slow":
            time.sleep(self.faults.slow_s)
        if fault == "cut":
            return _reset(request)
        if fault in ANSWERS and fault != "lost":
            return _error(request, fault)
        status, headers, content = self._forward(request, body)
        if fault == "reset":
            return _reset(request)
        if fault == "lost":
            return _error(request, fault)
        headers, content = self._stamped(headers, content)
        _answer(request, status, headers, content)
        self.done.append((time.time(), request.command, request.path, status))
        return None

    def _stamped(self, headers: dict[str, str], content: bytes) -> tuple[dict[str, str], bytes]:
        """The answer with the times of the storage's clock."""
        ahead = timedelta(seconds=self.faults.clock_s)
        if not ahead:
            return headers, content
        for name in headers:
            if name.lower() in ("last-modified", "date"):
                at = email.utils.parsedate_to_datetime(headers[name]) + ahead
                headers[name] = email.utils.format_datetime(at.astimezone(UTC), usegmt=True)

        def moved(found: re.Match) -> bytes:
            at = datetime.fromisoformat(found[1].decode().replace("Z", "+00:00")) + ahead
            return f"<LastModified>{at:%Y-%m-%dT%H:%M:%S}.000Z<".encode()

        if content.startswith(b"<?xml"):
            content = re.sub(rb"<LastModified>([^<]*)<", moved, content)
        return headers, content

    def _forward(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        upstream = http.client.HTTPConnection(self.upstream.hostname, self.upstream.port, timeout=60)
        try:
            headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP | {"host"}}
            if request.command in ("PUT", "POST"):
                headers["Content-Length"] = str(len(body))
            upstream.request(request.command, request.path, body=body or None, headers=headers)
            answer = upstream.getresponse()
            content = answer.read()
            kept = {k: v for k, v in answer.getheaders() if k.lower() not in HOP}
            if request.command == "HEAD":
                kept["Content-Length"] = answer.getheader("Content-Length", "0")
            return answer.status, kept, content
        finally:
            upstream.close()


def _body(request: BaseHTTPRequestHandler) -> bytes:
    if request.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length", 0)))
    content = b""
    while size := int(request.rfile.readline().split(b";")[0], 16):
        content += request.rfile.read(size)
        request.rfile.readline()
    request.rfile.readline()
    return content


def _error(request: BaseHTTPRequestHandler, fault: str) -> None:
    status, code, message = ANSWERS[fault]
    content = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    _answer(request, status, {"Content-Type": "application/xml"}, content)


def _reset(request: BaseHTTPRequestHandler) -> None:
    """No lingering: the client sees a reset, not an end."""
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.close_connection = True
    request.connection.close()


def _answer(request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], content: bytes) -> None:
    request.send_response_only(status)
    for name, value in headers.items():
        request.send_header(name, value)
    if "Content-Length" not in headers:
        request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content)
