"""Deadlines as people write them."""

import re
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from adbooster.contracts.errors import ConfigError

_TIMES = {"s": "seconds", "m": "minutes", "h": "hours"}


def parse_deadline(text: str, now: datetime) -> datetime | None:
    """When a deadline ends: `5h`, `90m` from now; `06:30` next, in `now`'s zone or with a zone's name; an ISO time.

    now      with its zone
    returns  None for an empty text
    raises   ConfigError for a text that is none of these
    """
    text = text.strip()
    if not text:
        return None
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text):
        return now + timedelta(**{_TIMES[match[2]]: float(match[1])})
    try:
        if match := re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)(?: +(\S+))?", text):
            local_now = now.astimezone(ZoneInfo(match[3])) if match[3] else now
            then = local_now.replace(hour=int(match[1]), minute=int(match[2]), second=0, microsecond=0)
            return then if then > local_now else then + timedelta(days=1)
        then = datetime.fromisoformat(text)
        return then if then.tzinfo else then.replace(tzinfo=now.tzinfo)
    except (ValueError, ZoneInfoNotFoundError) as e:
        raise ConfigError(
            f"the deadline {text!r} cannot be read; write 5h or 90m (from the start), 06:30 (this machine's time), "
            "06:30 Europe/Berlin or 2026-11-24T06:30:00+01:00"
        ) from e


def day_of(text: str, now: datetime) -> date:
    """The day that a night's creatives are for: of its deadline, in the deadline's zone, or of `now` without one."""
    return (parse_deadline(text, now) or now).date()
