"""Figures of the ledger: from roll-ups what they know, the rest from rows, in one state of the database."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, NamedTuple

from arbstr_asgi.ledger.aggregates import Aggregate, Cell
from arbstr_asgi.ledger.driver import Driver
from arbstr_asgi.ledger.fragments import Asking, Fragments, key_of, value_of
from arbstr_asgi.ledger.rollups import Rollups
from arbstr_asgi.ledger.turns import in_turns
from arbstr_asgi.stats import Filters, Group, StatsQuery
from arbstr_asgi.stats.plan import DAY, HOUR, Known, Parts, only_rows, parts, rolled
from arbstr_asgi.stats.query import TIMES, Key
from arbstr_asgi.stats.tally import Tally
from arbstr_asgi.stats.zones import bound, called, local, number_of, start_of, step, zone_of

_FIRST = datetime(2000, 1, 1, tzinfo=UTC)  # before the first row; zones were minutes apart once, which costs much
_MOST_DAYS = 4000  # for which roll-ups are put together where the zone's days begin within an hour
_A_MILLISECOND = timedelta(milliseconds=1)

Keys = tuple[str, ...]
"""Values as roll-ups have them, in the order of `GROUPS`' names that were asked for."""


class Asked(NamedTuple):
    """A query, put in the database's terms."""

    since: datetime
    until: datetime
    names: tuple[str, ...]  # of the columns to group by
    units: tuple[str, ...]  # of time to group by
    filters: Filters
    zone: tzinfo
    seconds: int  # the period by which rows are summed up; 0: all of them
    grouping: tuple[str, ...] | None  # that the roll-ups have

    @classmethod
    def of(cls, query: StatsQuery) -> "Asked":
        """For the figures that a query asks for."""
        since, until = max(bound(query.since), _FIRST), bound(query.until)
        names = tuple(name for name in query.group_by if name not in TIMES)
        units = tuple(name for name in query.group_by if name in TIMES)
        zone = zone_of(query.zone)
        seconds = step(zone, since, until, "hour" if "hour" in units else "day") if units and since < until else 0
        grouping = None if seconds % HOUR and "hour" in units else rolled(names, query.filters)
        return cls(since, until, names, units, query.filters, zone, seconds, grouping)

    @property
    def keys(self) -> dict[str, str]:
        """The filters as keys of the roll-ups."""
        return {name: key_of(value) for name, value in self.filters.given.items()}


class Statistics:
    """Asks on one connection at a time."""

    def __init__(self, driver: Driver, fragments: Fragments) -> None:
        self._driver = driver
        self._fragments = fragments
        self._rollups = Rollups(fragments)

    async def groups(self, raw: Any, query: StatsQuery) -> list[Group]:
        """What the query asks for."""
        asked = Asked.of(query)
        found: dict[tuple[Keys, int], Tally] = {}
        if asked.since < asked.until:
            async with self._driver.reading(raw):
                await self._gather(raw, asked, query.limit, found)
        return _groups(query, asked, found)

    async def totals(self, raw: Any, asked: Asked, divided: Parts) -> dict[Keys, int]:
        """How many rows of each kind roll-ups know of, inside of a transaction."""
        found: dict[Keys, int] = {}
        for span in _spans(divided):
            assert asked.grouping is not None
            asking = Asking(self._fragments.dialect)
            sql = self._rollups.totals(asking, asked.grouping, span, asked.keys)
            for key1, key2, total in await self._driver.fetch(raw, sql, asking.parameters):
                keys = _picked(asked, (key1, key2))
                found[keys] = found.get(keys, 0) + int(total)
        return found

    async def rolled_up(self, raw: Any) -> int:
        """How many rows roll-ups know of, in all."""
        ((total,),) = await self._driver.fetch(raw, self._rollups.everything)
        return int(total)

    async def kept_since(self, raw: Any) -> datetime:
        """From when on rows have not been pruned."""
        ((pruned,),) = await self._driver.fetch(raw, self._rollups.state, ("pruned",))
        return start_of(pruned, HOUR)

    async def names(self, raw: Any, column: str) -> list[str]:
        """The values that rows have had in a column that is rolled up."""
        always = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
        asked = Asked.of(StatsQuery(since=always[0], until=always[1], group_by=(column,)))
        async with self._driver.reading(raw):
            divided = await self.divided(raw, asked)
            found = set(await self.totals(raw, asked, divided))
            for span in divided.rows:
                asking = Asking(self._fragments.dialect)
                bounds = self._fragments.between(asking, *map(self._driver.moment, span))
                sql = f"SELECT DISTINCT {self._fragments.key(column)} FROM {self._fragments.requests} WHERE {bounds}"  # noqa: S608
                found |= {(row[0],) for row in await self._driver.fetch(raw, sql, asking.parameters)}
        return sorted(name for (key,) in found if (name := value_of(key)) is not None)

    async def known(self, raw: Any, since: datetime, until: datetime) -> Known:
        """What the roll-ups know of this time."""
        fetch, sql = self._driver.fetch, self._rollups
        ((sealed,),) = await fetch(raw, sql.state, ("sealed",))
        ((pruned,),) = await fetch(raw, sql.state, ("pruned",))
        first, end = number_of(since, HOUR), number_of(until, HOUR) + 1
        dirty = await fetch(raw, sql.dirty, (first, end))
        days = await fetch(raw, sql.made, ("day", first // 24, end // 24 + 1))
        return Known(sealed, pruned, frozenset(row[0] for row in dirty), frozenset(row[0] for row in days))

    async def divided(self, raw: Any, asked: Asked) -> Parts:
        """From where the answer is to be taken."""
        known = await self.known(raw, asked.since, asked.until)
        if asked.grouping is None:
            return only_rows(asked.since, asked.until, known)
        if asked.seconds % HOUR:  # days that begin within an hour
            if asked.until - asked.since > timedelta(days=_MOST_DAYS):
                return only_rows(asked.since, asked.until, known)
            known = known._replace(dirty=known.dirty | _split_hours(asked, known))
        whole_days = not asked.units or asked.seconds == DAY
        return parts(asked.since, asked.until, known, whole_days=whole_days)

    async def _gather(self, raw: Any, asked: Asked, limit: int, found: dict[tuple[Keys, int], Tally]) -> None:
        divided = await self.divided(raw, asked)
        for since, until in divided.rows:
            for cell, tally in (await self._sums(raw, asked, since, until)).items():
                _add(found, (cell.keys, _named(asked, cell.period * asked.seconds)), tally)
        chosen = None
        if asked.names and not asked.units:
            totals = await self.totals(raw, asked, divided)
            for (keys, _), tally in found.items():
                totals[keys] = totals.get(keys, 0) + tally.total
            chosen = set(sorted(totals, key=lambda keys: (-totals[keys], keys))[:limit])
            for place in [place for place in found if place[0] not in chosen]:
                del found[place]
        for span in _spans(divided):
            await self._read(raw, asked, span, chosen, found)

    async def _sums(self, raw: Any, asked: Asked, since: datetime, until: datetime) -> dict[Cell, Tally]:
        """Of rows."""
        aggregate = Aggregate(self._fragments, [asked.names], asked.seconds)
        asking = Asking(self._fragments.dialect)
        moment = self._driver.moment
        conditions = [
            self._fragments.between(asking, moment(since), moment(until)),
            *self._fragments.fits(asking, asked.filters),
        ]
        rows = await self._driver.fetch(raw, aggregate.sql(asking, conditions), asking.parameters)
        found: dict[Cell, Tally] = {}
        async for some in in_turns(rows):
            aggregate.read(some, found)
        return {cell: tally for cell, tally in found.items() if tally.total}

    async def _read(
        self,
        raw: Any,
        asked: Asked,
        span: tuple[str, int, int],
        chosen: set[Keys] | None,
        found: dict[tuple[Keys, int], Tally],
    ) -> None:
        """Of roll-ups."""
        assert asked.grouping is not None
        asking = Asking(self._fragments.dialect)
        first = {keys[0] for keys in chosen} if chosen and asked.names == asked.grouping[:1] else ()
        sql = self._rollups.rows(asking, asked.grouping, span, asked.keys, first)
        seconds = HOUR if span[0] == "hour" else DAY
        async for some in in_turns(await self._driver.fetch(raw, sql, asking.parameters)):
            for start, key1, key2, *texts in some:
                keys = _picked(asked, (key1, key2))
                if chosen is None or keys in chosen:
                    _add(found, (keys, _named(asked, start * seconds)), Tally.decode(*texts))


def _spans(divided: Parts) -> list[tuple[str, int, int]]:
    return [*(("day", a, b) for a, b in divided.days), *(("hour", a, b) for a, b in divided.hours)]


def _picked(asked: Asked, keys: Sequence[str]) -> Keys:
    """The keys that are grouped by, of those of a roll-up."""
    assert asked.grouping is not None
    return tuple([keys[asked.grouping.index(name)] for name in asked.names])


def _add(found: dict[tuple[Keys, int], Tally], place: tuple[Keys, int], tally: Tally) -> None:
    known = found.get(place)
    if known is None:
        found[place] = tally
    else:
        known.add(tally)


def _named(asked: Asked, seconds: int) -> int:
    """What stands for the hours and days that a moment (in seconds from the year 1) is in."""
    if not asked.units:
        return 0
    if "hour" not in asked.units:
        return called(start_of(seconds, 1), asked.zone).toordinal()
    return seconds if asked.seconds == HOUR else seconds - _into_hour(start_of(seconds, 1), asked.zone)


def _into_hour(moment: datetime, zone: tzinfo) -> int:
    there = local(moment, zone)
    return there.minute * 60 + there.second


def _groups(query: StatsQuery, asked: Asked, found: dict[tuple[Keys, int], Tally]) -> list[Group]:
    if not query.group_by:
        return [Group((), next(iter(found.values()), Tally.empty()).figures())]
    places = sorted(found, key=lambda place: (place[1], -found[place].total, place[0]))
    return [Group(_keys(query, asked, *place), found[place].figures()) for place in places[: query.limit]]


def _keys(query: StatsQuery, asked: Asked, keys: Keys, time: int) -> tuple[Key, ...]:
    values: dict[str, Key] = {name: value_of(key) for name, key in zip(asked.names, keys, strict=True)}
    if "hour" in asked.units:
        moment = start_of(time, 1)
        values |= {"hour": local(moment, asked.zone), "day": called(moment, asked.zone)}
    elif asked.units:
        values["day"] = datetime.fromordinal(time).date()
    return tuple(values[name] for name in query.group_by)


def _split_hours(asked: Asked, known: Known) -> frozenset[int]:
    """The hours in which a day of the zone ends and another begins."""
    first, end = number_of(asked.since, HOUR), min(number_of(asked.until, HOUR), known.sealed)
    found = []
    for number in range(first, end):
        start, behind = start_of(number, HOUR), start_of(number + 1, HOUR) - _A_MILLISECOND
        if called(start, asked.zone) != called(behind, asked.zone):
            found.append(number)
    return frozenset(found)
