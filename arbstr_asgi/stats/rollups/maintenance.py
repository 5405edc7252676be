"""Keeps the ledger in order: rolls up, rebuilds and prunes, in steps so small that nobody waits for one."""

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
from arbstr_asgi.stats.rollups.builder import STEP, RollupBuilder, RowsChanged
from arbstr_asgi.stats.rollups.dirty_hours import DirtyHours
from arbstr_asgi.stats.sql import SqlDialect, SqlParameters
from arbstr_asgi.stats.timezones import bound, number_of, start_of

AT_ONCE = 200  # rows: SQLite's write lock is then held for some ten milliseconds
_TRIES = 50  # for one hour that somebody keeps writing to
_SHORTEST_PAUSE = 0.01  # seconds


class Retention:
    """Works on a raw connection that is in no transaction."""

    def __init__(self, driver: Driver, fragments: SqlDialect) -> None:
        self._driver = driver
        self._fragments = fragments
        self._marker = DirtyHours()
        self._mark = mark_hour(fragments.dialect, fragments.tables.dirty_hours)

    async def count(self, raw: Any, until: datetime) -> int:
        """How many rows arrived before."""
        asking = SqlParameters(self._fragments.dialect)
        sql = f"SELECT count(*) FROM {self._fragments.requests} WHERE {self._earlier(asking, until)}"  # noqa: S608
        ((count,),) = await self._driver.fetch(raw, sql, asking.parameters)
        return int(count)

    async def before(self, raw: Any, until: datetime) -> int:
        """Delete some rows that arrived earlier, the oldest first; returns how many."""
        asking = SqlParameters(self._fragments.dialect)
        condition = self._earlier(asking, until)
        rows = await self._some(raw, asking, f"{condition} ORDER BY {self._fragments.name('timestamp')}")
        async with self._driver.begin(raw):
            await self._delete(raw, rows)
        return len(rows)

    async def of_person(self, raw: Any, end_user: str) -> tuple[int, int]:
        """Delete some rows of an end user, and have their hours rolled up again; rows and attempts."""
        asking = SqlParameters(self._fragments.dialect)
        rows = await self._some(raw, asking, self._fragments.equals(asking, "end_user", end_user))
        marks = self._marker.of(values.read_timestamp(row[2]) for row in rows)
        if not rows:
            return 0, 0
        async with self._driver.begin(raw):
            attempts = await self._delete(raw, rows)
            await self._driver.execute_many(raw, self._mark, marks)
        return len(rows), attempts

    def _earlier(self, asking: SqlParameters, until: datetime) -> str:
        return f"{self._fragments.name('timestamp')} < {asking.add(self._driver.read_timestamp(until))}"

    async def _some(self, raw: Any, asking: SqlParameters, condition: str) -> list[Sequence[Any]]:
        columns = f"id, {self._fragments.name('correlation_id')}, {self._fragments.name('timestamp')}"
        sql = f"SELECT {columns} FROM {self._fragments.requests} WHERE {condition} LIMIT {AT_ONCE}"  # noqa: S608
        return await self._driver.fetch(raw, sql, asking.parameters)

    async def _delete(self, raw: Any, rows: list[Sequence[Any]]) -> int:
        """Returns the number of attempts."""
        if not rows:
            return 0
        calls, ids = SqlParameters(self._fragments.dialect), SqlParameters(self._fragments.dialect)
        call = self._fragments.name("correlation_id")
        of_calls = f"DELETE FROM {self._fragments.attempts} WHERE {call} IN ({calls.add_all([row[1] for row in rows])})"  # noqa: S608
        of_ids = f"DELETE FROM {self._fragments.requests} WHERE id IN ({ids.add_all([row[0] for row in rows])})"  # noqa: S608
        attempts = await self._driver.execute(raw, of_calls, calls.parameters)
        await self._driver.execute(raw, of_ids, ids.parameters)
        return attempts


T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Hears how much is done, and how much there is."""


class Maintenance:
    """Each step on a connection of its own, with a pause behind it that is as long as the step was times `rest`."""

    def __init__(self, sessions: ConnectionTasks, fragments: SqlDialect, *, rest: float = 0.0) -> None:
        self._sessions = sessions
        self._rest = rest
        self._looked_for_coarse = False
        self._roller = RollupBuilder(sessions.driver, fragments)
        self._removal = Retention(sessions.driver, fragments)

    async def roll_up(self, proceed: Callable[[], Awaitable[bool]] | None = None) -> None:
        """Make all roll-ups that can be made, the newest first, as long as `proceed` agrees. Raises LedgerError."""
        hours = await self._step(lambda raw: self._roller.seal(raw, datetime.now(UTC)))
        failed: LedgerError | None = None
        for hour in hours:
            if proceed is not None and not await proceed():
                return
            try:
                await self._hour(hour, tries=1)
            except LedgerError as error:  # too large for a step, perhaps: the others must not wait for it
                failed = error
        if hours or not self._looked_for_coarse:
            await self._coarse()
            self._looked_for_coarse = True
        if failed is not None:
            raise failed

    async def rebuild(self, progress: Progress | None) -> Rebuilt:
        """Compute every closed hour again, and the longer periods. Raises LedgerError."""
        await self.roll_up()  # what has only been waiting for that is not wrong
        hours = await self._step(self._roller.closed_hours)
        differed = 0
        for done, hour in enumerate(hours):
            differed += await self._hour(hour, tries=_TRIES, again=True)
            if progress is not None:
                progress(done + 1, len(hours))
        await self._coarse()
        return Rebuilt(len(hours), differed)

    async def prune(self, before: datetime, progress: Progress | None) -> int:
        """Delete the rows of the whole, closed hours before; their roll-ups stay. Raises LedgerError."""
        await self._step(lambda raw: self._roller.seal(raw, datetime.now(UTC)))
        end = min(number_of(bound(before), HOUR), await self._step(lambda raw: self._roller.state(raw, "sealed")))
        for _ in range(_TRIES):
            for hour in await self._step(lambda raw: self._roller.dirty(raw, end)):
                await self._hour(hour, tries=_TRIES)
            if await self._step(lambda raw: self._roller.give_up(raw, end)):
                break
        else:
            raise LedgerError("rows can't be pruned: they are still being written to")
        until = start_of(end, HOUR)
        count = 0 if progress is None else await self._step(lambda raw: self._removal.count(raw, until))
        removed = 0
        while found := await self._step(lambda raw: self._removal.before(raw, until)):
            removed += found
            if progress is not None:
                progress(removed, max(count, removed))
        return removed

    async def forget(self, end_user: str) -> dict[str, int]:
        """Delete what is about a person from the database: rows, attempts and roll-ups. Raises LedgerError."""
        removed = {"requests": 0, "attempts": 0, "rollups": 0}
        while sum(found := await self._step(lambda raw: self._removal.of_person(raw, end_user))):
            removed["requests"] += found[0]
            removed["attempts"] += found[1]
        removed["rollups"] = await self._step(lambda raw: self._roller.forget(raw, end_user))
        return removed

    async def _hour(self, hour: int, *, tries: int, again: bool = False) -> bool:
        """Whether the roll-ups of an hour had been wrong; where it keeps changing, it stays dirty."""
        for _ in range(tries):
            try:
                if again:
                    await self._step(lambda raw: self._roller.mark(raw, [hour]))
                return await self._step(lambda raw: self._roller.hour(raw, hour, compare=again))
            except RowsChanged:
                await asyncio.sleep(_SHORTEST_PAUSE)
        return False

    async def _coarse(self) -> None:
        for each in await self._step(self._roller.coarse):
            try:
                await self._step(lambda raw, each=each: self._roller.period(raw, *each))  # type: ignore[misc]
            except RowsChanged:
                continue

    async def _step(self, work: Work[T]) -> T:
        begun = time.monotonic()
        try:
            found = await self._sessions.run(work, timeout=STEP)
        except (RowsChanged, LedgerError):
            raise
        except Exception as error:
            raise LedgerError(
                f"the database can't be tidied: {describe_error(error, self._sessions.database)}"
            ) from error
        await asyncio.sleep((time.monotonic() - begun) * self._rest)
        return found
