"""Read queries and maintenance of the ledger, also for a command that runs beside the writers."""

import asyncio
import contextvars
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import msgspec

from arbstr_asgi._utils import MAX_NAME_CHARACTERS, is_name
from arbstr_asgi.database import values
from arbstr_asgi.database.columns import ATTEMPT_COLUMNS
from arbstr_asgi.database.connections import ConnectionTasks, Work
from arbstr_asgi.database.database import LedgerDatabase
from arbstr_asgi.database.drivers.base import READ_TIMEOUT, Driver, describe_error
from arbstr_asgi.database.statements import Statements, statements
from arbstr_asgi.errors import LedgerError, LedgerUnavailable, RequestError
from arbstr_asgi.stats.pagination import Pagination
from arbstr_asgi.stats.query import ALL_TIME, Filters, Group, Page, Rebuilt, RequestsQuery, StatsQuery, Summary
from arbstr_asgi.stats.reader import StatsReader
from arbstr_asgi.stats.rollups.cache import RollupCache
from arbstr_asgi.stats.rollups.maintenance import Maintenance, Progress
from arbstr_asgi.stats.sql import SqlDialect

T = TypeVar("T")
MAX_CONCURRENT_QUERIES = 2  # leaves connections of the pool to the writer
EXPORT_BATCH = 500  # rows
_CALLS_OF_END_USER = "SELECT correlation_id FROM requests WHERE end_user = ?"
_CHECK_TIMEOUT = 2.0  # seconds
_MAX_LIMIT = 2**63 - 2  # one more still fits 64 bits
_ATTEMPTS = 6  # one more than the pool has connections: each may have been lost while idle
_TIMEOUT_GRACE = 1.0  # seconds beyond the database's own timeout


class QueryRunner:
    """Runs queries on connections of their own, beside the writer, with timeouts and reconnects. Raises LedgerError."""

    def __init__(
        self, connections: ConnectionTasks, statements: Statements, sql_dialect: SqlDialect, cache: RollupCache
    ) -> None:
        self.connections = connections
        self._cache = cache
        self._statements = statements
        self._sql_dialect = sql_dialect

    async def summary(self, query: StatsQuery) -> Summary:
        """Statistics of each group, and of all rows."""
        return await self._run(lambda raw: self._stats_reader().summary(raw, query))

    async def names(self, column: str) -> list[str]:
        """The distinct values of a column, sorted."""
        return await self._run(lambda raw: self._stats_reader().names(raw, column))

    async def page(self, query: RequestsQuery, *, counted: bool = True) -> Page:
        """One page of rows; `total` only if `counted`."""
        pages = Pagination(self.connections.driver, self._sql_dialect, self._cache)
        return await self._run(lambda raw: pages.page(raw, query, with_total=counted))

    async def rows(self, limit: int, correlation_id: str | None) -> list[dict[str, Any]]:
        """The newest rows, or those of one call."""
        since, until = ALL_TIME
        limit = min(max(limit, 0), _MAX_LIMIT)
        filters = Filters(correlation_id=correlation_id)
        query = RequestsQuery(since=since, until=until, filters=filters, limit=limit)
        page = await self.wait(self.page(query, counted=False), READ_TIMEOUT)
        return [{name: value for name, value in row.items() if name != "id"} for row in page.rows]

    async def attempts(self, correlation_id: str) -> list[dict[str, Any]]:
        """The attempts of one call, in order."""
        parameters = (values.identifier(correlation_id),)
        result = await self._fetch(self._statements.select_all_attempts, parameters, READ_TIMEOUT)
        return [values.read(row, ATTEMPT_COLUMNS) for row in result]

    async def check(self) -> None:
        """Read the schema's revision, within two seconds."""
        await self._fetch(self._statements.version, (), _CHECK_TIMEOUT)

    def _stats_reader(self) -> StatsReader:
        return StatsReader(self.connections.driver, self._sql_dialect, self._cache)

    async def _fetch(self, sql: str, parameters: Sequence[Any], timeout: float) -> list[Sequence[Any]]:
        fetch = self.connections.driver.fetch
        return await self.wait(self._run(lambda raw: fetch(raw, sql, parameters), timeout), timeout)

    async def wait(self, query: Awaitable[T], timeout: float) -> T:
        """Await a query for at most `timeout` seconds; a running call of SQLite can not be cancelled."""
        try:
            async with asyncio.timeout(timeout):
                return await query
        except TimeoutError as error:
            raise self._failed(error) from error

    async def _run(self, work: Work[T], timeout: float = READ_TIMEOUT) -> T:
        connections = self.connections
        deadline = asyncio.get_running_loop().time() + timeout
        for attempt in range(_ATTEMPTS):
            remaining = deadline - asyncio.get_running_loop().time()
            try:
                return await connections.run(work, timeout=max(remaining, 0.0))
            except Exception as error:
                if attempt + 1 == _ATTEMPTS or not connections.driver.is_connection_lost(error):
                    raise self._failed(error) from error
        raise AssertionError

    def _failed(self, error: Exception) -> LedgerError:
        return LedgerError(f"the database can't answer: {describe_error(error, self.connections.database)}")


class LedgerQueries(ABC):
    """The queries and the maintenance of an open ledger; subclasses provide the connection."""

    _sql_dialect: SqlDialect
    _query_slots: asyncio.Semaphore
    _cache: RollupCache

    @property
    @abstractmethod
    def spill_folder(self) -> Path:
        """The folder for rows that the database does not accept."""

    @abstractmethod
    async def flush(self) -> None:
        """Wait until everything recorded so far is committed. Raises LedgerError if the ledger is closed before."""

    @abstractmethod
    def _open_reader(self) -> QueryRunner:
        """Raises LedgerError where the ledger is not open, or its database not connected."""

    async def rows(self, *, limit: int = 100, correlation_id: str | None = None) -> list[dict[str, Any]]:
        """The newest committed rows first, or those of one call; values are equal on every database.

        `timestamp` is aware UTC, money is Decimal with nine decimals. Raises LedgerError.
        """
        return await self._open_reader().rows(limit, correlation_id)

    async def attempts(self, correlation_id: str) -> list[dict[str, Any]]:
        """The committed attempts of one call, in order; values as in `rows`. Raises LedgerError."""
        return await self._open_reader().attempts(correlation_id)

    async def stats(self, query: StatsQuery) -> list[Group]:
        """The groups of `summary`; one Group with keys () for a query without `group_by`. Raises LedgerError."""
        return (await self.summary(query)).groups

    async def summary(self, query: StatsQuery) -> Summary:
        """Statistics of each group, and of all rows, from one snapshot of the database. Raises LedgerError.

        Closed hours come from roll-ups, the rest from rows.
        """
        reader = self._open_reader()
        return await self._run_limited(reader, lambda: reader.summary(query))

    async def requests(self, query: RequestsQuery) -> Page:
        """One page of rows, with the total where counting is cheap. Raises LedgerError."""
        reader = self._open_reader()
        return await self._run_limited(reader, lambda: reader.page(query))

    async def export(self, query: RequestsQuery) -> AsyncIterator[dict[str, Any]]:
        """All rows from the page on, batch by batch; values as in `requests`. Raises LedgerError.

        Each batch is a snapshot of its own: a row whose sorted value changes in between may be missed or come twice.
        """
        query = msgspec.structs.replace(query, limit=EXPORT_BATCH)
        while True:
            reader = self._open_reader()
            page = await self._run_limited(reader, partial(reader.page, query, counted=False))
            for row in page.rows:
                yield row
            if page.next is None:
                return
            query = msgspec.structs.replace(query, after=page.next)

    async def distinct(self, column: Literal["model", "provider"]) -> list[str]:
        """The distinct names in this column, sorted. Raises LedgerError."""
        reader = self._open_reader()
        return await self._run_limited(reader, lambda: reader.names(column))

    async def rebuild(self, progress: Progress | None = None) -> Rebuilt:
        """Recompute the roll-ups of all closed hours; `progress(done, total)` counts hours. Raises LedgerError."""
        return await self._maintenance().rebuild(progress)

    async def prune(self, before: datetime, progress: Progress | None = None) -> int:
        """Delete rows and attempts of the closed hours before `before`; roll-ups are kept. Returns the number of rows.

        A row that arrives later for such an hour (from a spill) is in no statistics, and deleted by the next prune.
        Raises LedgerError.
        """
        return await self._maintenance().prune(before, progress)

    async def forget(self, end_user: str) -> dict[str, int]:
        """Delete everything about an end user: `requests`, `attempts`, `rollups`, and `spilled` rows on this machine.

        Returns the number of rows of each. Calls recorded later are kept. Raises LedgerError, and RequestError for
        a name that no row can have.
        """
        if not is_name(end_user):
            message = (
                f"The name of an end user has at most {MAX_NAME_CHARACTERS} characters, no NUL and no lone surrogate."
            )
            raise RequestError(400, message, param="end_user", code="invalid_name")
        maintenance = self._maintenance()
        try:
            await self._flush_with_timeout()
            spilled = await erase_from_spill(self.spill_folder, end_user)
            await self._flush_with_timeout()  # after it, no row that was read from the spill before is pending
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(f"the spill can't be read: {describe_error(error)}") from error
        return {**await maintenance.forget(end_user), "spilled": spilled}

    async def check(self) -> None:
        """Raises LedgerError unless the database answers a cheap query within two seconds."""
        await self._open_reader().check()

    def _maintenance(self) -> Maintenance:
        return Maintenance(self._open_reader().connections, self._sql_dialect)

    async def _run_limited(self, reader: QueryRunner, run: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run at most MAX_CONCURRENT_QUERIES at once; a slot is held until the database is done, even if cancelled."""
        await self._query_slots.acquire()
        task = asyncio.create_task(run(), context=contextvars.Context())
        task.add_done_callback(self._release_slot)
        return await reader.wait(asyncio.shield(task), READ_TIMEOUT + _TIMEOUT_GRACE)

    def _release_slot(self, task: "asyncio.Task[Any]") -> None:
        self._query_slots.release()
        if not task.cancelled():
            task.exception()  # the caller may be gone; retrieving it avoids a warning

    async def _flush_with_timeout(self) -> None:
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                await self.flush()
        except TimeoutError:
            raise LedgerUnavailable("the database does not take what waits for it") from None


class LedgerReader(LedgerQueries):
    """Queries as of a `Ledger`, read-only: it has no queue and no spill of its own."""

    def __init__(self, target: LedgerDatabase, connections: ConnectionTasks, spill: str | None) -> None:
        self._target = target
        self._connections = connections
        self._spill_below = spill
        self._sql_dialect = SqlDialect(target.dialect, target.prefix)
        self._query_slots = asyncio.Semaphore(MAX_CONCURRENT_QUERIES)
        self._cache = RollupCache()

    @property
    def spill_folder(self) -> Path:
        """The folder in which the writers keep rows that the database does not accept."""
        return self._target.spill_folder(self._spill_below)

    async def flush(self) -> None:
        """Does nothing: nothing is recorded here."""

    def _open_reader(self) -> QueryRunner:
        sql = statements(self._target.dialect, self._target.prefix)
        return QueryRunner(self._connections, sql, self._sql_dialect, self._cache)


@asynccontextmanager
async def open_reader(
    url: str, *, table_prefix: str | None = None, spill: str | None = None
) -> AsyncIterator[LedgerReader]:
    """Open the ledger at `url` for the length of a block; `spill` is the folder that the writers are configured with.

    Creates, migrates and replays nothing, and closes no call as abandoned. Raises ConfigError, and LedgerError where
    there is no ledger of this version.
    """
    target = LedgerDatabase.create(url, table_prefix)
    target.check(must_exist=True)
    connections = await target.open(migrate=False, read_only=True)
    try:
        yield LedgerReader(target, connections, spill)
    finally:
        await connections.end(1.0)
        await target.close()


async def erase_from_spill(folder: Path, end_user: str) -> int:
    """Delete the rows of an end user from every spill file of a folder, and VACUUM; returns the number of rows.

    Raises what SQLite raises.
    """
    erased = 0
    for file in _files(folder):
        erased += await _erase(file, end_user)
    return erased


def _files(folder: Path) -> list[str]:
    """The spill files that have ever held a row."""
    return [str(file.absolute()) for file in sorted(folder.glob("*.db")) if file.stat().st_size]


async def _erase(file: str, end_user: str) -> int:
    target = LedgerDatabase.create(f"sqlite:///{quote(file)}", "")
    try:
        connections = await target.open(migrate=True)
        return await connections.run(lambda raw: _delete(target.driver, raw, end_user))
    finally:
        await target.close()


async def _delete(driver: Driver, raw: Any, end_user: str) -> int:
    async with driver.begin(raw):
        await driver.execute(raw, f"DELETE FROM attempts WHERE correlation_id IN ({_CALLS_OF_END_USER})", (end_user,))  # noqa: S608
        erased = await driver.execute(raw, "DELETE FROM requests WHERE end_user = ?", (end_user,))
    await driver.fetch(raw, "VACUUM")  # a deleted row stays in the file until then
    await driver.fetch(raw, "PRAGMA wal_checkpoint(TRUNCATE)")
    return erased
