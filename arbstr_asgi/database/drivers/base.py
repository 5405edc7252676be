"""What differs between the databases, behind one interface; each speaks to a driver's raw connection."""

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


class SpecialColumns(NamedTuple):
    """Where in a row of a table the values are that drivers take in different forms."""

    timestamps: tuple[int, ...]
    money: tuple[int, ...]

    @classmethod
    def find(cls, columns: Columns) -> "SpecialColumns":
        """Of a table with these columns."""
        return cls(positions(columns, Kind.TIMESTAMP), positions(columns, Kind.MONEY))


class BulkStatement(NamedTuple):
    """A statement with the VALUES of one row, and the rows that it is carried out for, in their order."""

    sql: str
    rows: Sequence[Row]


IN_REQUESTS = SpecialColumns.find(COLUMNS)
IN_ATTEMPTS = SpecialColumns.find(ATTEMPT_COLUMNS)

# What a driver raises while it converts a value, before the database has seen it.
CONVERSION_ERRORS = (TypeError, ValueError, OverflowError, UnicodeError)


class Driver(Protocol):
    """The driver of one database."""

    @property
    def dialect(self) -> str:
        """`sqlite`, `postgresql` or `mysql`."""
        ...

    @property
    def options(self) -> Mapping[str, Any]:
        """For a database of our own: a small pool, time-outs for connecting."""
        ...

    @property
    def keeps_connection(self) -> bool:
        """Whether the writer keeps its connection between batches."""
        ...

    @property
    def batch_timeout(self) -> float | None:
        """Seconds for one batch; None where a call can't be given up."""
        ...

    async def prepare(self, raw: Any, *, own: bool, durable: bool) -> None:
        """Set up a connection that was just acquired; lasting settings only on a database of our `own`.

        `durable`: a commit survives a power cut, as it does on the servers by default.
        """
        ...

    def begin(self, raw: Any) -> AbstractAsyncContextManager[None]:
        """A transaction, or a savepoint in the one that is already open; rolls back what fails."""
        ...

    def reading(self, raw: Any, seconds: float = READ_TIMEOUT) -> AbstractAsyncContextManager[None]:
        """A transaction that reads one state of the database, and holds no writer up.

        The database gives a statement up that takes longer than so many seconds, whether or not we still wait for it.
        """
        ...

    def in_transaction(self, raw: Any) -> bool:
        """Whether a transaction is open on this connection."""
        ...

    async def write(self, raw: Any, steps: Sequence[BulkStatement]) -> None:
        """All of it in one transaction, as `begin` has it, in as few waits as there can be."""
        ...

    async def execute_many(self, raw: Any, sql: str, rows: Sequence[Row]) -> None:
        """One statement for each row."""
        ...

    async def execute(self, raw: Any, sql: str, parameters: Sequence[Any]) -> int:
        """One statement; returns the number of rows it matched."""
        ...

    async def fetch(self, raw: Any, sql: str, parameters: Sequence[Any] = ()) -> list[Sequence[Any]]:
        """All rows of a query."""
        ...

    async def has_table(self, raw: Any, table: str) -> bool:
        """Whether an unqualified name would find this table."""
        ...

    async def lock(self, raw: Any, prefix: str) -> None:
        """Let nobody else migrate these tables; until the end of the transaction or `unlock`."""
        ...

    async def unlock(self, raw: Any, prefix: str) -> None:
        """Undo `lock`, where the end of the transaction doesn't."""
        ...

    def encode(self, row: Row, special: SpecialColumns = IN_REQUESTS) -> Row:
        """A normalised row as the driver takes it."""
        ...

    def money(self, value: Decimal | None) -> Any:
        """A normalised amount as the driver takes it."""
        ...

    def is_row_error(self, error: BaseException) -> str | None:
        """A name without values if this row is to blame; None: the database is in trouble."""
        ...

    def is_transient(self, error: BaseException) -> bool:
        """Whether opening a database that failed like this may work later without anybody mending something."""
        ...

    def is_connection_lost(self, error: BaseException) -> bool:
        """Whether the connection has failed, so that the same may succeed on another."""
        ...

    def read_timestamp(self, value: datetime) -> Any:
        """A normalised moment as the driver takes it."""
        ...

    async def limit_disk_use(self, raw: Any) -> None:
        """Take as little room as possible on the disk for what is written from now on: it may have been full."""
        ...

    def abandon(self, raw: Any) -> None:
        """Close a connection that can't be trusted any more, without waiting for it."""
        ...


def load(dialect: str) -> Driver:
    """The driver for a dialect; only this one's package is imported."""
    return cast("Driver", importlib.import_module(f"arbstr_asgi.database.drivers.{dialect}").DRIVER)


def encode_row(row: Row, special: SpecialColumns, convert_timestamp: Any, money: Any) -> Row:
    """A row with its moments and amounts converted."""
    values = list(row)
    for index in special.timestamps:
        values[index] = convert_timestamp(values[index])
    for index in special.money:
        values[index] = money(values[index])
    return tuple(values)


def is_connection_error(error: BaseException) -> bool:
    """Whether it is one of the system's that says that a connection is gone, not that something took too long."""
    return isinstance(error, OSError) and not isinstance(error, TimeoutError | ConnectionAbortedError)


def decimal_text(value: Decimal | None) -> str | None:
    """A normalised amount as text, never with an exponent."""
    if value is None:
        return None
    text = str(value)
    return f"{value:f}" if "E" in text else text


def format_timestamp(value: datetime) -> str:
    """Fixed width, so that text sorts as time does: `2026-11-22T10:00:00.123Z`; of a normalised moment."""
    text: str = msgspec.to_builtins(value)  # ten times as fast as `isoformat`; without a fraction that is 0
    return f"{text[:23]}Z" if value.microsecond else f"{text[:19]}.000Z"


def describe_error(error: BaseException, database: Database | None = None) -> str:
    """Type and first line, without the password and without a statement's values."""
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
