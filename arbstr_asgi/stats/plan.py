"""Which roll-up answers a query, and for which part of its time."""

from collections.abc import Collection, Iterator
from datetime import datetime
from typing import NamedTuple

from arbstr_asgi.stats.query import TIMES, Filters
from arbstr_asgi.stats.zones import number_of, start_of

DIMENSIONS = ("model", "provider", "tenant", "policy", "end_user")
PAIRED = DIMENSIONS[:4]
GROUPINGS: tuple[tuple[str, ...], ...] = (
    (),
    *((name,) for name in DIMENSIONS),
    *((one, other) for i, one in enumerate(PAIRED) for other in PAIRED[i + 1 :]),
)
COUNTED = tuple(grouping for grouping in GROUPINGS if len(grouping) == 2 or grouping == ("end_user",))
HOUR, DAY, HOURS = 3600, 86400, 24


def rolled(group_by: Collection[str], filters: Filters) -> tuple[str, ...] | None:
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


class Known(NamedTuple):
    """What the roll-ups know. Hours and days by number.

    Of the hours before `sealed` each is rolled up, empty or `dirty`; those before `pruned` have no rows any more.
    `days` are the ones that are rolled up as such.
    """

    sealed: int
    pruned: int
    dirty: frozenset[int]
    days: frozenset[int]


class Parts(NamedTuple):
    """A time, taken apart: days and hours to be read from roll-ups (first and behind the last), the rest from rows."""

    days: list[tuple[int, int]]
    hours: list[tuple[int, int]]
    rows: list[tuple[datetime, datetime]]


def only_rows(since: datetime, until: datetime, known: Known) -> Parts:
    """All of it from rows, as far as there are any."""
    since = max(since, start_of(known.pruned, HOUR))
    return Parts([], [], [(since, until)] if since < until else [])


def parts(since: datetime, until: datetime, known: Known, *, whole_days: bool) -> Parts:
    """As much from roll-ups as they know, from days only if `whole_days`."""
    first, end = _first_hour(since), min(number_of(until, HOUR), known.sealed)
    if first >= end:
        return only_rows(since, until, known)
    dirty = sorted(hour for hour in known.dirty if first <= hour < end and hour >= known.pruned)
    days = _days(first, end, known, dirty) if whole_days else []
    hours = _gaps(first, end, [*((hour, hour + 1) for hour in dirty), *((d * HOURS, (d + 1) * HOURS) for d in days)])
    spans = [
        (since, start_of(first, HOUR)),
        *((start_of(a, HOUR), start_of(b, HOUR)) for a, b in _runs(dirty)),
        (start_of(end, HOUR), until),
    ]
    edge = start_of(known.pruned, HOUR)
    rows = [(max(a, edge), b) for a, b in spans if max(a, edge) < b]
    return Parts(_runs(days), hours, rows)


def cut(found: Parts, hour: int) -> Parts:
    """Only what is before an hour."""
    end = start_of(hour, HOUR)
    hours = [(a, min(b, hour)) for a, b in found.hours if a < hour]
    return Parts(found.days, hours, [(a, min(b, end)) for a, b in found.rows if a < end])


def _first_hour(since: datetime) -> int:
    """The first that begins at `since` or later."""
    number = number_of(since, HOUR)
    return number if start_of(number, HOUR) == since else number + 1


def _days(first: int, end: int, known: Known, dirty: Collection[int]) -> list[int]:
    wrong = {hour // HOURS for hour in dirty}
    return sorted(d for d in known.days if first <= d * HOURS and (d + 1) * HOURS <= end and d not in wrong)


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
