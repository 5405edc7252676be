"""What roll-ups say to a question: how many rows each group has, and the sums of those that are wanted."""

from collections.abc import Collection
from typing import Any

from arbstr_asgi.ledger.asked import Asked
from arbstr_asgi.ledger.driver import Driver
from arbstr_asgi.ledger.fragments import Asking
from arbstr_asgi.ledger.memory import Keys, Memory, Place, Remembered
from arbstr_asgi.ledger.rollups import Rollups
from arbstr_asgi.ledger.turns import TALLIES, in_turns
from arbstr_asgi.stats.plan import HOUR, PERIODS, Parts
from arbstr_asgi.stats.tally import Tally


class Closed:
    """Asks on one connection, inside of a transaction, for the periods that are to be taken from roll-ups."""

    def __init__(
        self, driver: Driver, rollups: Rollups, memory: Memory, raw: Any, asked: Asked, divided: Parts
    ) -> None:
        self._driver = driver
        self._rollups = rollups
        self._memory = memory
        self._raw = raw
        self._asked = asked
        self._spans = divided.rolled

    async def totals(self) -> dict[Keys, int]:
        """How many rows each group has, in all of the time."""
        if not self._spans:
            return {}
        remembered = await self._remembered()
        if remembered.totals is None:
            found: dict[Keys, int] = {}
            for span in self._spans:
                asking = Asking(self._driver.dialect)
                sql = self._rollups.totals(asking, self._asked.dimensions, span, self._asked.keys)
                async for some in in_turns(await self._driver.fetch(self._raw, sql, asking.parameters)):
                    for key1, key2, total in some:
                        keys = self._asked.picked((key1, key2))
                        found[keys] = found.get(keys, 0) + int(total)
            remembered.totals = found
            self._memory.fit(remembered)
        return {**remembered.totals}

    async def full(self, limit: int) -> int | None:
        """The hour at whose end there have been so many groups, where groups are by hour."""
        for span in self._spans:
            asking = Asking(self._driver.dialect)
            sql = self._rollups.sizes(asking, self._asked.dimensions, span, self._asked.keys)
            for hour, groups in await self._driver.fetch(self._raw, sql, asking.parameters):
                limit -= groups
                if limit <= 0:
                    return int(hour)
        return None

    async def tallies(self, chosen: Collection[Keys] | None) -> dict[Place, Tally]:
        """What they come to: of the chosen groups, or of all."""
        if not self._spans:
            return {}
        remembered = await self._remembered()
        if not remembered.whole:
            wanted = None if chosen is None else await self._missing(chosen, remembered.tallies)
            if wanted is None or wanted:
                remembered.tallies.update(await self._read(wanted))
                remembered.whole = wanted is None
                self._memory.fit(remembered)
        if chosen is None:
            return remembered.tallies
        return {place: tally for place, tally in remembered.tallies.items() if place[0] in chosen}

    async def _remembered(self) -> Remembered:
        ((generation,),) = await self._driver.fetch(self._raw, self._rollups.state, ("generation",))
        asked = self._asked
        zone = asked.zone_name if asked.units else ""
        question = (asked.dimensions, asked.names, asked.units, zone, asked.seconds)
        return self._memory.of(generation, (*question, *sorted(asked.keys.items()), *self._spans))

    async def _missing(self, chosen: Collection[Keys], known: Collection[Place]) -> set[Keys]:
        """What is to be read: with it a few of the next, of which one is among the chosen soon."""
        totals = await self.totals()
        there = {keys for keys, _ in known}
        if all(keys in there or keys not in totals for keys in chosen):
            return set()
        most = sorted(totals, key=lambda keys: (-totals[keys], keys))[: len(chosen) * 9 // 8 + 8]
        return {keys for keys in {*chosen, *most} if keys in totals and keys not in there}

    async def _read(self, chosen: Collection[Keys] | None) -> dict[Place, Tally]:
        found: dict[Place, list[Tally]] = {}
        for span in self._spans:
            asking = Asking(self._driver.dialect)
            asked = self._asked
            first = {keys[0] for keys in chosen} if chosen and asked.names == asked.dimensions[:1] else ()
            sql = self._rollups.rows(asking, asked.dimensions, span, asked.keys, first)
            seconds = HOUR * PERIODS[span[0]]
            async for some in in_turns(await self._driver.fetch(self._raw, sql, asking.parameters), TALLIES):
                for start, key1, key2, *texts in some:
                    keys = asked.picked((key1, key2))
                    if chosen is None or keys in chosen:
                        place = keys, asked.named(start * seconds)
                        found.setdefault(place, []).append(Tally.decode(*texts))
        return {place: Tally.added(of) async for some in in_turns([*found.items()], TALLIES) for place, of in some}
