"""The interface of the three database drivers; every method takes the raw connection of the driver package."""

import importlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple, Protocol, cast

import msgspec
from databases import Database

from arbstr_asgi.database.columns import ATTEMPT_COLUMNS, COLUMNS, Columns, Kind, positions
from arbstr_asgi.database.values import Row

READ_TIMEOUT = 30.0  # seconds for a question
# What a database that is out of reach raises, whatever its driver.
OUTAGE_ERRORS = (OSError, TimeoutError)
# What a driver raises while it converts a value, before the database has seen it.
CONVERSION_ERRORS = (TypeError, ValueError, OverflowError, UnicodeError)


class SpecialColumns(NamedTuple):
    """Indexes of the timestamp and money columns in a row, which drivers encode differently."""

    timestamps: tuple[int, ...]
    money: tuple[int, ...]

    @classmethod
    def find(cls, columns: Columns) -> "SpecialColumns":
        """For a table with these columns."""
        return cls(positions(columns, Kind.TIMESTAMP), positions(columns, Kind.MONEY))


class BulkStatement(NamedTuple):
    """A statement with the VALUES of one row, and the rows to execute it for, in order."""

    sql: str
    rows: Sequence[Row]


IN_REQUESTS = SpecialColumns.find(COLUMNS)
IN_ATTEMPTS = SpecialColumns.find(ATTEMPT_COLUMNS)


class Driver(Protocol):
    """The driver of one database."""

    @property
    def dialect(self) -> str:
        """`sqlite`, `postgresql` or `mysql`."""
        ...

    @property
    def options(self) -> Mapping[str, Any]:
        """Options for a database that we connect: pool size, connect timeout."""
        ...

    @property
    def keeps_connection(self) -> bool:
        """Whether the writer keeps its connection between batches."""
        ...

    @property
    def batch_timeout(self) -> float | None:
        """Seconds for one batch; None where a running call can not be cancelled."""
        ...

    async def prepare(self, raw: Any, *, own: bool, durable: bool) -> None:
        """Set up a connection that was just acquired; lasting settings only on a database that is our `own`.

        `durable`: a commit survives a power cut, as it does on the servers by default.
        """
        ...

    def begin(self, raw: Any) -> AbstractAsyncContextManager[None]:
        """A transaction, or a savepoint in one that is already open; rolls back on an exception."""
        ...

    def reading(self, raw: Any, seconds: float = READ_TIMEOUT) -> AbstractAsyncContextManager[None]:
        """A read-only snapshot transaction that blocks no writer.

        The database itself cancels a statement that runs for more than `seconds`, whether or not the caller still
        waits.
        """
        ...

    def in_transaction(self, raw: Any) -> bool:
        """Whether a transaction is open on this connection."""
        ...

    async def write(self, raw: Any, steps: Sequence[BulkStatement]) -> None:
        """Execute all statements in one transaction (see `begin`), with as few round trips as possible."""
        ...

    async def execute_many(self, raw: Any, sql: str, rows: Sequence[Row]) -> None:
        """Execute one statement for each row."""
        ...

    async def execute(self, raw: Any, sql: str, parameters: Sequence[Any]) -> int:
        """Execute one statement; returns the number of rows matched."""
        ...

    async def fetch(self, raw: Any, sql: str, parameters: Sequence[Any] = ()) -> list[Sequence[Any]]:
        """All rows of a query."""
        ...

    async def has_table(self, raw: Any, table: str) -> bool:
        """Whether an unqualified name resolves to this table."""
        ...

    async def lock(self, raw: Any, prefix: str) -> None:
        """Take the migration lock on these tables, held until the end of the transaction or `unlock`."""
        ...

    async def unlock(self, raw: Any, prefix: str) -> None:
        """Release `lock`, where the end of the transaction does not."""
        ...

    def encode(self, row: Row, special: SpecialColumns = IN_REQUESTS) -> Row:
        """A normalised row as the driver accepts it."""
        ...

    def money(self, value: Decimal | None) -> Any:
        """A normalised amount as the driver accepts it."""
        ...

    def is_row_error(self, error: BaseException) -> str | None:
        """The kind of error, without values, if a row was refused; None if the database has failed."""
        ...

    def is_transient(self, error: BaseException) -> bool:
        """Whether opening the database again may succeed later without an operator."""
        ...

    def is_connection_lost(self, error: BaseException) -> bool:
        """Whether the connection has failed, so that the same query may succeed on another."""
        ...

    def read_timestamp(self, value: datetime) -> Any:
        """A normalised timestamp as the driver accepts it."""
        ...

    async def limit_disk_use(self, raw: Any) -> None:
        """Use as little disk space as possible from now on, after an outage that a full disk may have caused."""
        ...

    def abandon(self, raw: Any) -> None:
        """Close a connection that is in an unknown state, without waiting for the server."""
        ...


def load(dialect: str) -> Driver:
    """The driver for a dialect; imports only the package of that database."""
    return cast("Driver", importlib.import_module(f"arbstr_asgi.database.drivers.{dialect}").DRIVER)


def encode_row(row: Row, special: SpecialColumns, convert_timestamp: Any, money: Any) -> Row:
    """A row with its timestamps and amounts converted."""
    values = list(row)
    for index in special.timestamps:
        values[index] = convert_timestamp(values[index])
    for index in special.money:
        values[index] = money(values[index])
    return tuple(values)


def decimal_text(value: Decimal | None) -> str | None:
    """A normalised amount as text, never with an exponent."""
    if value is None:
        return None
    text = str(value)
    return f"{value:f}" if "E" in text else text


def format_timestamp(value: datetime) -> str:
    """A normalised timestamp in fixed width, so that text sorts by time: `2026-11-22T10:00:00.123Z`."""
    text: str = msgspec.to_builtins(value)  # ten times as fast as `isoformat`; without a fraction that is 0
    return f"{text[:23]}Z" if value.microsecond else f"{text[:19]}.000Z"


def is_connection_error(error: BaseException) -> bool:
    """Whether the error is an operating system error of a lost connection, not a timeout."""
    return isinstance(error, OSError) and not isinstance(error, TimeoutError | ConnectionAbortedError)


def describe_error(error: BaseException, database: Database | None = None) -> str:
    """Type and first line of an error, without the password and without a statement's values."""
    name = type(error).__name__
    if isinstance(error, TimeoutError) and not str(error):
        return f"{name}: no answer in time"
    lines = str(error).splitlines()
    if not lines or name == "ProgrammingError":  # MySQL quotes the statement, values and all
        return name
    line = lines[0][:200]
    if database is not None:
        for secret in {database.url.password, database.url.components.password} - {None, ""}:
            line = line.replace(str(secret), "***")
    return f"{name}: {line}"
