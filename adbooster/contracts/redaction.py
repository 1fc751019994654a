"""Keeps secrets out of all output: logs, errors, reports, the run folder."""

import logging
import os
import re
from typing import Any

HIDDEN = "***"
_SECRET_NAME = re.compile(r"(KEY|SECRET|TOKEN|PASSWORD|PASSWD|SALT|CREDENTIALS?)$", re.IGNORECASE)
_LEAST = 8  # characters; hiding shorter values would hide ordinary words as well
_USERINFO = re.compile(r"(?<=://)[^/\s@'\"?#]+@")
_QUERY = re.compile(
    r"([?&](?:[\w-]*(?:signature|credential|token|secret|password|passwd|api[_-]?key)|key|sig|auth|code)=)[^&\s#'\"<>]+",
    re.IGNORECASE,
)


def redact(value: Any) -> Any:
    """The value with `***` for each secret in its texts, at any depth of dicts and lists.

    A secret is: user and password in a URI; signatures, tokens and keys in its query; and the value of any environment
    variable whose name ends in KEY, SECRET, TOKEN, PASSWORD, SALT or CREDENTIALS, where it has 8 characters or more.
    """
    if isinstance(value, dict):
        return {redact(k): redact(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [redact(v) for v in value]
    if not isinstance(value, str):
        return value
    for secret in _of_the_environment():
        value = value.replace(secret, HIDDEN)
    return _QUERY.sub(rf"\1{HIDDEN}", _USERINFO.sub(f"{HIDDEN}@", value))


class Formatter(logging.Formatter):
    """Log lines, and the tracebacks in them, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _of_the_environment() -> list[str]:
    """Longest first, so that none leaves a part of another."""
    secrets = {v for k, v in os.environ.items() if len(v) >= _LEAST and _SECRET_NAME.search(k)}
    return sorted(secrets, key=len, reverse=True)
