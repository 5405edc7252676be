"""MariaDB and MySQL, through aiomysql."""

import asyncio
import getpass
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from decimal import Decimal
from typing import Any

import aiomysql
from databases.backends.mysql import MySQLBackend
from pymysql import err
from pymysql.constants import CLIENT

from arbstr_asgi.database.drivers.base import (
    CONVERSION_ERRORS,
    IN_REQUESTS,
    OUTAGE_ERRORS,
    READ_TIMEOUT,
    BulkStatement,
    Driver,
    SpecialColumns,
    encode_row,
    format_timestamp,
    is_connection_error,
)
from arbstr_asgi.database.values import Row

# NULL, no default, out of range, cut, not a date, not this charset, too long, a trigger's SIGNAL, CHECK, CHECK
_ROW_CODES = {1048, 1364, 1264, 1265, 1292, 1366, 1406, 1644, 3819, 4025}
_NO_SUCH_DATABASE = 1049
_TLS_FAILED = 2026
_LOST_CODES = {(1053,), (1927,), (2003,), (2006,), (2013,), (2055,)}  # shutting down, killed, unreachable, gone
# Lock names are server-wide, so this one includes the database and the prefix.
_LOCK_NAME = "CONCAT('arbstr.', MD5(CONCAT(DATABASE(), '/', %s)))"
_LITERALS: dict[type, Callable[[Any], str]] = {
    int: str,
    Decimal: str,
    bool: lambda value: "true" if value else "false",
    type(None): lambda _: "NULL",
}


class _Cursor(aiomysql.Cursor):  # type: ignore[misc]
    """Escapes values with one type look-up each; the driver's own takes five, and a row has fifty values."""

    def _escape_args(self, args: Any, conn: Any) -> Any:
        if not isinstance(args, tuple):
            return super()._escape_args(args, conn)
        literal, escape, string = _LITERALS.get, conn.escape, conn.escape_string
        return tuple([f"'{string(v)}'" if type(v) is str else literal(type(v), escape)(v) for v in args])


class _Connection(aiomysql.Connection):  # type: ignore[misc]
    """A connection of our own pool.

    Where TLS is asked for it has TLS: the driver's goes on in clear text, password and all, if a server offers none.
    Its `connect_timeout` bounds the whole beginning, not only that of the socket.
    """

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(self.connect_timeout):
                await super()._connect()
        except BaseException:
            self.close()
            raise

    async def _request_authentication(self) -> None:
        if self._ssl_context and not self.server_capabilities & CLIENT.SSL:
            raise err.OperationalError(_TLS_FAILED, "database.url asks for TLS, and the server offers none")
        await super()._request_authentication()


class _Pool(aiomysql.Pool):  # type: ignore[misc]
    """A pool of such connections."""

    def __init__(self, minsize: int, **options: Any) -> None:
        super().__init__(minsize=0, **options)
        self._least = minsize

    async def _fill_free_pool(self, override_min: bool) -> None:
        await super()._fill_free_pool(False)  # closes those that the server has closed, or that are too old
        while self.size < self._least or (override_min and not self._free and self.size < self.maxsize):
            self._acquiring += 1
            try:
                connection = _Connection(echo=self._echo, loop=self._loop, **self._conn_kwargs)
                await connection._connect()
                self._free.append(connection)
                self._cond.notify()
            finally:
                self._acquiring -= 1


class Backend(MySQLBackend):
    """The backend of `databases` for a URL of ours."""

    async def connect(self) -> None:
        url, options = self._database_url, self._get_connection_kwargs()
        names = {"host": url.hostname, "port": url.port or 3306, "user": url.username or getpass.getuser()}
        defaults = {"echo": False, "pool_recycle": -1, "loop": asyncio.get_running_loop(), "autocommit": True}
        pool: Any = _Pool(**{**names, "password": url.password, "db": url.database, **defaults, **options})
        async with pool._cond:
            await pool._fill_free_pool(False)
        self._pool = pool


class Mysql:
    """Timestamps are naive UTC. DDL commits implicitly, so the migration lock is held by the connection."""

    dialect = "mysql"
    options: Mapping[str, Any] = {"min_size": 1, "max_size": 5, "connect_timeout": 10, "charset": "utf8mb4"}
    keeps_connection = False
    batch_timeout = 15.0

    async def prepare(self, raw: Any, *, own: bool, durable: bool) -> None:
        pass

    @asynccontextmanager
    async def begin(self, raw: Any) -> AsyncIterator[None]:
        nested = self.in_transaction(raw)  # a second BEGIN would commit the host's transaction
        await self._run(raw, "SAVEPOINT arbstr" if nested else "BEGIN")
        try:
            yield
        except Exception:
            await self._run(raw, "ROLLBACK TO SAVEPOINT arbstr" if nested else "ROLLBACK")
            raise
        await self._run(raw, "RELEASE SAVEPOINT arbstr" if nested else "COMMIT")

    @asynccontextmanager
    async def reading(self, raw: Any, seconds: float = READ_TIMEOUT) -> AsyncIterator[None]:
        if self.in_transaction(raw):
            yield
            return
        name, unit = ("max_statement_time", 1) if "MariaDB" in raw.get_server_info() else ("max_execution_time", 1000)
        await self._run(raw, f"SET @arbstr = @@{name}, SESSION {name} = {max(int(seconds * unit), 1)}")
        await self._run(raw, "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
        try:
            yield
        except Exception:
            await self._run(raw, "ROLLBACK")
            await self._run(raw, f"SET SESSION {name} = @arbstr")
            raise
        await self._run(raw, "COMMIT")
        await self._run(raw, f"SET SESSION {name} = @arbstr")

    def in_transaction(self, raw: Any) -> bool:
        return bool(raw.get_transaction_status())

    async def write(self, raw: Any, steps: Sequence[BulkStatement]) -> None:
        async with self.begin(raw):
            for sql, rows in steps:
                await self.execute_many(raw, sql, rows)

    async def execute_many(self, raw: Any, sql: str, rows: Sequence[Row]) -> None:
        async with raw.cursor(_Cursor) as cursor:
            await cursor.executemany(sql, rows)

    async def execute(self, raw: Any, sql: str, parameters: Sequence[Any]) -> int:
        async with raw.cursor() as cursor:
            await cursor.execute(sql, parameters)
            return int(cursor.rowcount)

    async def fetch(self, raw: Any, sql: str, parameters: Sequence[Any] = ()) -> list[Sequence[Any]]:
        async with raw.cursor() as cursor:
            await cursor.execute(sql, parameters)
            return list(await cursor.fetchall())

    async def has_table(self, raw: Any, table: str) -> bool:
        sql = "SELECT 1 FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = %s"
        return bool(await self.fetch(raw, sql, (table,)))

    async def lock(self, raw: Any, prefix: str) -> None:
        got = await self.fetch(raw, f"SELECT GET_LOCK({_LOCK_NAME}, 60)", (prefix,))
        if got[0][0] != 1:
            raise TimeoutError("somebody else has been migrating for 60 s")

    async def unlock(self, raw: Any, prefix: str) -> None:
        await self.fetch(raw, f"SELECT RELEASE_LOCK({_LOCK_NAME})", (prefix,))

    def encode(self, row: Row, special: SpecialColumns = IN_REQUESTS) -> Row:
        return encode_row(row, special, _text, self.money)

    def money(self, value: Decimal | None) -> Decimal | None:
        return value

    def is_row_error(self, error: BaseException) -> str | None:
        if isinstance(error, err.MySQLError):
            code = error.args[0] if error.args and isinstance(error.args[0], int) else None
            unsent = isinstance(error, err.ProgrammingError) and code is None
            if unsent or code in _ROW_CODES or isinstance(error, (err.DataError, err.IntegrityError)):
                return f"{type(error).__name__} {code}" if code else type(error).__name__
            return None
        return type(error).__name__ if isinstance(error, CONVERSION_ERRORS) else None

    def is_transient(self, error: BaseException) -> bool:
        if isinstance(error, err.MySQLError):
            return bool(error.args[:1] != (_NO_SUCH_DATABASE,))
        return isinstance(error, OUTAGE_ERRORS)

    def is_connection_lost(self, error: BaseException) -> bool:
        if isinstance(error, err.MySQLError):
            return isinstance(error, err.InterfaceError) or error.args[:1] in _LOST_CODES
        return is_connection_error(error)

    def read_timestamp(self, value: datetime) -> datetime:
        return _naive(value)

    async def limit_disk_use(self, raw: Any) -> None:
        pass  # left to the server

    def abandon(self, raw: Any) -> None:
        with suppress(Exception):
            raw.close()

    async def _run(self, raw: Any, sql: str) -> None:
        async with raw.cursor() as cursor:
            await cursor.execute(sql)


def _naive(value: datetime) -> datetime:
    # The driver drops an offset silently; normalised values have none. Four times as fast as `replace`.
    return datetime.combine(value.date(), value.time())


def _text(value: datetime) -> str:
    return format_timestamp(value)[:-1]  # no literal takes the offset


DRIVER: Driver = Mysql()
