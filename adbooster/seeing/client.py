"""Pictures to a vision model and its answers back: some at a time, each with a time limit, and no more once it is down."""

import asyncio
import base64
import json
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from adbooster.pictures import images
from adbooster.prompts import endpoint
from adbooster.seeing.config import Seeing
from adbooster.seeing.questions import Answer, Picture, instructions, message, parse, properties

if TYPE_CHECKING:
    import openai

JPEG_QUALITY = 90
DOWN = "the endpoint is down"
TOO_LATE = "the deadline came first"


class Client:
    """Asks the endpoint of `seeing`; it counts what fails in a row over all that it is asked.

    stop_at  time (as of time.time) after which no call begins, and at which those under way end; None: never
    """

    def __init__(self, seeing: Seeing, stop_at: float | None = None):
        self.seeing, self.stop_at, self.failures = seeing, stop_at, 0

    def ask(
        self,
        pictures: Mapping[str, Picture],
        read: Callable[[str], bytes],
        answered: Callable[[str, Answer], None],
        failed: Callable[[str, str], None],
    ) -> int:
        """Ask about each picture once; returns how many were sent.

        read      the bytes of a uri
        answered  gets each name with its answer as it comes, `failed` each name with the reason why there is none
        """
        return asyncio.run(self._ask(pictures, read, answered, failed))

    async def _ask(
        self,
        pictures: Mapping[str, Picture],
        read: Callable[[str], bytes],
        answered: Callable[[str, Answer], None],
        failed: Callable[[str, str], None],
    ) -> int:
        gate, sent = asyncio.Semaphore(self.seeing.concurrency), 0

        async def look(client: "openai.AsyncOpenAI", name: str, picture: Picture) -> None:
            nonlocal sent
            async with gate:
                if why := self._stopped():
                    return failed(name, why)
                try:
                    content = await asyncio.to_thread(lambda: encoded(read(picture.uri), self.seeing.max_px))
                except FileNotFoundError:
                    return failed(name, "its file is gone")
                except images.UnreadableImage:
                    return failed(name, "its file cannot be decoded")
                sent += 1
                asked = request(
                    self.seeing, instructions(self.seeing), message(picture), content, properties(self.seeing)
                )
                answer = await self._answer(client.chat.completions.create(**asked))
            return answered(name, answer) if isinstance(answer, Answer) else failed(name, answer)

        async with endpoint.client(self.seeing) as client:
            await asyncio.gather(*(look(client, name, picture) for name, picture in pictures.items()))
        return sent

    async def _answer(self, call: Coroutine[Any, Any, Any]) -> Answer | str:
        """The answer, or the reason why there is none."""
        import openai

        try:
            reply = await asyncio.wait_for(call, self._most_s())
            answer = parse(reply.choices[0].message.content, self.seeing)
        except ValueError as e:
            why = "no usable answer" if isinstance(e, json.JSONDecodeError) else str(e)
        except (openai.OpenAIError, TimeoutError, IndexError, AttributeError, TypeError) as e:
            if self._late():
                return TOO_LATE
            why = endpoint.reason(e)
        else:
            self.failures = 0
            return answer
        self.failures += 1
        return why

    def _stopped(self) -> str | None:
        if self._late():
            return TOO_LATE
        return DOWN if self.failures >= self.seeing.max_failures else None

    def _late(self) -> bool:
        return self.stop_at is not None and time.time() >= self.stop_at

    def _most_s(self) -> float:
        whole = endpoint.whole_s(self.seeing)
        return whole if self.stop_at is None else max(0.0, min(whole, self.stop_at - time.time()))


def encoded(content: bytes, max_px: int) -> bytes:
    """A stored picture as it is sent: JPEG, its longest side at most `max_px`.

    raises  UnreadableImage
    """
    picture = images.decode(content)
    high, wide = picture.shape[:2]
    scale = min(1.0, max_px / max(high, wide))
    small = images.resize(picture, max(1, round(wide * scale)), max(1, round(high * scale)))
    return images.encode(small, "jpeg", JPEG_QUALITY)[0]


def request(seeing: Seeing, system: str, user: str, jpeg: bytes, wanted: dict[str, Any]) -> dict[str, Any]:
    """The body of a call that shows a picture and asks for one JSON object with the properties `wanted`."""
    uri = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    parts = [{"type": "text", "text": user}, {"type": "image_url", "image_url": {"url": uri}}]
    body = {
        "model": seeing.model,
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": parts}],
        "temperature": seeing.temperature,
        "max_tokens": seeing.max_tokens,
    }
    kept = {name: value for name, value in body.items() if value is not None}
    return kept | endpoint.response_format(seeing, "seen", wanted)
