"""A statistics query with its time range, zone and roll-up grouping resolved."""

from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo
from typing import NamedTuple

from arbstr_asgi.stats.planner import HOUR, matching_grouping
from arbstr_asgi.stats.query import TIMES, Filters, StatsQuery
from arbstr_asgi.stats.rollups.cache import Keys
from arbstr_asgi.stats.sql import key_of
from arbstr_asgi.stats.timezones import common_period, local, local_date, period_start, truncate_bound, zone_of

_FIRST = datetime(
    2000, 1, 1, tzinfo=UTC
)  # before the first row; older zone offsets of odd minutes would need short periods


class ResolvedQuery(NamedTuple):
    """A StatsQuery in terms of the database: UTC bounds, columns, units of time, length of the periods."""

    since: datetime
    until: datetime
    names: tuple[str, ...]  # columns to group by
    time_units: tuple[str, ...]  # hour, day or both
    filters: Filters
    zone: tzinfo
    zone_name: str
    seconds: int  # length of the periods to aggregate by; 0: none
    grouping: tuple[str, ...] | None  # of the roll-ups that can answer; None: none

    @classmethod
    def resolve(cls, query: StatsQuery) -> "ResolvedQuery":
        """Resolve a StatsQuery."""
        since, until = max(truncate_bound(query.since), _FIRST), truncate_bound(query.until)
        names = tuple(name for name in query.group_by if name not in TIMES)
        time_units = tuple(name for name in query.group_by if name in TIMES)
        zone = zone_of(query.zone)
        seconds = (
            common_period(zone, since, until, "hour" if "hour" in time_units else "day")
            if time_units and since < until
            else 0
        )
        grouping = None if seconds % HOUR and "hour" in time_units else matching_grouping(names, query.filters)
        return cls(since, until, names, time_units, query.filters, zone, query.zone, seconds, grouping)

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The grouping of the roll-ups that can answer the query."""
        assert self.grouping is not None
        return self.grouping

    @property
    def keys(self) -> dict[str, str]:
        """The filters as keys of roll-ups."""
        return {name: key_of(value) for name, value in self.filters.given.items()}

    def pick_keys(self, keys: Sequence[str]) -> Keys:
        """Of the keys of a roll-up those to group by."""
        if self.names == self.grouping:
            return tuple(keys[: len(self.names)])
        return tuple([keys[self.dimensions.index(name)] for name in self.names])

    def time_key(self, seconds: int) -> int:
        """The key of the hour or day that an instant (seconds since the year 1) is in; 0 without `time_units`."""
        if not self.time_units:
            return 0
        if "hour" not in self.time_units:
            return local_date(period_start(seconds, 1), self.zone).toordinal()
        return seconds if self.seconds == HOUR else seconds - _seconds_into_hour(period_start(seconds, 1), self.zone)


def _seconds_into_hour(instant: datetime, zone: tzinfo) -> int:
    local_time = local(instant, zone)
    return local_time.minute * 60 + local_time.second
