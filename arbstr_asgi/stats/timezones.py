"""Hours and days by number in UTC, and by local time in a time zone.

Numbers count from the first hour or day of the year 1, so that none is negative.
"""

from datetime import UTC, date, datetime, timedelta, tzinfo
from math import gcd
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_ANY_ZONE = "Europe/London"
SECONDS = {"hour": 3600, "day": 86400}
_YEAR_1 = datetime(1, 1, 1, tzinfo=UTC)
_MAX_DATETIME = datetime.max.replace(tzinfo=UTC)
_A_DAY = timedelta(days=1)
_A_MILLISECOND = timedelta(milliseconds=1)


class NoTimeZones(ValueError):
    """Neither the system nor the package tzdata has any time zone."""


def zone_of(name: str) -> tzinfo:
    """The time zone of an IANA name. Raises ValueError for an unknown one, and where there is no database of zones."""
    if name == "UTC":
        return UTC  # works without a time zone database
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, LookupError):  # depends on how the name looks as a path
        if not _has_database():
            raise NoTimeZones("zone: there is no time zone database here: pip install tzdata") from None
        raise ValueError("zone: not the name of a time zone") from None


def _has_database() -> bool:
    try:
        ZoneInfo(_ANY_ZONE)
    except ZoneInfoNotFoundError:
        return False
    return True


def period_number(instant: datetime, seconds: int) -> int:
    """The number of the period of `seconds` that an instant is in."""
    return (instant - _YEAR_1) // timedelta(seconds=seconds)


def period_start(number: int, seconds: int) -> datetime:
    """The start of a period; the maximum datetime where it is out of range."""
    try:
        return _YEAR_1 + timedelta(seconds=seconds * number)
    except OverflowError:
        return _MAX_DATETIME


def truncate_bound(instant: datetime) -> datetime:
    """The UTC bound in milliseconds that selects the same rows as `instant` does: rounded up."""
    try:
        utc = instant.astimezone(UTC)
    except OverflowError:
        return _YEAR_1 if instant.year == 1 else _MAX_DATETIME
    truncated = utc.replace(microsecond=utc.microsecond // 1000 * 1000, fold=0)
    if truncated == utc:
        return truncated
    return _MAX_DATETIME if truncated > _MAX_DATETIME - _A_MILLISECOND else truncated + _A_MILLISECOND


def common_period(zone: tzinfo, since: datetime, until: datetime, unit: str) -> int:
    """The longest period, in seconds, at whose starts every hour or day of the zone in the range begins."""
    seconds = SECONDS[unit]
    for instant in _sample_instants(since, until):
        seconds = gcd(seconds, int(_offset(instant, zone).total_seconds()))
    return seconds or SECONDS[unit]


def local_date(instant: datetime, zone: tzinfo) -> date:
    """The date of an instant in the zone."""
    return local(instant, zone).date()


def local(instant: datetime, zone: tzinfo) -> datetime:
    """An instant in the zone; unchanged where that is out of range."""
    try:
        return instant.astimezone(zone)
    except OverflowError:
        return instant


def _offset(instant: datetime, zone: tzinfo) -> timedelta:
    return local(instant, zone).utcoffset() or timedelta()


def _sample_instants(since: datetime, until: datetime) -> list[datetime]:
    """One instant per day of the range; per week or year for very long ranges."""
    days = (until - since) // _A_DAY
    interval = _A_DAY * (1 if days <= 1000 else 7 if days <= 50_000 else 365)
    count = max((until - since) // interval, 0)
    return [since, *(since + interval * i for i in range(1, count + 1)), until]
