"""Figures of the ledger: from roll-ups what they know, the rest from rows, in one state of the database."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from arbstr_asgi._utils import in_batches
from arbstr_asgi.database.drivers.base import Driver
from arbstr_asgi.stats.live import LiveRows
from arbstr_asgi.stats.planner import COARSE, DAY, HOUR, RollupState, TimeSplit, clip, only_rows, split_time
from arbstr_asgi.stats.query import Group, Key, StatsQuery, Summary
from arbstr_asgi.stats.resolved_query import ResolvedQuery
from arbstr_asgi.stats.rollups.cache import Keys, Place, RollupCache
from arbstr_asgi.stats.rollups.reader import RollupReader
from arbstr_asgi.stats.rollups.statements import RollupStatements
from arbstr_asgi.stats.sql import SqlDialect, SqlParameters, value_of
from arbstr_asgi.stats.timezones import called, local, number_of, start_of
from arbstr_asgi.stats.totals import TOTALS_AT_ONCE, Totals

_MOST_DAYS = 4000  # for which roll-ups are put together where the zone's days begin within an hour
_A_MILLISECOND = timedelta(milliseconds=1)


class StatsReader:
    """Asks on one connection at a time."""

    def __init__(self, driver: Driver, fragments: SqlDialect, memory: RollupCache) -> None:
        self._driver = driver
        self._memory = memory
        self._fragments = fragments
        self._rollups = RollupStatements(fragments)

    async def groups(self, raw: Any, query: StatsQuery) -> list[Group]:
        """What the query asks for."""
        asked = ResolvedQuery.of(query)
        found: dict[Place, Totals] = {}
        if asked.since < asked.until:
            async with self._driver.reading(raw):
                known = await self.known(raw, asked.since, asked.until)
                await self._gather(raw, asked, known, query.limit, found)
        return await _groups(query, asked, found)

    async def summary(self, raw: Any, query: StatsQuery) -> Summary:
        """The same, and what all of it comes to."""
        asked, ungrouped = ResolvedQuery.of(query), ResolvedQuery.of(msgspec.structs.replace(query, group_by=()))
        found: dict[Place, Totals] = {}
        everything = Totals.empty()
        if asked.since < asked.until:
            async with self._driver.reading(raw):
                known = await self.known(raw, asked.since, asked.until)
                live = await self._gather(raw, asked, known, query.limit, found)
                if query.group_by:
                    everything = await self._all(raw, ungrouped, known, live)
                else:
                    everything = found.get(((), 0), everything)
        return Summary(everything.figures(), await _groups(query, asked, found))

    async def totals(self, raw: Any, asked: ResolvedQuery, divided: TimeSplit) -> dict[Keys, int]:
        """How many rows of each kind roll-ups know of, inside of a transaction."""
        return await self._closed(raw, asked, divided).totals()

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
        asked = ResolvedQuery.of(StatsQuery(since=always[0], until=always[1], group_by=(column,)))
        async with self._driver.reading(raw):
            divided = await self.divided(raw, asked)
            found = set(await self.totals(raw, asked, divided))
            for span in divided.rows:
                asking = SqlParameters(self._fragments.dialect)
                bounds = self._fragments.between(asking, *map(self._driver.read_timestamp, span))
                sql = f"SELECT DISTINCT {self._fragments.key(column)} FROM {self._fragments.requests} WHERE {bounds}"  # noqa: S608
                found |= {(row[0],) for row in await self._driver.fetch(raw, sql, asking.parameters)}
        return sorted(name for (key,) in found if (name := value_of(key)) is not None)

    async def known(self, raw: Any, since: datetime, until: datetime) -> RollupState:
        """What the roll-ups know of this time."""
        fetch, sql = self._driver.fetch, self._rollups
        ((sealed,),) = await fetch(raw, sql.state, ("sealed",))
        ((pruned,),) = await fetch(raw, sql.state, ("pruned",))
        first, end = number_of(since, HOUR), number_of(until, HOUR) + 1
        dirty = await fetch(raw, sql.dirty, (first, end))
        coarse = {
            period: frozenset(row[0] for row in await fetch(raw, sql.made, (period, first // hours, end // hours + 1)))
            for period, hours in COARSE.items()
        }
        return RollupState(sealed, pruned, frozenset(row[0] for row in dirty), coarse)

    async def divided(self, raw: Any, asked: ResolvedQuery) -> TimeSplit:
        """From where the answer is to be taken."""
        return _divided(asked, await self.known(raw, asked.since, asked.until))

    async def _gather(
        self, raw: Any, asked: ResolvedQuery, known: RollupState, limit: int, found: dict[Place, Totals]
    ) -> LiveRows:
        divided = _divided(asked, known)
        if "hour" in asked.units and asked.names:
            full = await self._closed(raw, asked, divided).full(limit)
            divided = divided if full is None else clip(divided, full + 1)
        live, closed, chosen = await self._live(raw, asked, divided), self._closed(raw, asked, divided), None
        if asked.names and not asked.units:
            totals = await closed.totals()
            for keys, total in (await live.totals()).items():
                totals[keys] = totals.get(keys, 0) + total
            chosen = set(sorted(totals, key=lambda keys: (-totals[keys], keys))[:limit])
        found |= await closed.tallies(chosen)
        for place, tallies in (await live.tallies(chosen)).items():
            found[place] = Totals.sum([*tallies, found[place]] if place in found else tallies)
        return live

    async def _all(self, raw: Any, asked: ResolvedQuery, known: RollupState, live: LiveRows) -> Totals:
        """What all rows come to; with the `live` ones of a question that has the same filters, and any groups."""
        divided = _divided(asked, known)
        if live.spans != divided.rows:
            live = await self._live(raw, asked, divided)
        closed = await self._closed(raw, asked, divided).tallies(None)
        return Totals.sum([Totals.empty(), *await live.everything(), *closed.values()])

    async def _live(self, raw: Any, asked: ResolvedQuery, divided: TimeSplit) -> LiveRows:
        return await LiveRows.ask(self._driver, self._fragments, raw, asked, divided.rows)

    def _closed(self, raw: Any, asked: ResolvedQuery, divided: TimeSplit) -> RollupReader:
        return RollupReader(self._driver, self._rollups, self._memory, raw, asked, divided)


async def _groups(query: StatsQuery, asked: ResolvedQuery, found: dict[Place, Totals]) -> list[Group]:
    if not query.group_by:
        return [Group((), next(iter(found.values()), Totals.empty()).figures())]
    places = sorted(found, key=lambda place: (place[1], -found[place].total, place[0]))[: query.limit]
    return [
        Group(_keys(query, asked, *place), found[place].figures())
        async for some in in_batches(places, TOTALS_AT_ONCE)
        for place in some
    ]


def _keys(query: StatsQuery, asked: ResolvedQuery, keys: Keys, time: int) -> tuple[Key, ...]:
    values: dict[str, Key] = {name: value_of(key) for name, key in zip(asked.names, keys, strict=True)}
    if "hour" in asked.units:
        moment = start_of(time, 1)
        values |= {"hour": local(moment, asked.zone), "day": called(moment, asked.zone)}
    elif asked.units:
        values["day"] = datetime.fromordinal(time).date()
    return tuple(values[name] for name in query.group_by)


def _divided(asked: ResolvedQuery, known: RollupState) -> TimeSplit:
    if asked.grouping is None:
        return only_rows(asked.since, asked.until, known)
    if asked.seconds % HOUR:  # days that begin within an hour
        if asked.until - asked.since > timedelta(days=_MOST_DAYS):
            return only_rows(asked.since, asked.until, known)
        known = known._replace(dirty=known.dirty | _split_hours(asked, known))
    return split_time(asked.since, asked.until, known, coarse=not asked.units or asked.seconds == DAY)


def _split_hours(asked: ResolvedQuery, known: RollupState) -> frozenset[int]:
    """The hours in which a day of the zone ends and another begins."""
    first, end = number_of(asked.since, HOUR), min(number_of(asked.until, HOUR), known.sealed)
    found = []
    for number in range(first, end):
        start, behind = start_of(number, HOUR), start_of(number + 1, HOUR) - _A_MILLISECOND
        if called(start, asked.zone) != called(behind, asked.zone):
            found.append(number)
    return frozenset(found)
