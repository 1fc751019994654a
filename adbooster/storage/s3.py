"""S3 as all of this package meets it: one patience, credentials that are read again, its errors in one sentence.

A request that fails for a moment (5xx, SlowDown, a connection that breaks) is repeated after random pauses of up to 20 s,
until it has failed for `$ADBOOSTER_STORAGE_PATIENCE_S` (default 300) or the storage has answered nothing for so long: an
outage is waited out once and not by one request after another. Expired credentials are read again (environment, files,
the machine's role), for a minute at most. delta-rs is given the same patience and the same credentials.
"""

import time
from asyncio import Lock
from typing import Any

import s3fs.core
from botocore.exceptions import ClientError, ConnectionError
from s3fs import S3FileSystem
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from adbooster.contracts.errors import StorageError
from adbooster.storage.outage import EXPIRED, EXPIRED_S, MAX_PAUSE_S, SKEWED, THROTTLED, patience_s, sentence


class PatientS3(S3FileSystem):
    """S3FileSystem that repeats what fails for a moment; botocore below it tries once.

    raises  StorageError where patience or credentials end; everything else as S3FileSystem does
    """

    def __init__(self, *args: Any, **kwargs: Any):
        tries = {"retries": {"mode": "standard", "max_attempts": 1}, "connect_timeout": 10, "read_timeout": 60}
        super().__init__(*args, **{"use_listings_cache": False, "config_kwargs": tries} | kwargs)
        self.patience_s: float | None = None
        """in place of the environment's"""
        self._failing_since: float | None = None
        self._renewing = Lock()

    async def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        trying = AsyncRetrying(
            retry=retry_if_exception(passes),
            wait=wait_random_exponential(multiplier=0.5, max=MAX_PAUSE_S),
            stop=self._enough,
            reraise=True,
        )
        try:
            return await trying(self._try, method, *akwarglist, **kwargs)
        except Exception as e:
            if passes(e) or _code(e) == SKEWED:
                raise StorageError(sentence(e, f"s3://{kwargs.get('Bucket', '')}", _code(e))) from e
            raise

    async def _try(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        await self.set_session()
        client = self._s3
        try:
            answer = await super()._call_s3(method, *akwarglist, **kwargs)
        except Exception as e:
            if method == "head_object" and _status(e) in (400, 403):
                e = await self._reason(e, kwargs["Bucket"], kwargs["Key"])
            if not passes(e):
                self._failing_since = None  # "no" is an answer
                raise e
            self._failing_since = self._failing_since or time.monotonic()
            if _code(e) in EXPIRED:
                async with self._renewing:
                    if self._s3 is client:
                        await self.set_session(refresh=True)
            raise e
        self._failing_since = None
        return answer

    async def _reason(self, error: Exception, bucket: str, key: str) -> Exception:
        """Why a HEAD was refused; its own answer has no body that says so."""
        try:
            (await super()._call_s3("get_object", Bucket=bucket, Key=key, Range="bytes=0-0"))["Body"].close()
        except Exception as e:
            return e
        return error

    def _enough(self, state: RetryCallState) -> bool:
        patience = patience_s() if self.patience_s is None else self.patience_s
        error = state.outcome.exception() if state.outcome else None
        if error and _code(error) in EXPIRED:
            return (state.seconds_since_start or 0) > min(EXPIRED_S, patience)
        silent_s = time.monotonic() - (self._failing_since or time.monotonic())
        return max(silent_s, state.seconds_since_start or 0) > patience


def passes(error: BaseException) -> bool:
    """Whether an error of S3 may be gone when the request is repeated."""
    if isinstance(error, StorageError):
        return False
    code = _code(error)
    if code:
        return code in (*EXPIRED, *THROTTLED, "429") or _status(error) in (500, 502, 503, 504)
    return isinstance(error, (ConnectionError, *s3fs.core.S3_RETRYABLE_ERRORS))


def _answer(error: BaseException) -> dict[str, Any]:
    told = error if isinstance(error, ClientError) else error.__cause__
    return dict(told.response) if isinstance(told, ClientError) else {}


def _code(error: BaseException) -> str:
    """S3's word for an error, or its status as text; empty: it was no answer of S3."""
    return str(_answer(error).get("Error", {}).get("Code", ""))


def _status(error: BaseException) -> int:
    return int(_answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
