"""Checks of a vision model: of its settings before a cluster is used, and of the endpoint before anything is painted."""

import asyncio
import json
import logging

import numpy as np

from adbooster.contracts.errors import ConfigError
from adbooster.pictures import images
from adbooster.prompts import endpoint
from adbooster.seeing import client
from adbooster.seeing.config import Seeing

log = logging.getLogger(__name__)
_COLOURS = {"red": (220, 20, 20), "green": (20, 150, 30), "blue": (20, 40, 220), "yellow": (250, 220, 20)}
_TEST = ("blue", "yellow")  # the left and the right half of the picture that a model has to see
_TEST_PX = 128


def check(seeing: Seeing) -> None:
    """raises ConfigError for settings that cannot work"""
    if not endpoint.is_address(seeing):
        raise ConfigError(
            f"seeing needs seeing.base_url (http or https) and seeing.model; base_url is {seeing.base_url!r}, "
            f"model {seeing.model!r}"
        )


def check_vision(seeing: Seeing) -> None:
    """Show the endpoint a made picture whose colours it has to name; one that is down for now is only logged.

    raises  ConfigError if it refuses the picture, the key or the model, or does not see what is on the picture
    """
    content = asyncio.run(_shown(seeing))
    if content is None:
        return
    try:
        answer = json.loads(endpoint.json_in(content))
        seen = tuple(str(answer[side]).strip().lower() for side in ("left", "right"))
    except (ValueError, KeyError, TypeError, RecursionError):
        seen = None
    if seen != _TEST:
        said = "gave no JSON" if seen is None else f"saw {' and '.join(word[:20] for word in seen)}"
        raise ConfigError(
            f"the model {seeing.model} at {seeing.base_url} {said} on a picture that is {' and '.join(_TEST)}; seeing needs "
            "a model with vision that answers in JSON"
        )


async def _shown(seeing: Seeing) -> str | None:
    """What the endpoint answers on the made picture; None where it cannot be asked for now."""
    import openai

    half = [np.full((_TEST_PX, _TEST_PX // 2, 3), _COLOURS[name], np.uint8) for name in _TEST]
    jpeg = images.encode(np.concatenate(half, axis=1), "jpeg", client.JPEG_QUALITY)[0]
    wanted = {side: {"type": "string", "enum": list(_COLOURS)} for side in ("left", "right")}
    system = (
        "Answer with one JSON object that has the colour of the picture's left half as left and that of its right half as "
        f"right; colours are {', '.join(_COLOURS)}."
    )
    body = client.request(seeing, system, "Which colours does the picture have?", jpeg, wanted)
    where = f"the endpoint {seeing.base_url}"
    try:
        async with endpoint.client(seeing) as asked:
            reply = await asyncio.wait_for(asked.chat.completions.create(**body), endpoint.whole_s(seeing))
            return reply.choices[0].message.content or ""
    except (openai.AuthenticationError, openai.PermissionDeniedError) as e:
        raise ConfigError(f"{where} refuses the key in {seeing.api_key_env} ({endpoint.reason(e)})") from None
    except openai.NotFoundError as e:
        raise ConfigError(
            f"{where} has no model {seeing.model!r}, or is no such endpoint ({endpoint.reason(e)})"
        ) from None
    except openai.APIStatusError as e:
        if e.status_code < 500 and e.status_code not in (408, 409, 429):
            raise ConfigError(
                f"{where} refuses a picture for {seeing.model} ({endpoint.reason(e)}): seeing needs a model with vision, "
                "and response_format, temperature and max_tokens as it takes them"
            ) from None
        log.warning("%s does not answer for now (%s)", where, endpoint.reason(e))
    except (openai.OpenAIError, TimeoutError) as e:
        log.warning("%s does not answer for now (%s)", where, endpoint.reason(e))
    except (ValueError, IndexError, AttributeError, TypeError):
        return ""
    return None
