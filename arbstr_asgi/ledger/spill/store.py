"""Spilled rows: a local SQLite file with the tables of the ledger."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

from arbstr_asgi.database import values
from arbstr_asgi.database.columns import ATTEMPT_COLUMNS, COLUMNS
from arbstr_asgi.database.connections import ConnectionTasks, HeldConnection
from arbstr_asgi.database.database import LedgerDatabase
from arbstr_asgi.database.drivers.base import BulkStatement, Driver, describe_error
from arbstr_asgi.database.statements import statements
from arbstr_asgi.database.values import Record, Row
from arbstr_asgi.errors import LedgerError
from arbstr_asgi.ledger.batch import upsert_operations
from arbstr_asgi.ledger.spill.locks import SpillLock, SpillLocks

logger = logging.getLogger("arbstr_asgi.ledger")

T = TypeVar("T")

_SQL = statements("sqlite", "")
_CALL, _REVISION, _END_REASON = (
    [column.name for column in COLUMNS].index(name) for name in ("correlation_id", "revision", "end_reason")
)
_MAX_ID = 2**63 - 1
_CHEAP_COUNT = 10_000  # rows
_VACUUM_SIZE = 1024 * 1024  # bytes


class Spill(NamedTuple):
    """The slots of the spill folder, and the open store in our own slot."""

    locks: SpillLocks
    store: "SpillStore"


class SpilledRecord(NamedTuple):
    """A record in the spill, and the id of its row there."""

    id: int
    record: Record


class SpillStore:
    """The file of one slot; `rows` is the number of its rows, `oldest` the earliest timestamp. Raises SQLite errors."""

    def __init__(self, slot: SpillLock, *, durable: bool = False) -> None:
        self.slot = slot
        self.rows = 0
        self.oldest: datetime | None = None
        self._target = LedgerDatabase.create(f"sqlite:///{quote(str(slot.file.absolute()))}", "", durable=durable)
        self._last_id = 0  # of the counted rows
        self._connections: ConnectionTasks | None = None
        self._connection: HeldConnection | None = None  # serialises writes and their counts

    async def open(self) -> None:
        """Create the tables if necessary, and count the rows."""
        self._connections = await self._target.open(migrate=True)
        self._connection = HeldConnection(self._connections)
        await self._run(self._count_new)

    async def close(self) -> None:
        """Close the file and release the slot. Never raises."""
        if self._connections is not None:
            await self._connections.end(1.0)
        await self._target.close()
        self.slot.release()

    async def write(self, records: Sequence[Record]) -> None:
        """Upsert these records durably; a newer state of the same call is kept."""

        async def write(raw: Any) -> None:
            await self._driver.write(raw, upsert_operations(self._driver, _SQL, records))
            await self._count_new(raw)

        await self._run(write)

    async def read(self, limit: int) -> list[SpilledRecord]:
        """The records with the lowest ids, at most `limit`."""

        async def read(raw: Any) -> list[SpilledRecord]:
            result = await self._driver.fetch(raw, _SQL.oldest, (limit,))
            if len(result) < limit:  # all rows; another process may have erased some
                self.rows = len(result)
            calls = [call for _, call, *_ in result]
            attempts: dict[str, list[Row]] = {}
            for row in await self._driver.fetch(raw, _SQL.select_attempts(len(calls)), calls) if calls else ():
                attempts.setdefault(row[0], []).append(values.read_row(row, ATTEMPT_COLUMNS))
            return [
                SpilledRecord(found_id, Record(values.read_row(row), tuple(attempts.get(row[0], ()))))
                for found_id, *row in result
            ]

        return await self._run(read)

    async def remove(self, removed: Sequence[SpilledRecord]) -> None:
        """Delete records that were read from here, except those with a newer state by now."""

        async def remove(raw: Any) -> None:
            await self._driver.write(raw, _delete_statements([record for _, record in removed]))
            await self._count_removed(raw, removed)
            if not self.rows and self.slot.size > _VACUUM_SIZE:
                await self._driver.fetch(raw, "VACUUM")

        await self._run(remove)

    async def remove_committed(self, records: Sequence[Record]) -> None:
        """As `remove`, for records that were committed without being read from here."""

        async def remove_committed(raw: Any) -> None:
            await self._driver.write(raw, _delete_statements(records))
            await self._count_all(raw)

        if records and self.rows <= _CHEAP_COUNT:
            await self._run(remove_committed)

    @property
    def _driver(self) -> Driver:
        return self._target.driver

    async def _count_new(self, raw: Any) -> None:
        """Count the rows written since the last count; counting all takes long with a million rows."""
        ((new, *bounds),) = await self._driver.fetch(raw, _SQL.count_after, (self._last_id,))
        self.rows += new
        self._set_bounds(*bounds)

    async def _count_all(self, raw: Any) -> None:
        ((self.rows, *bounds),) = await self._driver.fetch(raw, _SQL.count_up_to, (_MAX_ID,))
        self._set_bounds(*bounds)

    async def _count_removed(self, raw: Any, removed: Sequence[SpilledRecord]) -> None:
        """Update the count: rows that are left up to the last id read were kept."""
        if self.rows <= _CHEAP_COUNT:  # some may have been deleted since
            await self._count_all(raw)
        elif removed:
            ((left, *bounds),) = await self._driver.fetch(raw, _SQL.count_up_to, (removed[-1].id,))
            self.rows -= len(removed) - left
            self._set_bounds(*bounds)

    def _set_bounds(self, last_id: int | None, oldest: str | None) -> None:
        self._last_id = last_id or 0  # ids restart when the table is empty
        self.oldest = None if oldest is None else datetime.fromisoformat(oldest)

    async def _run(self, work: Callable[[Any], Awaitable[T]]) -> T:
        if self._connection is None:
            raise LedgerError("the spill is not open")
        return await self._connection.run(work)


def _delete_statements(records: Sequence[Record]) -> list[BulkStatement]:
    states = [(row[_CALL], row[_REVISION], row[_END_REASON]) for row, _ in records]
    return [
        BulkStatement(_SQL.delete, states),
        BulkStatement(_SQL.delete_attempts, [(row[_CALL],) for row, _ in records]),
    ]


async def open_spill(folder: Path, *, durable: bool) -> Spill | None:
    """Lock a slot below `folder` and open its store; None, with a WARNING, where that fails."""
    spill = None
    try:
        locks = SpillLocks(folder)
        spill = SpillStore(locks.claim(), durable=durable)
        await spill.open()
    except Exception as error:  # noqa: BLE001 - whatever it is, the database itself may work
        if spill is not None:
            await spill.close()
        message = "ledger: no rows can be spilled to %s, set database.spill to a folder that can be written: %s"
        logger.warning(message, folder, describe_error(error))
        return None
    return Spill(locks, spill)
