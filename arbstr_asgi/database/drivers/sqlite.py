"""SQLite, through aiosqlite."""

import asyncio
import functools
import re
import sqlite3
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from decimal import Decimal
from itertools import chain
from typing import Any, TypeVar

from arbstr_asgi.database.drivers.base import (
    CONVERSION_ERRORS,
    IN_REQUESTS,
    OUTAGE_ERRORS,
    READ_TIMEOUT,
    BulkStatement,
    Driver,
    SpecialColumns,
    decimal_text,
    encode_row,
    format_timestamp,
)
from arbstr_asgi.database.values import Row

T = TypeVar("T")

_LOCK_TIMEOUT = 5.0  # seconds
_BUSY_TIMEOUT_MS = 250  # ms per call; a waiting call can be neither cancelled nor interrupted
_MAX_ROWS = 64  # rows in a statement
_CACHE_KB = 8000  # of the writer; the pages of the indexes that a batch changes are all over them
_CHECKPOINT_PAGES = 2000  # pages of 4 KB in the WAL at a checkpoint; a page that changes often is copied once then
_FEW_CHECKPOINT_PAGES = 100
_VALUES = re.compile(r"(?<=VALUES )\([?, ]+\)")
_BEGIN = "BEGIN IMMEDIATE"  # a deferred transaction fails at once if another commits in between
_own_connections: weakref.WeakSet[Any] = weakref.WeakSet()  # connections to databases of our own
_prepared_connections: weakref.WeakSet[Any] = weakref.WeakSet()  # connections set up for batches


class Sqlite:
    """Stores timestamps and money as text; retries in short intervals while another writer holds the lock."""

    dialect = "sqlite"
    options: Mapping[str, Any] = {"timeout": 2.0}
    keeps_connection = True
    batch_timeout = None  # a cancelled call would still take the lock later

    async def prepare(self, raw: Any, *, own: bool, durable: bool) -> None:
        await raw.execute_fetchall(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
        if own:
            # A lasting property of the file, so not for a host's; changing it ignores busy_timeout.
            await _retry_while_locked(lambda: raw.execute_fetchall("PRAGMA journal_mode = WAL"))
            await raw.execute_fetchall(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
            if not durable:
                await raw.execute_fetchall("PRAGMA synchronous = NORMAL")
            _stop_at_exit(raw)
        if durable:
            await raw.execute_fetchall("PRAGMA synchronous = FULL")

    @asynccontextmanager
    async def begin(self, raw: Any) -> AsyncIterator[None]:
        nested = self.in_transaction(raw)
        if nested:
            await raw.execute_fetchall("SAVEPOINT arbstr")
        else:
            await _retry_while_locked(lambda: raw.execute_fetchall(_BEGIN))
        try:
            yield
            await raw.execute_fetchall("RELEASE SAVEPOINT arbstr" if nested else "COMMIT")
        except Exception:
            if self.in_transaction(raw):  # SQLite has rolled back by itself when the disk is full
                await raw.execute_fetchall("ROLLBACK TO SAVEPOINT arbstr" if nested else "ROLLBACK")
            raise

    @asynccontextmanager
    async def reading(self, raw: Any, seconds: float = READ_TIMEOUT) -> AsyncIterator[None]:
        if self.in_transaction(raw):
            yield
            return
        await raw.execute_fetchall("BEGIN")
        interrupter = asyncio.create_task(_interrupt(raw, seconds))
        try:
            yield
        finally:
            interrupter.cancel()
            if self.in_transaction(raw):
                await raw.execute_fetchall("ROLLBACK")

    def in_transaction(self, raw: Any) -> bool:
        return bool(raw.in_transaction)

    async def write(self, raw: Any, steps: Sequence[BulkStatement]) -> None:
        if raw not in _prepared_connections and not raw.in_transaction:
            # Keep statement journals in memory; not for readers, whose sorts may not fit.
            await raw.execute_fetchall("PRAGMA temp_store = MEMORY")
            await raw.execute_fetchall(f"PRAGMA cache_size = -{_CACHE_KB}")
            _prepared_connections.add(raw)
        await _retry_while_locked(lambda: _run_in_thread(raw, _write, steps))

    async def execute_many(self, raw: Any, sql: str, rows: Sequence[Row]) -> None:
        cursor = await raw.executemany(sql, rows)
        await cursor.close()

    async def execute(self, raw: Any, sql: str, parameters: Sequence[Any]) -> int:
        cursor = await raw.execute(sql, parameters)
        matched = int(cursor.rowcount)
        await cursor.close()
        return matched

    async def fetch(self, raw: Any, sql: str, parameters: Sequence[Any] = ()) -> list[Sequence[Any]]:
        return list(await _retry_while_locked(lambda: raw.execute_fetchall(sql, parameters)))

    async def has_table(self, raw: Any, table: str) -> bool:
        return bool(await self.fetch(raw, "SELECT 1 FROM sqlite_master WHERE name = ? COLLATE NOCASE", (table,)))

    async def lock(self, raw: Any, prefix: str) -> None:
        await _retry_while_locked(lambda: raw.execute_fetchall(_BEGIN), timeout=60.0)

    async def unlock(self, raw: Any, prefix: str) -> None:
        pass

    def encode(self, row: Row, special: SpecialColumns = IN_REQUESTS) -> Row:
        return encode_row(row, special, format_timestamp, decimal_text)

    def money(self, value: Decimal | None) -> str | None:
        return decimal_text(value)  # a NUMERIC column would make it a float

    def is_row_error(self, error: BaseException) -> str | None:
        row_errors = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, *CONVERSION_ERRORS)
        binding = isinstance(error, sqlite3.ProgrammingError) and "binding" in str(error)
        if not binding and not isinstance(error, row_errors):
            return None
        return getattr(error, "sqlite_errorname", None) or type(error).__name__

    def is_transient(self, error: BaseException) -> bool:
        if getattr(error, "sqlite_errorname", "").startswith(("SQLITE_NOTADB", "SQLITE_CANTOPEN")):
            return False
        return isinstance(error, (sqlite3.Error, *OUTAGE_ERRORS))

    def is_connection_lost(self, error: BaseException) -> bool:
        return False

    def read_timestamp(self, value: datetime) -> str:
        return format_timestamp(value)

    async def limit_disk_use(self, raw: Any) -> None:
        # A checkpoint needs space in the database file, so a WAL that fills the disk can't shrink.
        await raw.execute_fetchall(f"PRAGMA wal_autocheckpoint = {_FEW_CHECKPOINT_PAGES}")
        if not self.in_transaction(raw):
            await _retry_while_locked(lambda: raw.execute_fetchall("PRAGMA wal_checkpoint(PASSIVE)"))

    def abandon(self, raw: Any) -> None:
        pass  # releasing it closes it


def _stop_at_exit(raw: Any) -> None:
    """Stop the thread of aiosqlite when the main thread ends: it is no daemon, so it would keep the process alive.

    Nothing else does where there is no lifespan and the loop ends without cancelling its tasks (granian).
    """
    _own_connections.add(raw)
    _start_exit_watcher()


@functools.cache
def _start_exit_watcher() -> None:
    def stop() -> None:
        threading.main_thread().join()
        for raw in list(_own_connections):
            raw.stop()

    threading.Thread(target=stop, name="arbstr-exit", daemon=True).start()


async def _interrupt(raw: Any, seconds: float) -> None:
    """After `seconds`, interrupt the running statement and each that follows it."""
    await asyncio.sleep(seconds)
    while True:
        await raw.interrupt()
        await asyncio.sleep(_BUSY_TIMEOUT_MS / 1000)


def _write(connection: sqlite3.Connection, steps: Sequence[BulkStatement]) -> None:
    nested = connection.in_transaction
    connection.execute("SAVEPOINT arbstr" if nested else _BEGIN)
    try:
        for sql, rows in steps:
            max_rows = connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER) // len(rows[0]) if rows else 0
            for part in _row_slices(rows, min(max_rows, _MAX_ROWS)):
                connection.execute(_multi_row_sql(sql, len(part)), [*chain.from_iterable(part)])
        connection.execute("RELEASE SAVEPOINT arbstr" if nested else "COMMIT")
    except Exception:
        if connection.in_transaction:
            connection.execute("ROLLBACK TO SAVEPOINT arbstr" if nested else "ROLLBACK")
        raise


def _row_slices(rows: Sequence[Row], max_rows: int) -> Iterator[Sequence[Row]]:
    """Split rows into few slices, of at most `max_rows`: each is one statement.

    Sizes are powers of two, so that there are few different statements to prepare.
    """
    first = 0
    while first < len(rows):
        size = 1 << (min(len(rows) - first, max_rows).bit_length() - 1)
        yield rows[first : first + size]
        first += size


@functools.cache
def _multi_row_sql(sql: str, rows: int) -> str:
    """A statement with the VALUES of one row, for this many rows."""
    return _VALUES.sub(lambda result: ", ".join([result[0]] * rows), sql, count=1)


async def _run_in_thread(raw: Any, work: Callable[..., T], *arguments: Any) -> T:
    """Have the thread of aiosqlite call `work(connection, *arguments)`, with the `sqlite3` connection.

    Each public call of aiosqlite is a round trip to that thread, and each way waits for a busy event loop: a batch of
    eight calls took longer than its rows may wait. The method that runs a function there is private, and as old as
    aiosqlite.
    """
    result: T = await raw._execute(work, raw._conn, *arguments)
    return result


async def _retry_while_locked(call: Callable[[], Awaitable[T]], *, timeout: float = _LOCK_TIMEOUT) -> T:
    deadline = time.monotonic() + timeout
    while True:
        try:
            return await call()
        except sqlite3.OperationalError as error:
            busy = (error.sqlite_errorcode & 0xFF) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
            if not busy or time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.01)


DRIVER: Driver = Sqlite()
