"""Deletes rows and their attempts, a few at a time."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from arbstr_asgi.ledger import values
from arbstr_asgi.ledger.driver import Driver
from arbstr_asgi.ledger.fragments import SqlParameters, SqlDialect
from arbstr_asgi.ledger.marks import DirtyHours
from arbstr_asgi.ledger.statements import mark_hour

AT_ONCE = 200  # rows: SQLite's write lock is then held for some ten milliseconds


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
