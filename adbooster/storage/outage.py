"""How long a storage that fails is asked again, and what is said when that, a disk or the credentials come to an end."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from adbooster.contracts.errors import ConfigError, StorageError

PATIENCE_S = 300.0
EXPIRED_S = 60.0  # whoever renews credentials in a file may be late
MAX_PAUSE_S = 20.0  # below a third of the night lock's time, within which a live night renews it
EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken")
THROTTLED = ("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests")
SKEWED = "RequestTimeTooSkewed"
_RESUME = "nothing half-done is live and finished work is kept"


def patience_s() -> float:
    """For how many seconds a storage that fails is asked again; raises ConfigError for what is no such number."""
    told = os.environ.get("ADBOOSTER_STORAGE_PATIENCE_S", str(PATIENCE_S))
    if not re.fullmatch(r"\d+(\.\d+)?", told):
        raise ConfigError(f"ADBOOSTER_STORAGE_PATIENCE_S is {told!r}; it should be seconds, such as {PATIENCE_S:g}")
    return float(told)


def sentence(error: BaseException, where: str, code: str = "") -> str:
    """An error of a storage as one sentence for the operator.

    where  what was asked for; code  S3's word for the error, where it is not in the text
    """
    text = code or _line(error)
    if any(word in text for word in EXPIRED):
        return (
            f"the credentials for {where} have expired ({_found(EXPIRED, text)}) and the environment, the files and the "
            f"machine's role gave no newer ones; renew them and run again: {_RESUME}"
        )
    if SKEWED in text:
        return (
            f"the clock of this machine and that of {where} are more than 15 minutes apart ({SKEWED}); "
            f"set this clock (NTP) and run again: {_RESUME}"
        )
    why = f"{code or type(error).__name__}: {_line(error)}"
    return (
        f"{where} did not answer within ADBOOSTER_STORAGE_PATIENCE_S, {patience_s():g} s of tries ({why[:300]}); "
        f"run again when it does: {_RESUME}"
    )


@contextmanager
def room(where: str) -> Iterator[None]:
    """A disk or a quota that is full is a StorageError that names `where`."""
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(_full(where, os.strerror(e.errno))) from e
        raise


@contextmanager
def in_words(where: str) -> Iterator[None]:
    """Errors of delta-rs, which has only texts, as StorageError where they are the storage's."""
    try:
        yield
    except StorageError:
        raise
    except Exception as e:
        text = _line(e)
        if full := re.search(r"No space left on device|Disk quota exceeded", text):
            raise StorageError(_full(where, full[0])) from e
        if any(word in text for word in (*EXPIRED, SKEWED, *THROTTLED)) or re.search(r"after \d+ retries", text):
            raise StorageError(sentence(e, where)) from e
        raise


def delta_options() -> dict[str, str]:
    """delta-rs settings: conditional puts make commits safe, checksums are what a bucket with object lock asks for."""
    from botocore.session import get_session  # half a second that no local root pays

    session = get_session()
    found = session.get_credentials()
    options = {
        "conditional_put": "etag",
        "aws_checksum_algorithm": "sha256",
        "AWS_ALLOW_HTTP": str(os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")).lower(),
        "max_retries": "1000",  # its time ends first
        "retry_timeout": f"{max(1, round(patience_s()))}s",
        "backoff_config.max_backoff": f"{MAX_PAUSE_S:g}s",
    }
    if region := os.environ.get("AWS_REGION") or session.get_config_variable("region"):
        options["AWS_REGION"] = region
    if found:
        keys = found.get_frozen_credentials()
        options |= {"AWS_ACCESS_KEY_ID": keys.access_key or "", "AWS_SECRET_ACCESS_KEY": keys.secret_key or ""}
        options |= {"AWS_SESSION_TOKEN": keys.token} if keys.token else {}
    return options


def _line(error: BaseException) -> str:
    """Its text on one line; delta-rs draws a tree."""
    return " ".join(re.sub(r"\x1b\[\d+m|↳", "", str(error)).split())


def _full(where: str, why: str) -> str:
    return f"the disk of {where} is full ({why}); make room and run again: {_RESUME}"


def _found(words: tuple[str, ...], text: str) -> str:
    return next(word for word in words if word in text)
