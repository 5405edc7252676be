"""Batches that the writer has taken from the queue and not committed yet: rows, usage updates, flush markers."""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from arbstr_asgi.database import values
from arbstr_asgi.database.columns import ATTEMPT_COLUMNS, COLUMNS
from arbstr_asgi.database.drivers.base import IN_ATTEMPTS, BulkStatement, Driver
from arbstr_asgi.database.records import LedgerEntry, PendingEntry
from arbstr_asgi.database.statements import Statements
from arbstr_asgi.database.values import Record
from arbstr_asgi.errors import LedgerError
from arbstr_asgi.ledger.queue import FlushMarker, UsageUpdate, WriteQueue
from arbstr_asgi.ledger.status import LossCounters
from arbstr_asgi.stats.rollups.dirty_hours import DirtyHours, HourMark

logger = logging.getLogger("arbstr_asgi.ledger")
Operation = Record | UsageUpdate | FlushMarker
MAX_SPILLED_IN_MEMORY = 5000  # operations whose rows are on disk too
MAX_DEGRADE_LEVEL = 2
_REFUSED = "(refused)"
_COLUMN_NAMES = tuple(column.name for column in COLUMNS)
_MINIMAL_COLUMNS = {
    *("correlation_id", "timestamp", "streaming", "success", "end_reason", "attempts", "worker_id", "revision"),
}
_DEGRADED_COLUMNS = _MINIMAL_COLUMNS | {
    *("model", "provider", "policy", "end_user", "tenant"),
    *("latency_ms", "ttft_ms", "stream_duration_ms", "error_status", "disconnect"),
}


@dataclass(slots=True, eq=False)
class Batch:
    """Operations to commit in one transaction, the oldest queued at `since` (monotonic seconds), about `size` bytes.

    `spilled`: its rows are on disk too. `level` and `reason`: how far its rows are degraded, and why. `waiting` counts
    the operations that are not on disk.
    """

    operations: list[Operation]
    since: float = 0.0  # monotonic seconds
    size: int = 0  # bytes, about
    spilled: bool = False
    committed: bool = False
    level: int = 0
    reason: str = ""
    parts: list["Batch"] = field(init=False, default_factory=list)  # what replaced it when it was refused
    waiting: int = field(init=False, default=0)  # operations that are in memory only

    def __post_init__(self) -> None:
        self.waiting = len(self.operations) - (len(self.records) if self.spilled else 0)

    @property
    def records(self) -> list[Record]:
        """The records among the operations."""
        return [item for item in self.operations if isinstance(item, Record)]

    def resolve_spilled(self) -> None:
        """Note that the rows are on disk, and resolve the flush markers that wait for no more than that."""
        self.spilled = True
        self.waiting = len(self.operations) - len(self.records)
        self.size = 0  # bounded by MAX_SPILLED_IN_MEMORY instead
        for item in self.operations:
            if isinstance(item, FlushMarker) and item.spilled:
                item.resolve(0)


class PendingBatches:
    """A FIFO of batches to commit; a batch leaves it only after its COMMIT."""

    def __init__(self, driver: Driver, statements: Statements, losses: LossCounters, dirty_hours: DirtyHours) -> None:
        self._driver = driver
        self._statements = statements
        self._losses = losses
        self._dirty_hours = dirty_hours
        self.batches: deque[Batch] = deque()
        self.stale: list[Record] = []  # committed, to be deleted from the spill

    def __len__(self) -> int:
        return sum(len(batch.operations) for batch in self.batches)

    @property
    def waiting(self) -> int:
        """The number of operations that are not on disk."""
        return sum([batch.waiting for batch in self.batches]) if self.batches else 0

    @property
    def size(self) -> int:
        """About how many bytes the operations that are not on disk take."""
        return sum([batch.size for batch in self.batches]) if self.batches else 0

    @property
    def since(self) -> float | None:
        """When the oldest operation was queued, in monotonic seconds."""
        return self.batches[0].since if self.batches else None

    @property
    def unspilled(self) -> list[Batch]:
        """The batches with rows that are in memory only."""
        return [batch for batch in self.batches if not batch.spilled and batch.records]

    @property
    def needs_order(self) -> bool:
        """Whether an operation waits here that must be carried out after all earlier rows."""
        return any(not isinstance(item, Record) for batch in self.batches for item in batch.operations)

    @property
    def can_wait(self) -> bool:
        """Whether nothing would be lost if the process ended now: all rows on disk, and no usage update."""
        return not self.unspilled and not any(
            isinstance(i, UsageUpdate) for batch in self.batches for i in batch.operations
        )

    def take(self, queue: WriteQueue, limit: int) -> None:
        """Move at most `limit` items from the queue into one new batch."""
        queued = queue.take(limit)
        operations: list[Operation] = [
            *normalized_records(pending_entries(queued.entries, self._losses), self._losses),
            *queued.updates,
            *queued.markers,
        ]
        if operations:
            self.batches.append(Batch(operations, queued.since, queued.size))

    def mark_spilled(self, batch: Batch) -> None:
        """Note that a batch's rows are on disk; those beyond MAX_SPILLED_IN_MEMORY are dropped from memory."""
        batch.resolve_spilled()
        for part in batch.parts:
            self.mark_spilled(part)
        if batch.committed:
            self._record_stale(batch)
        elif len(self) > MAX_SPILLED_IN_MEMORY and any(batch is other for other in list(self.batches)[1:]):
            batch.operations = [i for i in batch.operations if not isinstance(i, Record) and not _is_resolved(i)]
            batch.waiting = len(batch.operations)
            self.batches = deque(other for other in self.batches if other.operations)

    def put(self, records: Sequence[Record]) -> None:
        """Add one batch of records that are on disk already."""
        self.batches.append(Batch([*records], spilled=True))

    async def write(self, raw: Any) -> None:
        """Commit the first batch. A batch with a refused row is replaced by its halves, until that row is alone.

        A refused row is degraded step by step (see `degraded_record`); the log names its id and the kind of error,
        never a value. Any other error is raised, and the batch stays.
        """
        batch = self.batches[0]
        try:
            counts = await self._commit(raw, batch.operations)
        except Exception as error:
            reason = self._driver.is_row_error(error)
            if reason is None:
                raise
            await self._driver.fetch(raw, "SELECT 1")  # raises if the connection itself has failed
            self.batches.popleft()
            batch.parts = self._isolate_bad_rows(batch, reason)
            self.batches.extendleft(reversed(batch.parts))
        else:
            self.batches.popleft()
            batch.committed = True
            for record in batch.records if batch.level else ():
                self._losses.degrade(record.correlation_id, batch.reason)
            if batch.spilled or batch.level:  # what was refused may be on disk although that is not known yet
                self._record_stale(batch)
            _resolve(batch.operations, counts)

    def clear(self) -> list[Operation]:
        """Remove and return every operation that is not on disk."""
        operations = [item for batch in self.batches for item in batch.operations]
        spilled = {id(record) for batch in self.batches if batch.spilled for record in batch.records}
        self.batches.clear()
        return [item for item in operations if id(item) not in spilled]

    def _record_stale(self, batch: Batch) -> None:
        if len(self.stale) < MAX_SPILLED_IN_MEMORY:  # the rest is replayed once more, which is idempotent
            self.stale += batch.records

    async def _commit(self, raw: Any, operations: list[Operation]) -> list[int]:
        driver, sql = self._driver, self._statements
        records = [item for item in operations if isinstance(item, Record)]
        updates = [
            (item.input_tokens, item.output_tokens, driver.money(item.cost_sats), item.correlation_id)
            for item in operations
            if isinstance(item, UsageUpdate)
        ]
        if not records and not updates:
            return []
        rows = [*upsert_operations(driver, sql, records), *self._mark_hours(self._dirty_hours.record_marks(records))]
        if not updates:
            await driver.write(raw, rows)
            return []
        async with driver.begin(raw):
            await driver.write(raw, rows)
            await self._keep_attempts(raw, [update[-1] for update in updates])
            counts = [await driver.execute(raw, sql.update_usage, update) for update in updates]
            entries_now = [await driver.fetch(raw, sql.select_timestamp, update[-1:]) for update in updates]
            moments = [values.read_timestamp(row[0]) for rows in entries_now for row in rows]
            await driver.write(raw, self._mark_hours(self._dirty_hours.marks(moments)))
            return counts

    async def _keep_attempts(self, raw: Any, calls: list[str]) -> None:
        """Write the attempts of these calls as rows, so that they stay as they are whatever becomes of the calls'."""
        found = [await self._driver.fetch(raw, self._statements.select_all_attempts, (call,)) for call in calls]
        attempts = [values.read_row(row, ATTEMPT_COLUMNS) for rows in found for row in rows]
        encoded = [self._driver.encode(row, IN_ATTEMPTS) for row in attempts]
        await self._driver.write(raw, [BulkStatement(self._statements.upsert_attempt, encoded)] if encoded else [])

    def _mark_hours(self, markers: list[HourMark]) -> list[BulkStatement]:
        return [BulkStatement(self._statements.mark_hour, markers)] if markers else []

    def _isolate_bad_rows(self, batch: Batch, reason: str) -> list[Batch]:
        """The batches that replace one that was refused: its halves, or a degraded row."""
        half = len(batch.operations) // 2
        if half:
            parts = batch.operations[:half], batch.operations[half:]
            return [replace(batch, operations=part, size=batch.size // 2) for part in parts]
        (item,) = batch.operations
        if not isinstance(item, Record):
            item.resolve(LedgerError(f"refused by the database: {reason}"))
            return []
        if batch.level == MAX_DEGRADE_LEVEL:
            logger.error("ledger: the row of %s was refused in every form and is lost: %s", item.correlation_id, reason)
            self._losses.add(1, "refused by the database")
            batch.committed = True  # as much of it as ever will be: what is on disk is not to be refused again
            self._record_stale(batch)
            return []
        level = batch.level + 1
        return [replace(batch, operations=[degraded_record(item, level, reason)], level=level, reason=reason)]


def _is_resolved(item: UsageUpdate | FlushMarker) -> bool:
    """Whether this marker waits only for the spill."""
    return isinstance(item, FlushMarker) and item.spilled


def _resolve(operations: list[Operation], counts: list[int]) -> None:
    waiting = iter(counts)
    for item in operations:
        if isinstance(item, UsageUpdate):
            item.resolve(next(waiting))
        elif isinstance(item, FlushMarker):
            item.resolve(0)


def upsert_operations(driver: Driver, sql: Statements, records: Sequence[Record]) -> list[BulkStatement]:
    """The statements that upsert these records and the rows of their attempts, for one transaction."""
    rows = [driver.encode(record.row) for record in records]
    attempts = [driver.encode(row, IN_ATTEMPTS) for record in records for row in record.attempts]
    return [
        step for step in (BulkStatement(sql.upsert, rows), BulkStatement(sql.upsert_attempt, attempts)) if step.rows
    ]


def pending_entries(entries: Sequence[LedgerEntry | PendingEntry], losses: LossCounters) -> list[LedgerEntry]:
    """Resolve pending entries to their current state; one that raises is counted as lost, the others are kept."""
    entries_now: list[LedgerEntry] = []
    for entry in entries:
        try:
            entries_now.append(entry if isinstance(entry, LedgerEntry) else entry.entry())
        except Exception as error:  # noqa: BLE001 - one odd call must not stop the others
            losses.add(1, f"a call that can't be told: {type(error).__name__}")
    return entries_now


def normalized_records(entries: Sequence[LedgerEntry], losses: LossCounters) -> list[Record]:
    """Normalise entries; one that fails is degraded and counted."""
    records: list[Record] = []
    for entry in entries:
        try:
            records.append(values.record(entry))
        except Exception as error:  # noqa: BLE001 - one odd entry must not stop the others
            reason = type(error).__name__
            records.append(degraded_record(Record(values.salvage(entry, datetime.now(UTC))), 1, reason))
            losses.degrade(records[-1].correlation_id, reason)
    return records


def degraded_record(record: Record, level: int, reason: str) -> Record:
    """A copy of a refused record with fewer columns, and `degraded: reason` as its error message.

    Level 1 keeps identity, model, timing and the attempts; level 2 keeps no text that a client or a provider has sent.
    """
    kept_columns = _DEGRADED_COLUMNS if level == 1 else _MINIMAL_COLUMNS
    values_by_column = {
        name: value if name in kept_columns else None for name, value in zip(_COLUMN_NAMES, record.row, strict=True)
    }
    values_by_column["usage_source"] = "none"
    values_by_column["model"] = _REFUSED if values_by_column["model"] is None else values_by_column["model"]
    values_by_column["error_message"] = values.text(f"degraded: {reason}", 500)
    attempts = record.attempts or values.derived(record.row)
    return Record(tuple(values_by_column.values()), attempts if level == 1 else ())
