"""The half of the ledger that answers and tidies up, also for a command beside running writers."""

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

from arbstr_asgi.database import values
from arbstr_asgi.database.columns import ATTEMPT_COLUMNS
from arbstr_asgi.database.connections import ConnectionTasks
from arbstr_asgi.database.database import LedgerDatabase
from arbstr_asgi.database.drivers.base import READ_TIMEOUT, Driver, describe_error
from arbstr_asgi.database.statements import Statements, statements
from arbstr_asgi.errors import LedgerError, LedgerUnavailable
from arbstr_asgi.stats.pagination import Pagination
from arbstr_asgi.stats.query import Group, Page, Rebuilt, RequestsQuery, StatsQuery, Summary
from arbstr_asgi.stats.reader import StatsReader
from arbstr_asgi.stats.rollups.cache import RollupCache
from arbstr_asgi.stats.rollups.maintenance import Maintenance, Progress
from arbstr_asgi.stats.sql import SqlDialect

_CALLS_OF_END_USER = "SELECT correlation_id FROM requests WHERE end_user = ?"
_CHECK_TIMEOUT = 2.0  # seconds
_ATTEMPTS = 6  # one more than our pool has connections: each may have died unnoticed while it was idle
MAX_CONCURRENT_QUERIES = 2  # questions that take long; the others wait, so that the pool has connections for the writer
_TIMEOUT_GRACE = 1.0  # seconds from when the database is to give up until nobody waits for it any more
EXPORT_BATCH = 500  # rows in memory


async def erase_from_spill(folder: Path, end_user: str) -> int:
    """Delete the rows of an end user from every spill, and what SQLite keeps of them; returns how many.

    Raises what SQLite raises.
    """
    erased = 0
    for file in _files(folder):
        erased += await _erase(file, values.text(end_user, 255))
    return erased


def _files(folder: Path) -> list[str]:
    """The ones that have ever held a row."""
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
    await driver.fetch(raw, "VACUUM")  # a deleted row stays in its file until then
    await driver.fetch(raw, "PRAGMA wal_checkpoint(TRUNCATE)")
    return erased


T = TypeVar("T")
Q = TypeVar("Q")


class QueryRunner:
    """Queries on connections of their own, beside the writer."""

    def __init__(
        self, connections: ConnectionTasks, statements: Statements, sql_dialect: SqlDialect, cache: RollupCache
    ) -> None:
        self.connections = connections
        self._cache = cache
        self._statements = statements
        self._sql_dialect = sql_dialect

    async def groups(self, query: StatsQuery) -> list[Group]:
        """Figures. Raises LedgerError."""
        return await self._run(self._stats_reader().groups, query)

    async def summary(self, query: StatsQuery) -> Summary:
        """Figures of the groups and of everything. Raises LedgerError."""
        return await self._run(self._stats_reader().summary, query)

    async def names(self, column: str) -> list[str]:
        """The values of a column, sorted. Raises LedgerError."""
        return await self._run(self._stats_reader().names, column)

    async def page(self, query: RequestsQuery, *, counted: bool = True) -> Page:
        """One page. Raises LedgerError."""
        pages = Pagination(self.connections.driver, self._sql_dialect, self._cache)
        return await self._run(pages.page if counted else pages.uncounted, query)

    async def rows(self, limit: int, correlation_id: str | None) -> list[dict[str, Any]]:
        """The newest rows, or those of one call. Raises LedgerError."""
        limit = min(max(limit, 0), 2**63 - 1)
        if correlation_id is None:
            result = await self._fetch(self._statements.newest, (limit,), READ_TIMEOUT)
        else:
            parameters = (values.identifier(correlation_id), limit)
            result = await self._fetch(self._statements.of_call, parameters, READ_TIMEOUT)
        return [values.read(row) for row in result]

    async def attempts(self, correlation_id: str) -> list[dict[str, Any]]:
        """The attempts of one call, in their order. Raises LedgerError."""
        parameters = (values.identifier(correlation_id),)
        result = await self._fetch(self._statements.select_attempts(1), parameters, READ_TIMEOUT)
        return [values.read(row, ATTEMPT_COLUMNS) for row in result]

    async def check(self) -> None:
        """Raises LedgerError unless the schema's version can be read in two seconds."""
        await self._fetch(self._statements.version, (), _CHECK_TIMEOUT)

    def _stats_reader(self) -> StatsReader:
        return StatsReader(self.connections.driver, self._sql_dialect, self._cache)

    async def _fetch(self, sql: str, parameters: Sequence[Any], timeout: float) -> list[Sequence[Any]]:
        fetch = self.connections.driver.fetch
        query = self._run(lambda raw, result: fetch(raw, sql, result), parameters, timeout)
        return await self.wait(query, timeout)

    async def wait(self, query: Awaitable[T], timeout: float) -> T:
        """An answer, waited for no longer than this: SQLite's calls can't be given up. Raises LedgerError."""
        try:
            async with asyncio.timeout(timeout):
                return await query
        except TimeoutError as error:
            raise self._failed(error) from error

    async def _run(self, work: Callable[[Any, Q], Awaitable[T]], query: Q, timeout: float = READ_TIMEOUT) -> T:
        connections = self.connections

        async def run(raw: Any) -> T:
            return await work(raw, query)

        deadline = asyncio.get_running_loop().time() + timeout
        for attempt in range(_ATTEMPTS):
            remaining = deadline - asyncio.get_running_loop().time()
            try:
                return await connections.run(run, timeout=max(remaining, 0.0))
            except Exception as error:
                if attempt + 1 == _ATTEMPTS or not connections.driver.is_connection_lost(error):
                    raise self._failed(error) from error
        raise AssertionError

    def _failed(self, error: Exception) -> LedgerError:
        return LedgerError(f"the database can't answer: {describe_error(error, self.connections.database)}")


class LedgerQueries(ABC):
    """What can be asked of an open ledger; it says itself what is open."""

    _sql_dialect: SqlDialect
    _query_slots: asyncio.Semaphore
    _cache: RollupCache

    @property
    @abstractmethod
    def spill_folder(self) -> Path:
        """Where rows wait on disk while the database can't take them."""

    @abstractmethod
    async def flush(self) -> None:
        """Return when everything recorded so far is committed. Raises LedgerError if it is closed before."""

    @abstractmethod
    def _open_reader(self) -> QueryRunner:
        """Raises LedgerError where there is none."""

    async def rows(self, *, limit: int = 100, correlation_id: str | None = None) -> list[dict[str, Any]]:
        """The newest committed rows first, or those of one call; the values are equal on every database.

        `timestamp` is aware UTC, money Decimal with nine decimals. Raises LedgerError.
        """
        return await self._open_reader().rows(limit, correlation_id)

    async def attempts(self, correlation_id: str) -> list[dict[str, Any]]:
        """The committed attempts of one call, in their order; values as in `rows`. Raises LedgerError."""
        return await self._open_reader().attempts(correlation_id)

    async def stats(self, query: StatsQuery) -> list[Group]:
        """Figures, grouped; one Group with keys () where not. Raises LedgerError.

        One state of the database, all that is committed in it: closed hours come from roll-ups, the rest from rows.
        """
        reader = self._open_reader()
        return await self._run_limited(reader, lambda: reader.groups(query))

    async def summary(self, query: StatsQuery) -> Summary:
        """What `stats` says, and the figures of all rows in the same state of the database. Raises LedgerError."""
        reader = self._open_reader()
        return await self._run_limited(reader, lambda: reader.summary(query))

    async def requests(self, query: RequestsQuery) -> Page:
        """One page of rows, and how many there are where that is quickly said. Raises LedgerError."""
        reader = self._open_reader()
        return await self._run_limited(reader, lambda: reader.page(query))

    async def export(self, query: RequestsQuery) -> AsyncIterator[dict[str, Any]]:
        """All rows from the page on, however many, as in `requests`; few are in memory. Raises LedgerError.

        Each few are one state of the database; a row whose sorted value changes meanwhile may be missed or come twice.
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
        """The names that rows have had in this column, sorted. Raises LedgerError."""
        reader = self._open_reader()
        return await self._run_limited(reader, lambda: reader.names(column))

    async def rebuild(self, progress: Progress | None = None) -> Rebuilt:
        """Compute the roll-ups of all closed hours again. `progress` hears hours done and to do. Raises LedgerError."""
        return await self._maintenance().rebuild(progress)

    async def prune(self, before: datetime, progress: Progress | None = None) -> int:
        """Delete rows and attempts of the whole, closed hours before; roll-ups stay. Returns how many rows.

        What still comes for those hours later is in no figures, and deleted the next time. Raises LedgerError.
        """
        return await self._maintenance().prune(before, progress)

    async def forget(self, end_user: str) -> dict[str, int]:
        """Delete what is about a person: `requests`, `attempts`, `rollups`, and `spilled` rows on this machine.

        Returns how many of each. What is recorded later is kept. Raises LedgerError.
        """
        maintenance = self._maintenance()
        try:
            await self._flush_with_timeout()
            spilled = await erase_from_spill(self.spill_folder, end_user)
            await self._flush_with_timeout()  # behind it, nothing that was read from the spill before is on its way
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(f"the spill can't be read: {describe_error(error)}") from error
        return {**await maintenance.forget(end_user), "spilled": spilled}

    async def check(self) -> None:
        """Raise LedgerError unless the database answers a cheap query in two seconds."""
        await self._open_reader().check()

    def _maintenance(self) -> Maintenance:
        return Maintenance(self._open_reader().connections, self._sql_dialect)

    async def _run_limited(self, reader: QueryRunner, run: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """One of few questions at once: it is so for as long as the database works on it, whoever has gone."""
        await self._query_slots.acquire()
        task = asyncio.create_task(run(), context=contextvars.Context())
        task.add_done_callback(self._release_slot)
        return await reader.wait(asyncio.shield(task), READ_TIMEOUT + _TIMEOUT_GRACE)

    def _release_slot(self, task: "asyncio.Task[Any]") -> None:
        self._query_slots.release()
        if not task.cancelled():
            task.exception()  # its caller may have gone: nothing to complain about

    async def _flush_with_timeout(self) -> None:
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                await self.flush()
        except TimeoutError:
            raise LedgerUnavailable("the database does not take what waits for it") from None


class LedgerReader(LedgerQueries):
    """Answers as a `Ledger` does, and records nothing: no row waits here, and no spill is claimed."""

    def __init__(self, target: LedgerDatabase, connections: ConnectionTasks, spill: str | None) -> None:
        self._target = target
        self._connections = connections
        self._spill_below = spill
        self._sql_dialect = SqlDialect(target.dialect, target.prefix)
        self._query_slots = asyncio.Semaphore(MAX_CONCURRENT_QUERIES)
        self._cache = RollupCache()

    @property
    def spill_folder(self) -> Path:
        """Where the writers' rows wait on disk while the database can't take them."""
        return self._target.spill_folder(self._spill_below)

    async def flush(self) -> None:
        """Nothing is recorded here."""

    def _open_reader(self) -> QueryRunner:
        sql = statements(self._target.dialect, self._target.prefix)
        return QueryRunner(self._connections, sql, self._sql_dialect, self._cache)


@asynccontextmanager
async def open_reader(
    url: str, *, table_prefix: str | None = None, spill: str | None = None
) -> AsyncIterator[LedgerReader]:
    """Open the tables at `url` for the length of a block; `spill` is the writers'.

    Nothing is made, migrated or replayed, and no call is closed as abandoned. Raises ConfigError, and LedgerError where
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
