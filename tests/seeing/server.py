"""A local server that speaks the chat-completions protocol with pictures, well and badly."""

import base64
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from adbooster.pictures import images
from adbooster.seeing.config import WORDS, Seeing

COLOURS = {"blue": (20, 40, 220), "yellow": (250, 220, 20)}


def seen(*words: str, why: str = "") -> dict:
    """An answer with yes for these words."""
    return {word: word in words for word in WORDS} | {"why": why}


class VisionServer(ThreadingHTTPServer):
    """Answers one after another with `answers`, then with what `default` says of (picture uint8 [H,W,3], the user's JSON).

    An answer is a dict or text (the content), an int (an HTTP status), bytes (the whole body), or a float (seconds of silence).
    It looks at the picture whose colours are asked for, unless `blind`; with `only_text` pictures are refused.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, default: Callable[[np.ndarray, dict], Any] = lambda *_: seen()):
        self.answers, self.default, self.asked = [], default, []
        self.blind = self.only_text = False
        self.colours_asked = self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def seeing(self, **changes) -> Seeing:
        return Seeing(**{"base_url": self.url, "model": "m", "timeout_s": 2, "max_retries": 1} | changes)

    def answer(self, body: dict) -> Any:
        text, picture = _parts(body)
        if self.only_text:
            return 400
        with self.lock:
            if not text.startswith("{"):
                self.colours_asked += 1
                return self.answers.pop(0) if self.answers else self._colours(picture)
            self.asked.append({"body": body, "user": json.loads(text), "picture": picture})
            if self.answers:
                return self.answers.pop(0)
        return self.default(picture, json.loads(text))

    def _colours(self, picture: np.ndarray) -> dict:
        half = picture.shape[1] // 2
        sides = {"left": picture[:, :half], "right": picture[:, half:]}
        if self.blind:
            return dict.fromkeys(sides, "red")
        return {side: _nearest(some.reshape(-1, 3).mean(axis=0)) for side, some in sides.items()}


def _parts(body: dict) -> tuple[str, np.ndarray]:
    text, image = body["messages"][1]["content"]
    kind, _, content = image["image_url"]["url"].partition(",")
    assert kind == "data:image/jpeg;base64"
    return text["text"], images.decode(base64.b64decode(content))


def _nearest(colour: np.ndarray) -> str:
    return min(COLOURS, key=lambda name: np.abs(colour - COLOURS[name]).sum())


class _Handler(BaseHTTPRequestHandler):
    server: VisionServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        try:
            self._reply(server.answer(body))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with server.lock:
                server.under_way -= 1

    def _reply(self, answer: Any) -> None:
        if isinstance(answer, float):
            time.sleep(answer)
            answer = seen()
        if isinstance(answer, int):
            self.send_response(answer)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = answer if isinstance(answer, str | bytes) else json.dumps(answer)
        message = {"role": "assistant", "content": content if isinstance(content, str) else None}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        whole = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        data = content if isinstance(content, bytes) else json.dumps(whole).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass
