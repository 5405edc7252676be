"""PostgreSQL, through asyncpg."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from decimal import Decimal
from typing import Any

import asyncpg

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
    is_connection_error,
)
from arbstr_asgi.database.values import Row

_LOCK = 0x6172627374720001  # an arbitrary number: "arbstr", 1

_ROW_STATES = {"22", "23", "P0"}  # data, constraints, a trigger's RAISE
# No such database, an option that makes no sense, and settings that the server does not know or take.
_WRONG_URL = (
    asyncpg.InvalidCatalogNameError,
    asyncpg.ClientConfigurationError,
    asyncpg.UndefinedObjectError,
    asyncpg.InvalidParameterValueError,
    asyncpg.CantChangeRuntimeParamError,
)
_LOST_STATES = {"08", "57"}  # connections, an operator's intervention


class _Connection(asyncpg.Connection):  # type: ignore[misc]
    """A connection of our own pool; its release sends no reset query, which would wait for a silent server."""

    __slots__ = ()

    def get_reset_query(self) -> str:
        return ""


class Postgresql:
    """Timestamps and money as Python values in queries, as text in bulk upserts (see `statements`)."""

    dialect = "postgresql"
    # No minimum size: in an outage asyncpg would log a traceback for each failed attempt to keep it.
    options: Mapping[str, Any] = {"min_size": 0, "max_size": 5, "timeout": 10, "connection_class": _Connection}
    keeps_connection = False
    batch_timeout = 15.0

    async def prepare(self, raw: Any, *, own: bool, durable: bool) -> None:
        pass

    @asynccontextmanager
    async def begin(self, raw: Any) -> AsyncIterator[None]:
        transaction = raw.transaction()  # nests by itself
        await transaction.start()
        try:
            yield
        except Exception:
            # Not when cancelled: a ROLLBACK to a silent server would wait for ever.
            await transaction.rollback()
            raise
        await transaction.commit()

    @asynccontextmanager
    async def reading(self, raw: Any, seconds: float = READ_TIMEOUT) -> AsyncIterator[None]:
        if self.in_transaction(raw):
            yield
            return
        transaction = raw.transaction(isolation="repeatable_read", readonly=True)
        await transaction.start()
        try:
            # JIT compilation takes longer than our queries; the server cancels what the caller has given up.
            await raw.execute(f"SET LOCAL jit = off; SET LOCAL statement_timeout = {max(int(seconds * 1000), 1)}")
            yield
        except Exception:
            await transaction.rollback()
            raise
        await transaction.commit()

    def in_transaction(self, raw: Any) -> bool:
        return bool(raw.is_in_transaction())

    async def write(self, raw: Any, steps: Sequence[BulkStatement]) -> None:
        async with self.begin(raw):
            for sql, rows in steps:
                await self.execute_many(raw, sql, rows)

    async def execute_many(self, raw: Any, sql: str, rows: Sequence[Row]) -> None:
        await raw.executemany(sql, rows)

    async def execute(self, raw: Any, sql: str, parameters: Sequence[Any]) -> int:
        status = await raw.execute(sql, *parameters)
        return int(status.rpartition(" ")[2])

    async def fetch(self, raw: Any, sql: str, parameters: Sequence[Any] = ()) -> list[Sequence[Any]]:
        return list(await raw.fetch(sql, *parameters))

    async def has_table(self, raw: Any, table: str) -> bool:
        # Not to_regclass: it may remember from before a lock was waited for that there is none.
        sql = "SELECT count(*) > 0 FROM pg_class WHERE relname = $1 AND pg_table_is_visible(oid)"
        return bool(await raw.fetchval(sql, table))

    async def lock(self, raw: Any, prefix: str) -> None:
        await raw.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)

    async def unlock(self, raw: Any, prefix: str) -> None:
        pass

    def encode(self, row: Row, special: SpecialColumns = IN_REQUESTS) -> Row:
        return encode_row(row, special, format_timestamp, decimal_text)  # cast back in `statements`

    def money(self, value: Decimal | None) -> Decimal | None:
        return value

    def is_row_error(self, error: BaseException) -> str | None:
        state = getattr(error, "sqlstate", None)
        if isinstance(error, asyncpg.PostgresError) and state is not None:
            return f"{type(error).__name__} {state}" if state[:2] in _ROW_STATES else None
        return type(error).__name__ if isinstance(error, CONVERSION_ERRORS) else None

    def is_transient(self, error: BaseException) -> bool:
        if isinstance(error, _WRONG_URL):
            return False
        kinds = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.TargetServerAttributeNotMatched)
        return isinstance(error, (*kinds, *OUTAGE_ERRORS))

    def is_connection_lost(self, error: BaseException) -> bool:
        if isinstance(error, asyncpg.PostgresError):
            return (error.sqlstate or "")[:2] in _LOST_STATES
        return isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError) or is_connection_error(error)

    def read_timestamp(self, value: datetime) -> datetime:
        return value

    async def limit_disk_use(self, raw: Any) -> None:
        pass  # left to the server

    def abandon(self, raw: Any) -> None:
        with suppress(Exception):  # it may be back in the pool already, by itself
            raw.terminate()


DRIVER: Driver = Postgresql()
