"""The half of the ledger that answers and tidies up."""

import asyncio
import contextvars
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from arbstr_asgi.errors import LedgerError, LedgerUnavailable
from arbstr_asgi.ledger.driver import READ_TIMEOUT
from arbstr_asgi.ledger.eraser import erase_from_spill
from arbstr_asgi.ledger.faults import describe_error
from arbstr_asgi.ledger.fragments import SqlDialect
from arbstr_asgi.ledger.reader import QueryRunner
from arbstr_asgi.ledger.upkeep import Progress, Maintenance
from arbstr_asgi.stats import Group, Page, Rebuilt, RequestsQuery, StatsQuery, Summary

T = TypeVar("T")

AT_ONCE = 2  # questions that take long; the others wait, so that the pool has connections for the writer
_GRACE = 1.0  # seconds from when the database is to give up until nobody waits for it any more
EXPORTED = 500  # rows in memory


class LedgerQueries(ABC):
    """What can be asked of an open ledger; it says itself what is open."""

    _fragments: SqlDialect
    _at_once: asyncio.Semaphore

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
        return await self._in_turn(reader, lambda: reader.groups(query))

    async def summary(self, query: StatsQuery) -> Summary:
        """What `stats` says, and the figures of all rows in the same state of the database. Raises LedgerError."""
        reader = self._open_reader()
        return await self._in_turn(reader, lambda: reader.summary(query))

    async def requests(self, query: RequestsQuery) -> Page:
        """One page of rows, and how many there are where that is quickly said. Raises LedgerError."""
        reader = self._open_reader()
        return await self._in_turn(reader, lambda: reader.page(query))

    async def export(self, query: RequestsQuery) -> AsyncIterator[dict[str, Any]]:
        """All rows from the page on, however many, as in `requests`; few are in memory. Raises LedgerError.

        Each few are one state of the database; a row whose sorted value changes meanwhile may be missed or come twice.
        """
        query = msgspec.structs.replace(query, limit=EXPORTED)
        while True:
            reader = self._open_reader()
            page = await self._in_turn(reader, partial(reader.page, query, counted=False))
            for row in page.rows:
                yield row
            if page.next is None:
                return
            query = msgspec.structs.replace(query, after=page.next)

    async def distinct(self, column: Literal["model", "provider"]) -> list[str]:
        """The names that rows have had in this column, sorted. Raises LedgerError."""
        reader = self._open_reader()
        return await self._in_turn(reader, lambda: reader.names(column))

    async def rebuild(self, progress: Progress | None = None) -> Rebuilt:
        """Compute the roll-ups of all closed hours again. `progress` hears hours done and to do. Raises LedgerError."""
        return await self._upkeep().rebuild(progress)

    async def prune(self, before: datetime, progress: Progress | None = None) -> int:
        """Delete rows and attempts of the whole, closed hours before; roll-ups stay. Returns how many rows.

        What still comes for those hours later is in no figures, and deleted the next time. Raises LedgerError.
        """
        return await self._upkeep().prune(before, progress)

    async def forget(self, end_user: str) -> dict[str, int]:
        """Delete what is about a person: `requests`, `attempts`, `rollups`, and `spilled` rows on this machine.

        Returns how many of each. What is recorded later is kept. Raises LedgerError.
        """
        upkeep = self._upkeep()
        try:
            await self._flush_soon()
            spilled = await erase_from_spill(self.spill_folder, end_user)
            await self._flush_soon()  # behind it, nothing that was read from the spill before is on its way
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(f"the spill can't be read: {describe_error(error)}") from error
        return {**await upkeep.forget(end_user), "spilled": spilled}

    async def check(self) -> None:
        """Raise LedgerError unless the database answers a cheap query in two seconds."""
        await self._open_reader().check()

    def _upkeep(self) -> Maintenance:
        return Maintenance(self._open_reader().sessions, self._fragments)

    async def _in_turn(self, reader: QueryRunner, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """One of few questions at once: it is so for as long as the database works on it, whoever has gone."""
        await self._at_once.acquire()
        task = asyncio.create_task(ask(), context=contextvars.Context())
        task.add_done_callback(self._out_of_turn)
        return await reader.waited(asyncio.shield(task), READ_TIMEOUT + _GRACE)

    def _out_of_turn(self, task: "asyncio.Task[Any]") -> None:
        self._at_once.release()
        if not task.cancelled():
            task.exception()  # its caller may have gone: nothing to complain about

    async def _flush_soon(self) -> None:
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                await self.flush()
        except TimeoutError:
            raise LedgerUnavailable("the database does not take what waits for it") from None
