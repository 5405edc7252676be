"""Rows that the database has not taken yet, in a local SQLite file with the ledger's own tables."""

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
_MAX_ID = 2**63 - 1  # the greatest id that there can be
_CHEAP_COUNT = 10_000  # rows that are counted in no time
_VACUUM_SIZE = 1024 * 1024  # bytes


class Spill(NamedTuple):
    """Where rows wait on disk, and under which name we hold it."""

    locks: SpillLocks
    spill: "SpillStore"


class SpilledRecord(NamedTuple):
    """A record on disk and the number of its row there."""

    id: int
    record: Record


class SpillStore:
    """The file of one slot; `rows` and `oldest` (the earliest arrival) say what it holds. Raises what SQLite raises."""

    def __init__(self, slot: SpillLock, *, durable: bool = False) -> None:
        self.slot = slot
        self.rows = 0
        self.oldest: datetime | None = None
        self._target = LedgerDatabase.create(f"sqlite:///{quote(str(slot.file.absolute()))}", "", durable=durable)
        self._last_id = 0  # of the rows that are counted
        self._connections: ConnectionTasks | None = None
        self._connection: HeldConnection | None = None  # one at a time, so that the count is that of the last who wrote

    async def open(self) -> None:
        """Make the tables where they are missing, and count."""
        self._connections = await self._target.open(migrate=True)
        self._connection = HeldConnection(self._connections)
        await self._run(self._count_new)

    async def close(self) -> None:
        """Close the file and give the slot back. Never raises."""
        if self._connections is not None:
            await self._connections.end(1.0)
        await self._target.close()
        self.slot.release()

    async def write(self, records: Sequence[Record]) -> None:
        """Keep these states, durably, each unless a newer one of its call is there."""

        async def write(raw: Any) -> None:
            await self._driver.write(raw, upsert_operations(self._driver, _SQL, records))
            await self._count_new(raw)

        await self._run(write)

    async def read(self, limit: int) -> list[SpilledRecord]:
        """The records whose rows came first."""

        async def read(raw: Any) -> list[SpilledRecord]:
            result = await self._driver.fetch(raw, _SQL.oldest, (limit,))
            if len(result) < limit:  # that is all there is, also where somebody else has erased some
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
        """Forget these rows, but for those that have a newer state by now."""

        async def remove(raw: Any) -> None:
            await self._driver.write(raw, _delete_statements([record for _, record in removed]))
            await self._count_removed(raw, removed)
            if not self.rows and self.slot.size > _VACUUM_SIZE:
                await self._driver.fetch(raw, "VACUUM")

        await self._run(remove)

    async def remove_committed(self, records: Sequence[Record]) -> None:
        """The same for what was not read from here: the database has these states without that."""

        async def remove_committed(raw: Any) -> None:
            await self._driver.write(raw, _delete_statements(records))
            await self._count_all(raw)

        if records and self.rows <= _CHEAP_COUNT:
            await self._run(remove_committed)

    @property
    def _driver(self) -> Driver:
        return self._target.driver

    async def _count_new(self, raw: Any) -> None:
        """Count those that have come: a walk through all takes long where there are a million."""
        ((new, *bounds),) = await self._driver.fetch(raw, _SQL.count_after, (self._last_id,))
        self.rows += new
        self._set_bounds(*bounds)

    async def _count_all(self, raw: Any) -> None:
        ((self.rows, *bounds),) = await self._driver.fetch(raw, _SQL.count_up_to, (_MAX_ID,))
        self._set_bounds(*bounds)

    async def _count_removed(self, raw: Any, removed: Sequence[SpilledRecord]) -> None:
        """What was read came first, so whatever is left up to its last has stayed."""
        if self.rows <= _CHEAP_COUNT:  # some of it may have been forgotten since
            await self._count_all(raw)
        elif removed:
            ((left, *bounds),) = await self._driver.fetch(raw, _SQL.count_up_to, (removed[-1].id,))
            self.rows -= len(removed) - left
            self._set_bounds(*bounds)

    def _set_bounds(self, last_id: int | None, oldest: str | None) -> None:
        self._last_id = last_id or 0  # numbers begin anew in a table that has been emptied
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
    """Claim a slot below `folder` and open its spill; None, with a WARNING, where that is impossible."""
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
