"""Maintenance of the ledger in short steps: rolling up, rebuilding, pruning, deletion of an end user."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from arbstr_asgi.database import values
from arbstr_asgi.database.connections import ConnectionTasks, Work
from arbstr_asgi.database.drivers.base import Driver, describe_error
from arbstr_asgi.database.statements import mark_hour
from arbstr_asgi.errors import LedgerError
from arbstr_asgi.stats.planner import HOUR
from arbstr_asgi.stats.query import Rebuilt
from arbstr_asgi.stats.rollups.builder import STEP_TIMEOUT, RollupBuilder, RowsChanged
from arbstr_asgi.stats.rollups.dirty_hours import DirtyHours
from arbstr_asgi.stats.sql import SqlDialect, SqlParameters
from arbstr_asgi.stats.timezones import period_number, period_start, truncate_bound

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Called with the number of items done, and of all."""
DELETE_BATCH = 200  # rows; holds SQLite's write lock for about 10 ms
_MAX_ATTEMPTS = 50  # for an hour that keeps changing
_RETRY_PAUSE = 0.01  # seconds


class Maintenance:
    """Runs each step on a connection of its own, and pauses after it for `pause_factor` times its duration."""

    def __init__(self, connections: ConnectionTasks, sql_dialect: SqlDialect, *, pause_factor: float = 0.0) -> None:
        self._connections = connections
        self._pause_factor = pause_factor
        self._checked_coarse = False
        self._builder = RollupBuilder(connections.driver, sql_dialect)
        self._retention = Retention(connections.driver, sql_dialect)

    async def roll_up(self, should_continue: Callable[[], Awaitable[bool]] | None = None) -> None:
        """Build all missing roll-ups, newest first, while `should_continue` returns True. Raises LedgerError."""
        hours = await self._step(lambda raw: self._builder.seal(raw, datetime.now(UTC)))
        failed: LedgerError | None = None
        for hour in hours:
            if should_continue is not None and not await should_continue():
                return
            try:
                await self._roll_up_hour(hour, attempts=1)
            except LedgerError as error:  # perhaps too large for a step; go on with the others
                failed = error
        if hours or not self._checked_coarse:
            await self._roll_up_coarse()
            self._checked_coarse = True
        if failed is not None:
            raise failed

    async def rebuild(self, progress: Progress | None) -> Rebuilt:
        """Recompute all closed hours, then the longer periods. Raises LedgerError."""
        await self.roll_up()  # a missing roll-up is not a difference
        hours = await self._step(self._builder.sealed_hours)
        differed = 0
        for done, hour in enumerate(hours):
            differed += await self._roll_up_hour(hour, attempts=_MAX_ATTEMPTS, rebuild=True)
            if progress is not None:
                progress(done + 1, len(hours))
        await self._roll_up_coarse()
        return Rebuilt(len(hours), differed)

    async def prune(self, before: datetime, progress: Progress | None) -> int:
        """Delete the rows of the closed hours before `before`; roll-ups are kept. Raises LedgerError."""
        await self._step(lambda raw: self._builder.seal(raw, datetime.now(UTC)))
        end = min(
            period_number(truncate_bound(before), HOUR),
            await self._step(lambda raw: self._builder.state(raw, "sealed")),
        )
        for _ in range(_MAX_ATTEMPTS):
            for hour in await self._step(lambda raw: self._builder.dirty(raw, end)):
                await self._roll_up_hour(hour, attempts=_MAX_ATTEMPTS)
            if await self._step(lambda raw: self._builder.mark_pruned(raw, end)):
                break
        else:
            raise LedgerError("rows can't be pruned: they are still being written to")
        until = period_start(end, HOUR)
        count = 0 if progress is None else await self._step(lambda raw: self._retention.count(raw, until))
        deleted = 0
        while result := await self._step(lambda raw: self._retention.before(raw, until)):
            deleted += result
            if progress is not None:
                progress(deleted, max(count, deleted))
        return deleted

    async def forget(self, end_user: str) -> dict[str, int]:
        """Delete the rows, attempts and roll-ups of an end user; returns their numbers. Raises LedgerError."""
        deleted = {"requests": 0, "attempts": 0, "rollups": 0}
        while sum(result := await self._step(lambda raw: self._retention.delete_end_user_rows(raw, end_user))):
            deleted["requests"] += result[0]
            deleted["attempts"] += result[1]
        deleted["rollups"] = await self._step(lambda raw: self._builder.forget(raw, end_user))
        return deleted

    async def _roll_up_hour(self, hour: int, *, attempts: int, rebuild: bool = False) -> bool:
        """Roll up an hour; returns whether it differed. An hour that keeps changing stays dirty."""
        for _ in range(attempts):
            try:
                if rebuild:
                    await self._step(lambda raw: self._builder.mark(raw, [hour]))
                return await self._step(lambda raw: self._builder.hour(raw, hour, compare=rebuild))
            except RowsChanged:
                await asyncio.sleep(_RETRY_PAUSE)
        return False

    async def _roll_up_coarse(self) -> None:
        for each in await self._step(self._builder.coarse):
            try:
                await self._step(lambda raw, each=each: self._builder.period(raw, *each))  # type: ignore[misc]
            except RowsChanged:
                continue

    async def _step(self, work: Work[T]) -> T:
        started = time.monotonic()
        try:
            result = await self._connections.run(work, timeout=STEP_TIMEOUT)
        except (RowsChanged, LedgerError):
            raise
        except Exception as error:
            raise LedgerError(
                f"the database can't be tidied: {describe_error(error, self._connections.database)}"
            ) from error
        await asyncio.sleep((time.monotonic() - started) * self._pause_factor)
        return result


class Retention:
    """Deletes rows in small batches, on a raw connection without an open transaction."""

    def __init__(self, driver: Driver, sql_dialect: SqlDialect) -> None:
        self._driver = driver
        self._sql_dialect = sql_dialect
        self._dirty_hours = DirtyHours()
        self._mark = mark_hour(sql_dialect.dialect, sql_dialect.tables.dirty_hours)

    async def count(self, raw: Any, until: datetime) -> int:
        """The number of rows that arrived before `until`."""
        params = SqlParameters(self._sql_dialect.dialect)
        sql = f"SELECT count(*) FROM {self._sql_dialect.requests} WHERE {self._before_condition(params, until)}"  # noqa: S608
        ((count,),) = await self._driver.fetch(raw, sql, params.values)
        return int(count)

    async def before(self, raw: Any, until: datetime) -> int:
        """Delete one batch of rows that arrived before `until`, the oldest first; returns their number."""
        params = SqlParameters(self._sql_dialect.dialect)
        condition = self._before_condition(params, until)
        rows = await self._select(raw, params, f"{condition} ORDER BY {self._sql_dialect.name('timestamp')}")
        async with self._driver.begin(raw):
            await self._delete(raw, rows)
        return len(rows)

    async def delete_end_user_rows(self, raw: Any, end_user: str) -> tuple[int, int]:
        """Delete one batch of rows of an end user, and mark their hours dirty; returns (rows, attempts)."""
        params = SqlParameters(self._sql_dialect.dialect)
        rows = await self._select(raw, params, self._sql_dialect.equals(params, "end_user", end_user))
        marks = self._dirty_hours.marks(values.read_timestamp(row[2]) for row in rows)
        if not rows:
            return 0, 0
        async with self._driver.begin(raw):
            attempts = await self._delete(raw, rows)
            await self._driver.execute_many(raw, self._mark, marks)
        return len(rows), attempts

    def _before_condition(self, params: SqlParameters, until: datetime) -> str:
        return f"{self._sql_dialect.name('timestamp')} < {params.add(self._driver.read_timestamp(until))}"

    async def _select(self, raw: Any, params: SqlParameters, condition: str) -> list[Sequence[Any]]:
        columns = f"id, {self._sql_dialect.name('correlation_id')}, {self._sql_dialect.name('timestamp')}"
        sql = f"SELECT {columns} FROM {self._sql_dialect.requests} WHERE {condition} LIMIT {DELETE_BATCH}"  # noqa: S608
        return await self._driver.fetch(raw, sql, params.values)

    async def _delete(self, raw: Any, rows: list[Sequence[Any]]) -> int:
        """Delete the rows and their attempts; returns the number of attempts."""
        if not rows:
            return 0
        calls, ids = SqlParameters(self._sql_dialect.dialect), SqlParameters(self._sql_dialect.dialect)
        call = self._sql_dialect.name("correlation_id")
        of_calls = (
            f"DELETE FROM {self._sql_dialect.attempts} WHERE {call} IN ({calls.add_all([row[1] for row in rows])})"  # noqa: S608
        )
        of_ids = f"DELETE FROM {self._sql_dialect.requests} WHERE id IN ({ids.add_all([row[0] for row in rows])})"  # noqa: S608
        attempts = await self._driver.execute(raw, of_calls, calls.values)
        await self._driver.execute(raw, of_ids, ids.values)
        return attempts
