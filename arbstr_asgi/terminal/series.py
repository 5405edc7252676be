"""How figures went over a time: the steps of a sparkline, and which group's figures belong to which."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

from arbstr_asgi.stats.zones import zone_of

MOST_STEPS = 60
_HOURLY = timedelta(days=3)  # longer times are shown by days

Keys = tuple[Any, ...]


class TimeBuckets(NamedTuple):
    """The hours or days of a time, so many of them put together in one step."""

    unit: str
    starts: Sequence[str]
    together: int

    @classmethod
    def create(cls, since: datetime, until: datetime, zone: str) -> "TimeBuckets":
        """Those that fit on a line."""
        unit = unit_of(since, until)
        starts = list(_hours(since, until, zone) if unit == "hour" else _days(since, until, zone))
        return cls(unit, starts, max(-(-len(starts) // MOST_STEPS), 1))

    def __str__(self) -> str:
        return f"{self.together} {self.unit}s" if self.together > 1 else f"1 {self.unit}"

    def put(self, groups: Iterable[Mapping[str, Any]], names: Sequence[str]) -> dict[Keys, list[list[Any]]]:
        """For each of the groups' keys (the values of `names`) the groups of each step."""
        places = {start: place // self.together for place, start in enumerate(self.starts)}
        length = -(-len(self.starts) // self.together)
        found: dict[Keys, list[list[Any]]] = {}
        for group in groups:
            line = found.setdefault(tuple(group[name] for name in names), [[] for _ in range(length)])
            place = places.get(group[self.unit])
            if place is not None:
                line[place].append(group)
        return found


def unit_of(since: datetime, until: datetime) -> str:
    """`hour` for a short time, `day` for a long one."""
    return "hour" if until - since <= _HOURLY else "day"


def _hours(since: datetime, until: datetime, zone: str) -> Iterable[str]:
    local = since.astimezone(zone_of(zone))
    into = timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
    moment = since.astimezone(UTC) - into
    while moment < until:
        yield moment.astimezone(zone_of(zone)).isoformat(timespec="seconds")
        moment += timedelta(hours=1)


def _days(since: datetime, until: datetime, zone: str) -> Iterable[str]:
    first, last = (
        moment.astimezone(zone_of(zone)).toordinal() for moment in (since, until - timedelta(microseconds=1))
    )
    return (date.fromordinal(number).isoformat() for number in range(first, last + 1))
