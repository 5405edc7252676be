"""A query for figures, put in the database's terms."""

from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo
from typing import NamedTuple

from arbstr_asgi.stats.planner import HOUR, matching_grouping
from arbstr_asgi.stats.query import TIMES, Filters, StatsQuery
from arbstr_asgi.stats.rollups.cache import Keys
from arbstr_asgi.stats.sql import key_of
from arbstr_asgi.stats.timezones import common_period, local, local_date, period_start, truncate_bound, zone_of

_FIRST = datetime(2000, 1, 1, tzinfo=UTC)  # before the first row; zones were minutes apart once, which costs much


class ResolvedQuery(NamedTuple):
    """A query, put in the database's terms."""

    since: datetime
    until: datetime
    names: tuple[str, ...]  # of the columns to group by
    time_units: tuple[str, ...]  # of time to group by
    filters: Filters
    zone: tzinfo
    zone_name: str
    seconds: int  # the period by which rows are summed up; 0: all of them
    grouping: tuple[str, ...] | None  # that the roll-ups have

    @classmethod
    def resolve(cls, query: StatsQuery) -> "ResolvedQuery":
        """For the figures that a query asks for."""
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
        """Those of the roll-ups, where there are any."""
        assert self.grouping is not None
        return self.grouping

    @property
    def keys(self) -> dict[str, str]:
        """The filters as keys of the roll-ups."""
        return {name: key_of(value) for name, value in self.filters.given.items()}

    def pick_keys(self, keys: Sequence[str]) -> Keys:
        """The keys that are grouped by, of those of a roll-up."""
        if self.names == self.grouping:
            return tuple(keys[: len(self.names)])
        return tuple([keys[self.dimensions.index(name)] for name in self.names])

    def time_key(self, seconds: int) -> int:
        """What stands for the hours and days that a moment (in seconds from the year 1) is in."""
        if not self.time_units:
            return 0
        if "hour" not in self.time_units:
            return local_date(period_start(seconds, 1), self.zone).toordinal()
        return seconds if self.seconds == HOUR else seconds - _seconds_into_hour(period_start(seconds, 1), self.zone)


def _seconds_into_hour(instant: datetime, zone: tzinfo) -> int:
    local_time = local(instant, zone)
    return local_time.minute * 60 + local_time.second
