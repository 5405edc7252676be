"""Builds roll-ups: hours from rows, longer periods from hours. Each step is idempotent, and safe in any process."""

import secrets
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from arbstr_asgi._utils import in_batches
from arbstr_asgi.database.drivers.base import Driver
from arbstr_asgi.database.statements import mark_hour
from arbstr_asgi.database.values import Row
from arbstr_asgi.stats.aggregates import IN_MEMORY_ROWS, Aggregate, Cell
from arbstr_asgi.stats.planner import COARSE, COUNTED, GROUPINGS, HOUR, derived_groupings
from arbstr_asgi.stats.rollups.statements import RollupStatements, row_of
from arbstr_asgi.stats.sql import SqlDialect, SqlParameters, key_of
from arbstr_asgi.stats.timezones import period_number, period_start
from arbstr_asgi.stats.totals import Totals

SEAL_DELAY = timedelta(minutes=5)  # after the end of an hour, for late rows
STEP_TIMEOUT = 60.0  # seconds
_PLACES = {",".join(grouping): index for index, grouping in enumerate(GROUPINGS)}


class RowsChanged(Exception):
    """The hour was written to, or rolled up, by another process in the meantime."""


class RollupBuilder:
    """Works on a raw connection without an open transaction."""

    def __init__(self, driver: Driver, sql_dialect: SqlDialect) -> None:
        self._driver = driver
        self._sql_dialect = sql_dialect
        self.sql = RollupStatements(sql_dialect)
        self._mark = mark_hour(sql_dialect.dialect, sql_dialect.tables.dirty_hours)
        self._aggregates = {
            in_memory: Aggregate(sql_dialect, COUNTED, in_memory=in_memory) for in_memory in (True, False)
        }

    async def state(self, raw: Any, name: str) -> int:
        """The first hour that is not `sealed` or not `pruned` yet."""
        ((total,),) = await self._driver.fetch(raw, self.sql.state, (name,))
        return int(total)

    async def seal(self, raw: Any, now: datetime) -> list[int]:
        """Seal the hours that ended SEAL_DELAY ago: mark those with rows dirty. Returns all dirty hours, newest first.

        Every hour with rows is marked, because a process of an older version leaves no marks.
        """
        sealed, ended = await self.state(raw, "sealed"), period_number(now - SEAL_DELAY, HOUR)
        if ended > sealed:
            hours = await self.hours_with_rows(raw, sealed, ended)
            async with self._driver.begin(raw):
                await self.mark(raw, hours)
                await self._driver.execute(raw, self.sql.raise_state, (ended, "sealed", ended))
        return await self.dirty(raw, max(sealed, ended))

    async def mark(self, raw: Any, hours: Iterable[int]) -> None:
        """Mark hours as dirty."""
        marks = [(hour, 0, secrets.randbits(63)) for hour in hours]
        if marks:
            await self._driver.execute_many(raw, self._mark, marks)

    async def dirty(self, raw: Any, end: int) -> list[int]:
        """The dirty hours before `end` that are not pruned, newest first."""
        pruned = await self.state(raw, "pruned")
        return [int(row[0]) for row in await self._driver.fetch(raw, self.sql.dirty, (pruned, end))][::-1]

    async def hour(self, raw: Any, hour: int, *, compare: bool = False) -> bool:
        """Roll up a closed hour; returns whether stored roll-ups differed (with `compare`). Raises RowsChanged."""
        async with self._driver.reading(raw, STEP_TIMEOUT):
            marks = await self._driver.fetch(raw, self.sql.marks, (hour,))
            rows = await self._aggregate_hour(raw, hour)
            previous = await self._read_stored(raw, hour) if compare else []
        async with self._driver.begin(raw):
            for writer, mark in marks:
                if not await self._driver.execute(raw, self.sql.unmark, (hour, writer, mark)):
                    raise RowsChanged
            if not marks or await self.state(raw, "pruned") > hour:
                raise RowsChanged
            await self._new_generation(raw, "hour")
            await self._replace_rollups(raw, "hour", hour, rows)
            for period, hours in COARSE.items():
                await self._driver.execute(raw, self.sql.delete, (period, hour // hours))
        return compare and previous != sorted(rows)

    async def coarse(self, raw: Any) -> list[tuple[str, int]]:
        """The longer periods that are over, have no dirty hour and no roll-up yet: (period, number)."""
        sealed = await self.state(raw, "sealed")
        sealed_hours = await self._driver.fetch(raw, self.sql.existing_periods, ("hour", 0, sealed))
        dirty, result = await self.dirty(raw, sealed), []
        for period, hours in COARSE.items():
            existing_periods = await self._driver.fetch(raw, self.sql.existing_periods, (period, 0, sealed // hours))
            ended = {row[0] // hours for row in sealed_hours if row[0] // hours < sealed // hours}
            missing = ended - {row[0] for row in existing_periods} - {hour // hours for hour in dirty}
            result += [(period, number) for number in sorted(missing)]
        return result

    async def period(self, raw: Any, period: str, number: int) -> None:
        """Roll up a longer period from its hours. Raises RowsChanged."""
        parts_by_cell: dict[Cell, list[Totals]] = {}
        async with self._driver.reading(raw, STEP_TIMEOUT):
            generations = await self._driver.fetch(raw, self.sql.generations)
            (generation,) = (each for name, each in generations if name == "hour")
            bounds = number * COARSE[period], (number + 1) * COARSE[period]
            async for batch in in_batches(await self._driver.fetch(raw, self.sql.hours, bounds)):
                for dimensions, key1, key2, _, *texts in batch:
                    grouping = _PLACES[dimensions]
                    cell, totals = Cell(grouping, (key1, key2)[: len(GROUPINGS[grouping])], 0), Totals.decode(*texts)
                    parts_by_cell.setdefault(cell, []).append(totals)
        result = [(cell, Totals.sum(of)) async for batch in in_batches([*parts_by_cell.items()]) for cell, of in batch]
        rows = [row_of(period, number, *each) async for batch in in_batches(result) for each in batch]
        async with self._driver.begin(raw):
            if not await self._driver.execute(raw, self.sql.next_generation, (_generation(), "hour", generation)):
                raise RowsChanged
            await self._new_generation(raw, period)
            await self._replace_rollups(raw, period, number, rows)

    async def hours_with_rows(self, raw: Any, first: int, end: int) -> list[int]:
        """The hours from `first` to before `end` that have rows, oldest first."""
        params = SqlParameters(self._sql_dialect.dialect)
        bounds = [self._driver.read_timestamp(period_start(hour, HOUR)) for hour in (first, end)]
        sql = f"SELECT DISTINCT {self._sql_dialect.period(HOUR)} FROM {self._sql_dialect.requests} "  # noqa: S608 - no values
        sql += f"WHERE {self._sql_dialect.between(params, *bounds)}"
        return sorted(int(row[0]) for row in await self._driver.fetch(raw, sql, params.values))

    async def sealed_hours(self, raw: Any) -> list[int]:
        """The sealed hours that are not pruned and have rows or roll-ups."""
        bounds = await self.state(raw, "pruned"), await self.state(raw, "sealed")
        existing_periods = await self._driver.fetch(raw, self.sql.existing_periods, ("hour", *bounds))
        return sorted({*await self.hours_with_rows(raw, *bounds), *(int(row[0]) for row in existing_periods)})

    async def mark_pruned(self, raw: Any, end: int) -> bool:
        """Declare the hours before `end` pruned (roll-ups only); False where one of them is dirty."""
        async with self._driver.begin(raw):
            previous = await self.state(raw, "pruned")
            clean = not await self._driver.fetch(raw, self.sql.dirty, (previous, end))
            if clean:
                await self._driver.execute(raw, self.sql.raise_state, (end, "pruned", end))
                await self._driver.execute(raw, self.sql.forget_marks, (end,))
        return clean

    async def forget(self, raw: Any, end_user: str) -> int:
        """Delete the roll-ups of an end user; returns the number of rows."""
        async with self._driver.begin(raw):
            for period in ("hour", *COARSE):  # same lock order as elsewhere: hour first
                await self._new_generation(raw, period)
            return await self._driver.execute(raw, self.sql.forget, (key_of(end_user),))

    async def _aggregate_hour(self, raw: Any, hour: int) -> list[Row]:
        params = SqlParameters(self._sql_dialect.dialect)
        bounds = [self._driver.read_timestamp(period_start(number, HOUR)) for number in (hour, hour + 1)]
        counted = self._sql_dialect.count_up_to(
            params, [self._sql_dialect.between(params, *bounds)], IN_MEMORY_ROWS + 1
        )
        ((count,),) = await self._driver.fetch(raw, counted, params.values)
        aggregate, params = self._aggregates[count <= IN_MEMORY_ROWS], SqlParameters(self._sql_dialect.dialect)
        sql = aggregate.sql(params, [self._sql_dialect.between(params, *bounds)])
        result: dict[Cell, Totals] = {}
        async for batch in in_batches(await self._driver.fetch(raw, sql, params.values)):
            aggregate.add_rows(batch, result)
        result = {cell._replace(grouping=GROUPINGS.index(COUNTED[cell.grouping])): result[cell] for cell in result}
        for index, finer, keys in derived_groupings():
            of: dict[Cell, list[Totals]] = {}
            for cell in result:
                if cell.grouping == finer:
                    of.setdefault(Cell(index, tuple(cell.keys[key] for key in keys), 0), []).append(result[cell])
            async for batch in in_batches([*of.items()]):
                result |= {cell: Totals.sum(parts) for cell, parts in batch}
        cells = [(cell, totals) for cell, totals in result.items() if totals.total]
        return [row_of("hour", hour, cell, totals) async for batch in in_batches(cells) for cell, totals in batch]

    async def _read_stored(self, raw: Any, hour: int) -> list[Row]:
        result = await self._driver.fetch(raw, self.sql.hours, (hour, hour + 1))
        return sorted(("hour", dimensions, hour, *rest) for dimensions, *rest in result)

    async def _new_generation(self, raw: Any, period: str) -> None:
        """Change the generation of these periods, which invalidates caches."""
        await self._driver.execute(raw, self.sql.new_generation, (_generation(), period))

    async def _replace_rollups(self, raw: Any, period: str, start: int, rows: list[Row]) -> None:
        await self._driver.execute(raw, self.sql.delete, (period, start))
        if rows:
            await self._driver.execute_many(raw, self.sql.insert, rows)


def _generation() -> int:
    """A random number, no counter: after a restore of the database a counter could repeat a cached number."""
    return secrets.randbits(63)
