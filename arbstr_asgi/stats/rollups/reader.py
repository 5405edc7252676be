"""What roll-ups say to a question: how many rows each group has, and the sums of those that are wanted."""

from collections.abc import Collection, Sequence
from typing import Any

from arbstr_asgi._utils import in_batches
from arbstr_asgi.database.drivers.base import Driver
from arbstr_asgi.stats.planner import COARSE, HOUR, PERIODS, Span, TimeSplit
from arbstr_asgi.stats.resolved_query import ResolvedQuery
from arbstr_asgi.stats.rollups.cache import CacheEntry, Keys, Place, RollupCache
from arbstr_asgi.stats.rollups.statements import RollupStatements
from arbstr_asgi.stats.sql import SqlParameters
from arbstr_asgi.stats.totals import TOTALS_AT_ONCE, Totals


class RollupReader:
    """Asks on one connection, inside of a transaction, for the periods that are to be taken from roll-ups.

    What they came to is remembered, and so is what the longer periods in them came to: of those most are the same when
    an hour later another hour has been rolled up.
    """

    def __init__(
        self,
        driver: Driver,
        rollups: RollupStatements,
        memory: RollupCache,
        raw: Any,
        asked: ResolvedQuery,
        divided: TimeSplit,
    ) -> None:
        self._driver = driver
        self._rollups = rollups
        self._memory = memory
        self._raw = raw
        self._asked = asked
        self._spans = divided.rolled
        self._generations: dict[str, int] = {}

    async def totals(self) -> dict[Keys, int]:
        """How many rows each group has, in all of the time."""
        if not self._spans:
            return {}
        remembered = await self._remembered(self._spans)
        if remembered.totals is None:
            found: dict[Keys, int] = {}
            for span in self._spans:
                for keys, total in (await self._totals_of(span)).items():
                    found[keys] = found.get(keys, 0) + total
            remembered.totals = found
            self._memory.evict(remembered)
        return {**remembered.totals}

    async def full(self, limit: int) -> int | None:
        """The hour at whose end there have been so many groups, where groups are by hour."""
        for span in self._spans:
            asking = SqlParameters(self._driver.dialect)
            sql = self._rollups.sizes(asking, self._asked.dimensions, span, self._asked.keys)
            for hour, groups in await self._driver.fetch(self._raw, sql, asking.parameters):
                limit -= groups
                if limit <= 0:
                    return int(hour)
        return None

    async def tallies(self, chosen: set[Keys] | None) -> dict[Place, Totals]:
        """What they come to: of the chosen groups, or of all."""
        if not self._spans:
            return {}
        remembered = await self._remembered(self._spans)
        if not remembered.whole and (chosen is None or chosen - remembered.asked):
            wanted = None if chosen is None else await self._next(chosen) - remembered.asked
            found: dict[Place, list[Totals]] = {}
            for span in self._spans:
                for place, tally in (await self._tallies_of(span, wanted)).items():
                    found.setdefault(place, []).append(tally)
            async for some in in_batches([*found.items()], TOTALS_AT_ONCE):
                remembered.tallies.update({place: Totals.sum(of) for place, of in some})
            self._know(remembered, wanted)
        return _chosen(remembered, chosen)

    async def _next(self, chosen: set[Keys]) -> set[Keys]:
        """What is to be read: with the chosen a few of the next, of which one is among the chosen soon."""
        totals = await self.totals()
        most = sorted(totals, key=lambda keys: (-totals[keys], keys))[: len(chosen) * 9 // 8 + 8]
        return {*chosen, *most}

    async def _totals_of(self, span: Span) -> dict[Keys, int]:
        remembered = await self._part(span)
        if remembered.totals is None:
            found: dict[Keys, int] = {}
            asking = SqlParameters(self._driver.dialect)
            sql = self._rollups.totals(asking, self._asked.dimensions, span, self._asked.keys)
            async for some in in_batches(await self._driver.fetch(self._raw, sql, asking.parameters)):
                for key1, key2, total in some:
                    keys = self._asked.picked((key1, key2))
                    found[keys] = found.get(keys, 0) + int(total)
            remembered.totals = found
            self._memory.evict(remembered)
        return remembered.totals

    async def _tallies_of(self, span: Span, chosen: set[Keys] | None) -> dict[Place, Totals]:
        remembered = await self._part(span)
        if not remembered.whole and (chosen is None or chosen - remembered.asked):
            wanted = None if chosen is None else chosen - remembered.asked
            remembered.tallies.update(await self._read(span, wanted))
            self._know(remembered, wanted)
        return _chosen(remembered, chosen)

    async def _read(self, span: Span, chosen: Collection[Keys] | None) -> dict[Place, Totals]:
        found: dict[Place, list[Totals]] = {}
        asking, asked = SqlParameters(self._driver.dialect), self._asked
        first = {keys[0] for keys in chosen} if chosen and asked.names == asked.dimensions[:1] else ()
        sql = self._rollups.rows(asking, asked.dimensions, span, asked.keys, first)
        seconds = HOUR * PERIODS[span[0]]
        async for some in in_batches(await self._driver.fetch(self._raw, sql, asking.parameters), TOTALS_AT_ONCE):
            for start, key1, key2, *texts in some:
                keys = asked.picked((key1, key2))
                if chosen is None or keys in chosen:
                    found.setdefault((keys, asked.named(start * seconds)), []).append(Totals.decode(*texts))
        return {
            place: Totals.sum(of) async for some in in_batches([*found.items()], TOTALS_AT_ONCE) for place, of in some
        }

    async def _part(self, span: Span) -> CacheEntry:
        """Hours alone are not remembered: they change with each that is rolled up."""
        return await self._remembered([span]) if span[0] in COARSE else CacheEntry()

    async def _remembered(self, spans: Sequence[Span]) -> CacheEntry:
        if not self._generations:
            found = await self._driver.fetch(self._raw, self._rollups.generations)
            self._generations = {str(period): int(generation) for period, generation in found}
        asked = self._asked
        zone = asked.zone_name if asked.units else ""
        question = (asked.dimensions, asked.names, asked.units, zone, asked.seconds)
        generation = tuple(self._generations[period] for period, *_ in spans)
        return self._memory.of(generation, (*question, *sorted(asked.keys.items()), *spans))

    def _know(self, remembered: CacheEntry, wanted: set[Keys] | None) -> None:
        if wanted is None:
            remembered.whole = True
        else:
            remembered.asked |= wanted
        self._memory.evict(remembered)


def _chosen(remembered: CacheEntry, chosen: set[Keys] | None) -> dict[Place, Totals]:
    if chosen is None:
        return remembered.tallies
    return {place: tally for place, tally in remembered.tallies.items() if place[0] in chosen}
