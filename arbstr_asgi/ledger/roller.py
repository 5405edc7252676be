"""Makes roll-ups: an hour from its rows, a day from its hours; each step can be done again, and by anybody."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from arbstr_asgi.ledger.aggregates import Aggregate, Cell
from arbstr_asgi.ledger.driver import Driver
from arbstr_asgi.ledger.fragments import Asking, Fragments
from arbstr_asgi.ledger.rollups import Rollups, row_of
from arbstr_asgi.ledger.values import Row
from arbstr_asgi.stats.plan import GROUPINGS, HOUR, HOURS
from arbstr_asgi.stats.tally import Tally
from arbstr_asgi.stats.zones import number_of, start_of

LAG = timedelta(minutes=5)  # from an hour's end to its roll-up: until then what belongs to it may still come
_PLACES = {",".join(grouping): place for place, grouping in enumerate(GROUPINGS)}


class Changed(Exception):  # noqa: N818 - nobody's fault
    """Somebody has written to the hour, or rolled it up, in the meantime."""


class Roller:
    """Works on a raw connection that is in no transaction."""

    def __init__(self, driver: Driver, fragments: Fragments) -> None:
        self._driver = driver
        self._fragments = fragments
        self.sql = Rollups(fragments)
        self._aggregate = Aggregate(fragments, GROUPINGS)

    async def state(self, raw: Any, name: str) -> int:
        """Up to which hour the ledger is `sealed` or `pruned`."""
        ((total,),) = await self._driver.fetch(raw, self.sql.state, (name,))
        return int(total)

    async def seal(self, raw: Any, now: datetime) -> list[int]:
        """Take in the hours that are over: mark the ones that have rows, whoever wrote them. Returns the dirty hours.

        From the first hour that has rows on; a process of an older version leaves no marks.
        """
        sealed, over = await self.state(raw, "sealed"), number_of(now - LAG, HOUR)
        if over > sealed:
            hours = await self._hours_with_rows(raw, sealed, over)
            async with self._driver.begin(raw):
                await self._driver.execute_many(raw, self.sql.mark, [(hour, 0, 0) for hour in hours])
                await self._driver.execute(raw, self.sql.raise_state, (over, "sealed", over))
        return await self.dirty(raw, max(sealed, over))

    async def dirty(self, raw: Any, end: int) -> list[int]:
        """The hours before `end` whose roll-ups are to be made, the newest first."""
        pruned = await self.state(raw, "pruned")
        return [int(row[0]) for row in await self._driver.fetch(raw, self.sql.dirty, (pruned, end))][::-1]

    async def hour(self, raw: Any, hour: int, *, compare: bool = False) -> bool:
        """Make the roll-ups of a closed hour; with `compare` whether others stood there. Raises Changed."""
        async with self._driver.reading(raw):
            marks = await self._driver.fetch(raw, self.sql.marks, (hour,))
            rows = await self._of_rows(raw, hour)
            before = await self._stored(raw, hour) if compare else []
        async with self._driver.begin(raw):
            for writer, mark in marks:
                if not await self._driver.execute(raw, self.sql.unmark, (hour, writer, mark)):
                    raise Changed
            if not marks or await self.state(raw, "pruned") > hour:
                raise Changed
            await self._put(raw, "hour", hour, rows)
            await self._driver.execute(raw, self.sql.delete, ("day", hour // HOURS))
        return compare and before != sorted(rows)

    async def days(self, raw: Any) -> list[int]:
        """The days that are over and clean, and not rolled up yet."""
        sealed = await self.state(raw, "sealed")
        hours = await self._driver.fetch(raw, self.sql.made, ("hour", 0, sealed // HOURS * HOURS))
        made = await self._driver.fetch(raw, self.sql.made, ("day", 0, sealed // HOURS))
        dirty = await self.dirty(raw, sealed)
        return sorted({row[0] // HOURS for row in hours} - {row[0] for row in made} - {hour // HOURS for hour in dirty})

    async def day(self, raw: Any, day: int) -> None:
        """Make the roll-ups of a day from those of its hours. Raises Changed."""
        span = day * HOURS, (day + 1) * HOURS
        found: dict[Cell, Tally] = {}
        async with self._driver.reading(raw):
            hours = await self._driver.fetch(raw, self.sql.made, ("hour", *span))
            for dimensions, key1, key2, _, *texts in await self._driver.fetch(raw, self.sql.hours, span):
                place = _PLACES[dimensions]
                cell = Cell(place, (key1, key2)[: len(GROUPINGS[place])], 0)
                tally = Tally.decode(*texts)
                if cell in found:
                    found[cell].add(tally)
                else:
                    found[cell] = tally
        rows = [row_of("day", day, cell, tally) for cell, tally in found.items()]
        async with self._driver.begin(raw):
            await self._put(raw, "day", day, rows)
            if await self._driver.fetch(raw, self.sql.made, ("hour", *span)) != hours:
                raise Changed
