"""Which roll-up answers a query, and for which part of its time."""

from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from typing import NamedTuple

from arbstr_asgi.stats.query import TIMES, Filters
from arbstr_asgi.stats.timezones import number_of, start_of

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
"""The periods that are rolled up, and how many hours each has: the longest first, which are made of hours."""
COARSE = {period: hours for period, hours in PERIODS.items() if hours > 1}

Span = tuple[str, int, int]
"""Which periods, the number of the first and of the one behind the last."""


def matching_grouping(group_by: Collection[str], filters: Filters) -> tuple[str, ...] | None:
    """The grouping whose roll-ups know all that a query asks for; None where there is none."""
    asked = {*group_by, *filters.given} - set(TIMES)
    grouping = tuple(name for name in DIMENSIONS if name in asked)
    return grouping if grouping in GROUPINGS and len(grouping) == len(asked) else None


def coarser() -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """How the groupings that are not `COUNTED` are added up, in their order: place, that of a finer one, its keys."""
    for place in range(len(GROUPINGS) - 1, -1, -1):
        grouping = GROUPINGS[place]
        if grouping not in COUNTED:
            finer = next(g for g in GROUPINGS if len(g) == len(grouping) + 1 and {*grouping} < {*g})
            yield place, GROUPINGS.index(finer), tuple(finer.index(name) for name in grouping)


class RollupState(NamedTuple):
    """What the roll-ups know. Hours and other periods by number.

    Of the hours before `sealed` each is rolled up, empty or `dirty`; those before `pruned` have no rows any more.
    `coarse` are the longer periods that are rolled up as such, by what they are called.
    """

    sealed: int
    pruned: int
    dirty: frozenset[int]
    coarse: Mapping[str, frozenset[int]]


class TimeSplit(NamedTuple):
    """A time, taken apart: what is to be read from roll-ups, and the rest from rows."""

    rolled: list[Span]
    rows: list[tuple[datetime, datetime]]


def only_rows(since: datetime, until: datetime, known: RollupState) -> TimeSplit:
    """All of it from rows, as far as there are any."""
    since = max(since, start_of(known.pruned, HOUR))
    return TimeSplit([], [(since, until)] if since < until else [])


def split_time(since: datetime, until: datetime, known: RollupState, *, coarse: bool) -> TimeSplit:
    """As much from roll-ups as they know, from periods of more than an hour only if `coarse`."""
    first, end = _first_hour(since), min(number_of(until, HOUR), known.sealed)
    if first >= end:
        return only_rows(since, until, known)
    dirty = sorted(hour for hour in known.dirty if first <= hour < end and hour >= known.pruned)
    rolled = _rolled(first, end, known if coarse else known._replace(coarse={}), dirty)
    spans = [
        (since, start_of(first, HOUR)),
        *((start_of(a, HOUR), start_of(b, HOUR)) for a, b in _runs(dirty)),
        (start_of(end, HOUR), until),
    ]
    edge = start_of(known.pruned, HOUR)
    rows = [(max(a, edge), b) for a, b in spans if max(a, edge) < b]
    return TimeSplit(rolled, rows)


def clip(found: TimeSplit, hour: int) -> TimeSplit:
    """Only what is before an hour, of parts that are not `coarse`."""
    end = start_of(hour, HOUR)
    rolled = [(period, a, min(b, hour)) for period, a, b in found.rolled if a < hour]
    return TimeSplit(rolled, [(a, min(b, end)) for a, b in found.rows if a < end])


def _first_hour(since: datetime) -> int:
    """The first that begins at `since` or later."""
    number = number_of(since, HOUR)
    return number if start_of(number, HOUR) == since else number + 1


def _rolled(first: int, end: int, known: RollupState, dirty: Collection[int]) -> list[Span]:
    """The hours from `first` to before `end` that are not dirty, in periods as long as there are."""
    found: list[Span] = []
    taken = [(hour, hour + 1) for hour in dirty]
    for period, made in known.coarse.items():
        hours = PERIODS[period]
        wrong = {n for a, b in taken for n in range(a // hours, -(-b // hours))}
        fit = sorted(n for n in made if first <= n * hours and (n + 1) * hours <= end and n not in wrong)
        found += [(period, a, b) for a, b in _runs(fit)]
        taken += [(n * hours, (n + 1) * hours) for n in fit]
    return [*found, *(("hour", a, b) for a, b in _gaps(first, end, taken))]


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Sorted numbers as runs, each the first and the one behind the last."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number:
            found[-1] = found[-1][0], number + 1
        else:
            found.append((number, number + 1))
    return found


def _gaps(first: int, end: int, taken: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """What is left of a stretch."""
    found: list[tuple[int, int]] = []
    for start, behind in sorted(taken):
        if start > first:
            found.append((first, start))
        first = max(first, behind)
    if first < end:
        found.append((first, end))
    return found
