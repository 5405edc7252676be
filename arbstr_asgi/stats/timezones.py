"""Hours and days, in UTC by number and in a time zone as they are called.

Numbers count from the first hour or day of the year 1, so that none is negative."""

from datetime import UTC, date, datetime, timedelta, tzinfo
from math import gcd
from zoneinfo import ZoneInfo

SECONDS = {"hour": 3600, "day": 86400}
_BEGINNING = datetime(1, 1, 1, tzinfo=UTC)
_END = datetime.max.replace(tzinfo=UTC)
_A_DAY = timedelta(days=1)
_A_MILLISECOND = timedelta(milliseconds=1)


def zone_of(name: str) -> tzinfo:
    """The zone of an IANA name. Raises ValueError where there is none."""
    if name == "UTC":
        return UTC  # also where the system has no zones
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, LookupError):  # which, depends on what the name looks like as a file's
        raise ValueError("zone: not the name of a time zone") from None


def number_of(moment: datetime, seconds: int) -> int:
    """The number of the period of so many seconds that a moment is in."""
    return (moment - _BEGINNING) // timedelta(seconds=seconds)


def start_of(number: int, seconds: int) -> datetime:
    """When that period began; the end of time where there is none."""
    try:
        return _BEGINNING + timedelta(seconds=seconds * number)
    except OverflowError:
        return _END


def bound(moment: datetime) -> datetime:
    """A bound in UTC that parts rows, which have milliseconds, as `moment` does."""
    try:
        utc = moment.astimezone(UTC)
    except OverflowError:
        return _BEGINNING if moment.year == 1 else _END
    below = utc.replace(microsecond=utc.microsecond // 1000 * 1000, fold=0)
    if below == utc:
        return below
    return _END if below > _END - _A_MILLISECOND else below + _A_MILLISECOND


def step(zone: tzinfo, since: datetime, until: datetime, unit: str) -> int:
    """The longest period, in seconds, at whose starts every hour or day of the zone between the two begins."""
    found = SECONDS[unit]
    for moment in _looks(since, until):
        found = gcd(found, int(_offset(moment, zone).total_seconds()))
    return found or SECONDS[unit]


def called(moment: datetime, zone: tzinfo) -> date:
    """The day of the zone that a moment is in."""
    return local(moment, zone).date()


def local(moment: datetime, zone: tzinfo) -> datetime:
    """A moment in the zone, as far as there it is a moment."""
    try:
        return moment.astimezone(zone)
    except OverflowError:
        return moment


def _offset(moment: datetime, zone: tzinfo) -> timedelta:
    return local(moment, zone).utcoffset() or timedelta()


def _looks(since: datetime, until: datetime) -> list[datetime]:
    """A moment of each day, and of each week where that would be too many."""
    days = (until - since) // _A_DAY
    pace = _A_DAY * (1 if days <= 1000 else 7 if days <= 50_000 else 365)
    count = max((until - since) // pace, 0)
    return [since, *(since + pace * i for i in range(1, count + 1)), until]
