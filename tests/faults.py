"""An S3 endpoint that fails: a proxy before a real one that answers some requests with an error, late, or not at all."""

import http.client
import random
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}
ERROR = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"


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
            self.faults, self._random = faults, random.Random(faults.seed)

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def _fault(self, method: str, path: str) -> str:
        if not re.search(self.faults.where, f"{method} {path}"):
            return ""
        with self._lock:
            if self.faults.most is not None and sum(self.faults.counts.values()) >= self.faults.most:
                return ""
            at = self._random.random()
            for name in ("refused", "lost", "reset", "slow"):
                at -= getattr(self.faults, name)
                if at < 0:
                    self.faults.counts[name] = self.faults.counts.get(name, 0) + 1
                    return name
        return ""

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body, fault = _body(request), self._fault(request.command, request.path)
        if fault == "slow":
            time.sleep(self.faults.slow_s)
        if fault == "refused":
            return _answer(request, 500, {"Content-Type": "application/xml"}, ERROR)
        status, headers, content = self._forward(request, body)
        if fault == "reset":
            # no lingering: the client sees a reset, not an end
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request.close_connection = True
            request.connection.close()
            return None
        if fault == "lost":
            return _answer(request, 500, {"Content-Type": "application/xml"}, ERROR)
        _answer(request, status, headers, content)
        self.done.append((time.time(), request.command, request.path, status))
        return None

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


def _answer(request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], content: bytes) -> None:
    request.send_response_only(status)
    for name, value in headers.items():
        request.send_header(name, value)
    if "Content-Length" not in headers:
        request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content)
