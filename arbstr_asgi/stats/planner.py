"""Query planning: which roll-up answers a query, and for which part of its time range."""

from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from typing import NamedTuple

from arbstr_asgi.stats.query import TIMES, Filters
from arbstr_asgi.stats.timezones import period_number, period_start

DIMENSIONS = ("model", "provider", "tenant", "policy", "end_user")
PAIRED = DIMENSIONS[:4]
GROUPINGS: tuple[tuple[str, ...], ...] = (
    (),
    *((name,) for name in DIMENSIONS),
    *((one, other) for i, one in enumerate(PAIRED) for other in PAIRED[i + 1 :]),
)
COUNTED = tuple(grouping for grouping in GROUPINGS if len(grouping) == 2 or grouping == ("end_user",))
HOUR, DAY = 3600, 86400
PERIODS = {"day": 24, "6h": 6, "hour": 1}
"""The periods of roll-ups and their length in hours, longest first."""
COARSE = {period: hours for period, hours in PERIODS.items() if hours > 1}

Span = tuple[str, int, int]
"""Name of the period, first number, end number (exclusive)."""


def matching_grouping(group_by: Collection[str], filters: Filters) -> tuple[str, ...] | None:
    """The grouping of roll-ups that has all dimensions of a query; None: no roll-up can answer it."""
    dimensions_needed = {*group_by, *filters.given} - set(TIMES)
    grouping = tuple(name for name in DIMENSIONS if name in dimensions_needed)
    return grouping if grouping in GROUPINGS and len(grouping) == len(dimensions_needed) else None


def derived_groupings() -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """How the groupings that are not in COUNTED are derived, in order.

    Yields the index of the grouping, the index of the finer grouping to sum, and the positions of its keys in that.
    """
    for index in range(len(GROUPINGS) - 1, -1, -1):
        grouping = GROUPINGS[index]
        if grouping not in COUNTED:
            finer = next(g for g in GROUPINGS if len(g) == len(grouping) + 1 and {*grouping} < {*g})
            yield index, GROUPINGS.index(finer), tuple(finer.index(name) for name in grouping)


class RollupState(NamedTuple):
    """Which roll-ups exist; hours and longer periods by number.

    Each hour before `sealed` is rolled up, empty, or `dirty` (out of date); the rows of hours before `pruned` are
    deleted. `coarse` are the longer periods with a roll-up of their own, by name of the period.
    """

    sealed: int
    pruned: int
    dirty: frozenset[int]
    coarse: Mapping[str, frozenset[int]]


class TimeSplit(NamedTuple):
    """A time range split into `rolled` (periods to read from roll-ups) and `rows` (time ranges to read from rows)."""

    rolled: list[Span]
    rows: list[tuple[datetime, datetime]]


def only_rows(since: datetime, until: datetime, state: RollupState) -> TimeSplit:
    """Read the whole range from rows, as far as they are not pruned."""
    since = max(since, period_start(state.pruned, HOUR))
    return TimeSplit([], [(since, until)] if since < until else [])


def split_time(since: datetime, until: datetime, state: RollupState, *, coarse: bool) -> TimeSplit:
    """Read as much as possible from roll-ups; from periods longer than an hour only with `coarse`."""
    first, end = _first_hour(since), min(period_number(until, HOUR), state.sealed)
    if first >= end:
        return only_rows(since, until, state)
    dirty = sorted(hour for hour in state.dirty if first <= hour < end and hour >= state.pruned)
    rolled = _rolled(first, end, state if coarse else state._replace(coarse={}), dirty)
    spans = [
        (since, period_start(first, HOUR)),
        *((period_start(a, HOUR), period_start(b, HOUR)) for a, b in _runs(dirty)),
        (period_start(end, HOUR), until),
    ]
    first_kept = period_start(state.pruned, HOUR)
    rows = [(max(a, first_kept), b) for a, b in spans if max(a, first_kept) < b]
    return TimeSplit(rolled, rows)


def clip(split: TimeSplit, hour: int) -> TimeSplit:
    """The part of a split (without coarse periods) that is before this hour."""
    end = period_start(hour, HOUR)
    rolled = [(period, a, min(b, hour)) for period, a, b in split.rolled if a < hour]
    return TimeSplit(rolled, [(a, min(b, end)) for a, b in split.rows if a < end])


def _first_hour(since: datetime) -> int:
    """The first hour that begins at `since` or later."""
    number = period_number(since, HOUR)
    return number if period_start(number, HOUR) == since else number + 1


def _rolled(first: int, end: int, state: RollupState, dirty: Collection[int]) -> list[Span]:
    """The hours from `first` to before `end` that are not dirty, covered by the longest periods available."""
    split: list[Span] = []
    covered = [(hour, hour + 1) for hour in dirty]
    for period, made in state.coarse.items():
        hours = PERIODS[period]
        dirty_periods = {n for a, b in covered for n in range(a // hours, -(-b // hours))}
        usable = sorted(n for n in made if first <= n * hours and (n + 1) * hours <= end and n not in dirty_periods)
        split += [(period, a, b) for a, b in _runs(usable)]
        covered += [(n * hours, (n + 1) * hours) for n in usable]
    return [*split, *(("hour", a, b) for a, b in _gaps(first, end, covered))]


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Sorted numbers as half-open ranges."""
    split: list[tuple[int, int]] = []
    for number in numbers:
        if split and split[-1][1] == number:
            split[-1] = split[-1][0], number + 1
        else:
            split.append((number, number + 1))
    return split


def _gaps(first: int, end: int, covered: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The parts of the range `first` to `end` that are not covered."""
    split: list[tuple[int, int]] = []
    for start, span_end in sorted(covered):
        if start > first:
            split.append((first, start))
        first = max(first, span_end)
    if first < end:
        split.append((first, end))
    return split
