"""What all calls to an OpenAI-compatible endpoint share: the client, how JSON is asked for, and words for its errors."""

import os
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from adbooster.prompts.config import Endpoint

if TYPE_CHECKING:
    import openai


def client(endpoint: Endpoint) -> "openai.AsyncOpenAI":
    """A client that tries again by itself, with exponential backoff; the key is that of the environment as it is now."""
    import openai

    key = os.environ.get(endpoint.api_key_env) or "none"
    return openai.AsyncOpenAI(
        base_url=endpoint.base_url, api_key=key, timeout=endpoint.timeout_s, max_retries=endpoint.max_retries
    )


def whole_s(endpoint: Endpoint) -> float:
    """Seconds for a call with all its further tries: a server that sends byte after byte restarts the client's own time-out."""
    return (endpoint.timeout_s + 10) * (endpoint.max_retries + 1)


def is_address(endpoint: Endpoint) -> bool:
    """Whether it can be called at all: an http or https address, and a model."""
    return endpoint.base_url.startswith(("http://", "https://")) and bool(endpoint.model)


def response_format(endpoint: Endpoint, name: str, properties: dict[str, Any]) -> dict[str, Any]:
    """The part of a request's body that asks for one JSON object with these properties, all required; {} for text."""
    if endpoint.response_format == "json_object":
        return {"response_format": {"type": "json_object"}}
    if endpoint.response_format == "json_schema":
        strict = {"name": name, "strict": True, "schema": object_schema(properties)}
        return {"response_format": {"type": "json_schema", "json_schema": strict}}
    return {}


def object_schema(properties: dict[str, Any]) -> dict[str, Any]:
    """JSON schema of an object with these properties, all required, and no others."""
    required = list(properties)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def json_in(content: str | None) -> str:
    """The JSON object in an answer, which may have fences or words round it; empty where there is none."""
    match = re.search(r"\{.*\}", content or "", re.S)
    return match.group() if match else ""


def reason(e: Exception) -> str:
    """Kind and status alone: an endpoint's own message may hold a part of the key or of the data."""
    status = getattr(e, "status_code", None)
    return f"{type(e).__name__}{f' {status}' if status else ''}"


def reasons(given: Iterable[str]) -> dict[str, int]:
    """How often each reason was given, without what it quotes."""
    counts: dict[str, int] = {}
    for each in given:
        short = each.split(":")[0]
        counts[short] = counts.get(short, 0) + 1
    return dict(sorted(counts.items()))
