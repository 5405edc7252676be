"""Moments as clients write them: RFC 3339, and ranges that end now."""

import re
from datetime import UTC, datetime, timedelta

RANGES = {
    "last_1h": timedelta(hours=1),
    "last_24h": timedelta(days=1),
    "last_7d": timedelta(days=7),
    "last_30d": timedelta(days=30),
}
DEFAULT_RANGE = "last_7d"

# A "+" that was not escaped reaches us as a space.
_FORM = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:[Zz]|([+ -])(\d\d:\d\d))", re.ASCII)


def parse_timestamp(text: str) -> datetime:
    """The moment, in UTC, that RFC 3339 text with `Z` or an offset names; microseconds at most. Raises ValueError."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError("not a moment in RFC 3339")
    day, time, fraction, sign, offset = found.groups()
    zone = f"{'-' if sign == '-' else '+'}{offset or '00:00'}"
    try:
        return datetime.fromisoformat(f"{day}T{time}.{(fraction or '0')[:6]:0<6}{zone}").astimezone(UTC)
    except OverflowError:
        raise ValueError("out of range") from None


def end_of_second(now: datetime) -> datetime:
    """The first moment after the second that `now` is in, so that all of its rows are before it."""
    return now.replace(microsecond=0) + timedelta(seconds=1)


def format_timestamp(moment: datetime) -> str:
    """As RFC 3339 in its own zone, to the millisecond or as exact as it is."""
    return moment.isoformat(timespec="microseconds" if moment.microsecond % 1000 else "milliseconds")
