"""Makes roll-ups: hours from rows, longer periods from hours; each step can be done again, and by anybody."""

import secrets
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from arbstr_asgi._utils import in_batches
from arbstr_asgi.database.drivers.base import Driver
from arbstr_asgi.database.statements import mark_hour
from arbstr_asgi.database.values import Row
from arbstr_asgi.stats.aggregates import FEW, Aggregate, Cell
from arbstr_asgi.stats.planner import COARSE, COUNTED, GROUPINGS, HOUR, coarser
from arbstr_asgi.stats.rollups.statements import RollupStatements, row_of
from arbstr_asgi.stats.sql import SqlDialect, SqlParameters, key_of
from arbstr_asgi.stats.timezones import number_of, start_of
from arbstr_asgi.stats.totals import Totals

LAG = timedelta(minutes=5)  # from an hour's end to its roll-up: until then what belongs to it may still come
STEP = 60.0  # seconds at most for one of the works here
_PLACES = {",".join(grouping): place for place, grouping in enumerate(GROUPINGS)}


class RowsChanged(Exception):
    """Somebody has written to the hour, or rolled it up, in the meantime."""


class RollupBuilder:
    """Works on a raw connection that is in no transaction."""

    def __init__(self, driver: Driver, fragments: SqlDialect) -> None:
        self._driver = driver
        self._fragments = fragments
        self.sql = RollupStatements(fragments)
        self._mark = mark_hour(fragments.dialect, fragments.tables.dirty_hours)
        self._aggregates = {few: Aggregate(fragments, COUNTED, few=few) for few in (True, False)}

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
            hours = await self.hours_with_rows(raw, sealed, over)
            async with self._driver.begin(raw):
                await self.mark(raw, hours)
                await self._driver.execute(raw, self.sql.raise_state, (over, "sealed", over))
        return await self.dirty(raw, max(sealed, over))

    async def mark(self, raw: Any, hours: Iterable[int]) -> None:
        """Have these hours rolled up."""
        marks = [(hour, 0, secrets.randbits(63)) for hour in hours]
        if marks:
            await self._driver.execute_many(raw, self._mark, marks)

    async def dirty(self, raw: Any, end: int) -> list[int]:
        """The hours before `end` whose roll-ups are to be made, the newest first."""
        pruned = await self.state(raw, "pruned")
        return [int(row[0]) for row in await self._driver.fetch(raw, self.sql.dirty, (pruned, end))][::-1]

    async def hour(self, raw: Any, hour: int, *, compare: bool = False) -> bool:
        """Make the roll-ups of a closed hour; with `compare` whether others stood there. Raises Changed."""
        async with self._driver.reading(raw, STEP):
            marks = await self._driver.fetch(raw, self.sql.marks, (hour,))
            rows = await self._of_rows(raw, hour)
            before = await self._stored(raw, hour) if compare else []
        async with self._driver.begin(raw):
            for writer, mark in marks:
                if not await self._driver.execute(raw, self.sql.unmark, (hour, writer, mark)):
                    raise RowsChanged
            if not marks or await self.state(raw, "pruned") > hour:
                raise RowsChanged
            await self._renew(raw, "hour")
            await self._put(raw, "hour", hour, rows)
            for period, hours in COARSE.items():
                await self._driver.execute(raw, self.sql.delete, (period, hour // hours))
        return compare and before != sorted(rows)

    async def coarse(self, raw: Any) -> list[tuple[str, int]]:
        """The longer periods that are over and clean, and not rolled up yet: which, and their numbers."""
        sealed = await self.state(raw, "sealed")
        closed = await self._driver.fetch(raw, self.sql.made, ("hour", 0, sealed))
        dirty, found = await self.dirty(raw, sealed), []
        for period, hours in COARSE.items():
            made = await self._driver.fetch(raw, self.sql.made, (period, 0, sealed // hours))
            over = {row[0] // hours for row in closed if row[0] // hours < sealed // hours}
            left = over - {row[0] for row in made} - {hour // hours for hour in dirty}
            found += [(period, number) for number in sorted(left)]
        return found

    async def period(self, raw: Any, period: str, number: int) -> None:
        """Make the roll-ups of a longer period from those of its hours. Raises Changed."""
        of_hours: dict[Cell, list[Totals]] = {}
        async with self._driver.reading(raw, STEP):
            known = await self._driver.fetch(raw, self.sql.generations)
            (generation,) = (each for name, each in known if name == "hour")
            span = number * COARSE[period], (number + 1) * COARSE[period]
            async for some in in_batches(await self._driver.fetch(raw, self.sql.hours, span)):
                for dimensions, key1, key2, _, *texts in some:
                    grouping = _PLACES[dimensions]
                    cell, tally = Cell(grouping, (key1, key2)[: len(GROUPINGS[grouping])], 0), Totals.decode(*texts)
                    of_hours.setdefault(cell, []).append(tally)
        found = [(cell, Totals.sum(of)) async for some in in_batches([*of_hours.items()]) for cell, of in some]
        rows = [row_of(period, number, *each) async for some in in_batches(found) for each in some]
        async with self._driver.begin(raw):
            if not await self._driver.execute(raw, self.sql.next_generation, (_generation(), "hour", generation)):
                raise RowsChanged
            await self._renew(raw, period)
            await self._put(raw, period, number, rows)

    async def hours_with_rows(self, raw: Any, first: int, end: int) -> list[int]:
        """The hours from `first` to before `end` that have rows, oldest first."""
        asking = SqlParameters(self._fragments.dialect)
        bounds = [self._driver.read_timestamp(start_of(hour, HOUR)) for hour in (first, end)]
        sql = f"SELECT DISTINCT {self._fragments.period(HOUR)} FROM {self._fragments.requests} "  # noqa: S608 - no values
        sql += f"WHERE {self._fragments.between(asking, *bounds)}"
        return sorted(int(row[0]) for row in await self._driver.fetch(raw, sql, asking.parameters))

    async def closed_hours(self, raw: Any) -> list[int]:
        """The hours that have rows or roll-ups, as far as they are sealed and not pruned."""
        span = await self.state(raw, "pruned"), await self.state(raw, "sealed")
        made = await self._driver.fetch(raw, self.sql.made, ("hour", *span))
        return sorted({*await self.hours_with_rows(raw, *span), *(int(row[0]) for row in made)})

    async def give_up(self, raw: Any, end: int) -> bool:
        """From now on the hours before `end` have roll-ups alone; False where one of them is dirty."""
        async with self._driver.begin(raw):
            before = await self.state(raw, "pruned")
            clean = not await self._driver.fetch(raw, self.sql.dirty, (before, end))
            if clean:
                await self._driver.execute(raw, self.sql.raise_state, (end, "pruned", end))
                await self._driver.execute(raw, self.sql.forget_marks, (end,))
        return clean

    async def forget(self, raw: Any, end_user: str) -> int:
        """Delete the roll-ups of a person; returns how many."""
        async with self._driver.begin(raw):
            for period in ("hour", *COARSE):  # in the order in which others take them: hour first
                await self._renew(raw, period)
            return await self._driver.execute(raw, self.sql.forget, (key_of(end_user),))

    async def _of_rows(self, raw: Any, hour: int) -> list[Row]:
        asking = SqlParameters(self._fragments.dialect)
        bounds = [self._driver.read_timestamp(start_of(number, HOUR)) for number in (hour, hour + 1)]
        counted = self._fragments.counting(asking, [self._fragments.between(asking, *bounds)], FEW + 1)
        ((count,),) = await self._driver.fetch(raw, counted, asking.parameters)
        aggregate, asking = self._aggregates[count <= FEW], SqlParameters(self._fragments.dialect)
        sql = aggregate.sql(asking, [self._fragments.between(asking, *bounds)])
        found: dict[Cell, Totals] = {}
        async for some in in_batches(await self._driver.fetch(raw, sql, asking.parameters)):
            aggregate.read(some, found)
        found = {cell._replace(grouping=GROUPINGS.index(COUNTED[cell.grouping])): found[cell] for cell in found}
        for place, finer, keys in coarser():
            of: dict[Cell, list[Totals]] = {}
            for cell in found:
                if cell.grouping == finer:
                    of.setdefault(Cell(place, tuple(cell.keys[key] for key in keys), 0), []).append(found[cell])
            async for some in in_batches([*of.items()]):
                found |= {cell: Totals.sum(tallies) for cell, tallies in some}
        cells = [(cell, tally) for cell, tally in found.items() if tally.total]
        return [row_of("hour", hour, cell, tally) async for some in in_batches(cells) for cell, tally in some]

    async def _stored(self, raw: Any, hour: int) -> list[Row]:
        found = await self._driver.fetch(raw, self.sql.hours, (hour, hour + 1))
        return sorted(("hour", dimensions, hour, *rest) for dimensions, *rest in found)

    async def _renew(self, raw: Any, period: str) -> None:
        """Say that roll-ups of such a period have changed."""
        await self._driver.execute(raw, self.sql.new_generation, (_generation(), period))

    async def _put(self, raw: Any, period: str, start: int, rows: list[Row]) -> None:
        await self._driver.execute(raw, self.sql.delete, (period, start))
        if rows:
            await self._driver.execute_many(raw, self.sql.insert, rows)


def _generation() -> int:
    """Not counted: a database that was restored must not come to a number that somebody remembers."""
    return secrets.randbits(63)
