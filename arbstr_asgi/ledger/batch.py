"""What the writer has taken and not committed yet: rows, usage updates and flush markers, in batches."""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from arbstr_asgi.database import values
from arbstr_asgi.database.columns import COLUMNS
from arbstr_asgi.database.drivers.base import IN_ATTEMPTS, BulkStatement, Driver
from arbstr_asgi.database.records import LedgerEntry, PendingEntry
from arbstr_asgi.database.statements import Statements
from arbstr_asgi.database.values import Record
from arbstr_asgi.errors import LedgerError
from arbstr_asgi.ledger.queue import FlushMarker, UsageUpdate, WriteQueue
from arbstr_asgi.ledger.status import LossCounters
from arbstr_asgi.stats.rollups.dirty_hours import DirtyHours, HourMark

logger = logging.getLogger("arbstr_asgi.ledger")
MAX_DEGRADE_LEVEL = 2  # how often a row can be refused and cut down again
_REFUSED = "(refused)"
MAX_SPILLED_IN_MEMORY = 5000  # operations in memory while their rows are on disk


_COLUMN_NAMES = tuple(column.name for column in COLUMNS)
_MINIMAL_COLUMNS = {
    "correlation_id",
    "timestamp",
    "streaming",
    "success",
    "end_reason",
    "attempts",
    "worker_id",
    "revision",
}
_DEGRADED_COLUMNS = _MINIMAL_COLUMNS | {
    *("model", "provider", "policy", "end_user", "tenant"),
    *("latency_ms", "ttft_ms", "stream_duration_ms", "error_status", "disconnect"),
}


def degraded_record(record: Record, level: int, reason: str) -> Record:
    """The record cut down: at level 1 to identity, model and timing; at level 2 to what no client had a word in.

    The attempts, of which nothing is anybody's text but the model, stay at level 1.
    """
    kept_columns = _DEGRADED_COLUMNS if level == 1 else _MINIMAL_COLUMNS
    values_by_column = {
        name: value if name in kept_columns else None for name, value in zip(_COLUMN_NAMES, record.row, strict=True)
    }
    values_by_column["usage_source"] = "none"
    values_by_column["model"] = _REFUSED if values_by_column["model"] is None else values_by_column["model"]
    values_by_column["error_message"] = values.text(f"degraded: {reason}", 500)
    return Record(tuple(values_by_column.values()), record.attempts if level == 1 else ())


Operation = Record | UsageUpdate | FlushMarker


@dataclass(slots=True, eq=False)
class Batch:
    """What is committed together. `spilled` says that its rows are on disk as well, `level` how degraded they are."""

    operations: list[Operation]
    since: float = 0.0  # when the oldest came, on the monotonic clock
    size: int = 0  # bytes, about
    spilled: bool = False
    committed: bool = False
    level: int = 0
    reason: str = ""  # for that
    waiting: int = field(init=False, default=0)  # operations that are not on disk

    def __post_init__(self) -> None:
        self.waiting = len(self.operations) - (len(self.records) if self.spilled else 0)

    @property
    def records(self) -> list[Record]:
        """The records among the operations."""
        return [item for item in self.operations if isinstance(item, Record)]

    def resolve_spilled(self) -> None:
        """The rows are on disk: tell whoever waits for no more than that."""
        self.spilled = True
        self.waiting = len(self.operations) - len(self.records)
        self.size = 0  # what is kept of them is bounded by their number
        for item in self.operations:
            if isinstance(item, FlushMarker) and item.spilled:
                item.resolve(0)


class PendingBatches:
    """Chunks in the order in which they are to be committed; one leaves only after its COMMIT."""

    def __init__(self, driver: Driver, statements: Statements, losses: LossCounters, dirty_hours: DirtyHours) -> None:
        self._driver = driver
        self._statements = statements
        self._losses = losses
        self._dirty_hours = dirty_hours
        self.batches: deque[Batch] = deque()
        self.stale: list[Record] = []  # committed, and still on disk

    def __len__(self) -> int:
        return sum(len(batch.operations) for batch in self.batches)

    @property
    def waiting(self) -> int:
        """How much of it is not on disk."""
        return sum([batch.waiting for batch in self.batches])

    @property
    def size(self) -> int:
        """About how many bytes this keeps of what is not on disk."""
        return sum([batch.size for batch in self.batches])

    @property
    def since(self) -> float | None:
        """When the oldest operation came."""
        return self.batches[0].since if self.batches else None

    @property
    def unspilled(self) -> list[Batch]:
        """The chunks that are in memory alone and have rows."""
        return [batch for batch in self.batches if not batch.spilled and batch.records]

    @property
    def needs_order(self) -> bool:
        """Whether something waits here that must stay behind what was recorded before it."""
        return any(not isinstance(item, Record) for batch in self.batches for item in batch.operations)

    @property
    def can_wait(self) -> bool:
        """Whether nothing here would be missed if the process ended now: rows on disk, and nobody waiting."""
        return not self.unspilled and not any(
            isinstance(i, UsageUpdate) for batch in self.batches for i in batch.operations
        )

    def take(self, queue: WriteQueue, limit: int) -> None:
        """Add one chunk of at most `limit` items from the backlog."""
        queued = queue.take(limit)
        operations: list[Operation] = [
            *normalized_records(pending_entries(queued.entries, self._losses), self._losses),
            *queued.updates,
            *queued.markers,
        ]
        if operations:
            self.batches.append(Batch(operations, queued.since, queued.size))

    def mark_spilled(self, batch: Batch) -> None:
        """Its rows are on disk, so they need not be kept here, but for a few: those need not be read again."""
        batch.resolve_spilled()
        if batch.committed:  # meanwhile
            self._record_stale(batch)
        elif len(self) > MAX_SPILLED_IN_MEMORY and any(batch is other for other in list(self.batches)[1:]):
            batch.operations = [i for i in batch.operations if not isinstance(i, Record) and not _is_resolved(i)]
            batch.waiting = len(batch.operations)
            self.batches = deque(other for other in self.batches if other.operations)

    def put(self, records: Sequence[Record]) -> None:
        """Add one chunk of records that are on disk."""
        self.batches.append(Batch([*records], spilled=True))

    async def write(self, raw: Any) -> None:
        """Commit the first chunk; instead of a chunk with a bad row its halves come next, until the row is alone.

        A bad row alone is degraded, step by step; the log names its id and the kind of reason, never values. Any
        other trouble is raised, and the chunk stays.
        """
        batch = self.batches[0]
        try:
            counts = await self._commit(raw, batch.operations)
        except Exception as error:
            reason = self._driver.is_row_error(error)
            if reason is None:
                raise
            await self._driver.fetch(raw, "SELECT 1")  # if that fails too, the row is not to blame
            self.batches.popleft()
            self.batches.extendleft(reversed(self._isolate_bad_rows(batch, reason)))
        else:
            self.batches.popleft()
            batch.committed = True
            for record in batch.records if batch.level else ():
                self._losses.degrade(record.correlation_id, batch.reason)
            if batch.spilled:
                self._record_stale(batch)
            _resolve(batch.operations, counts)

    def clear(self) -> list[Operation]:
        """Everything that is left and not on disk."""
        operations = [item for batch in self.batches for item in batch.operations]
        spilled = {id(record) for batch in self.batches if batch.spilled for record in batch.records}
        self.batches.clear()
        return [item for item in operations if id(item) not in spilled]

    def _record_stale(self, batch: Batch) -> None:
        if len(self.stale) < MAX_SPILLED_IN_MEMORY:  # the others are brought back once more, which changes nothing
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
            counts = [await driver.execute(raw, sql.update_usage, update) for update in updates]
            entries_now = [await driver.fetch(raw, sql.select_timestamp, update[-1:]) for update in updates]
            moments = [values.read_timestamp(row[0]) for rows in entries_now for row in rows]
            await driver.write(raw, self._mark_hours(self._dirty_hours.marks(moments)))
            return counts

    def _mark_hours(self, markers: list[HourMark]) -> list[BulkStatement]:
        return [BulkStatement(self._statements.mark_hour, markers)] if markers else []

    def _isolate_bad_rows(self, batch: Batch, reason: str) -> list[Batch]:
        """What to try instead of a chunk that was refused."""
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
            return []
        level = batch.level + 1
        return [replace(batch, operations=[degraded_record(item, level, reason)], level=level, reason=reason)]


def upsert_operations(driver: Driver, sql: Statements, records: Sequence[Record]) -> list[BulkStatement]:
    """What writes records, in one transaction; a newer state that is there stays."""
    rows = [driver.encode(record.row) for record in records]
    attempts = [driver.encode(row, IN_ATTEMPTS) for record in records for row in record.attempts]
    return [
        step for step in (BulkStatement(sql.upsert, rows), BulkStatement(sql.upsert_attempt, attempts)) if step.rows
    ]


def pending_entries(entries: Sequence[LedgerEntry | PendingEntry], losses: LossCounters) -> list[LedgerEntry]:
    """Entries, and what the calls among them say of themselves now; one that can't is counted, if no other."""
    entries_now: list[LedgerEntry] = []
    for entry in entries:
        try:
            entries_now.append(entry if isinstance(entry, LedgerEntry) else entry.entry())
        except Exception as error:  # noqa: BLE001 - one odd call must not stop the others
            losses.add(1, f"a call that can't be told: {type(error).__name__}")
    return entries_now


def normalized_records(entries: Sequence[LedgerEntry], losses: LossCounters) -> list[Record]:
    """The records of entries; what can't be one loses what is wrong with it, and is counted as degraded."""
    records: list[Record] = []
    for entry in entries:
        try:
            records.append(values.record(entry))
        except Exception as error:  # noqa: BLE001 - one odd entry must not stop the others
            reason = type(error).__name__
            records.append(degraded_record(Record(values.salvage(entry, datetime.now(UTC))), 1, reason))
            losses.degrade(records[-1].correlation_id, reason)
    return records


def _is_resolved(item: UsageUpdate | FlushMarker) -> bool:
    """Whether it asked for no more than the spill."""
    return isinstance(item, FlushMarker) and item.spilled


def _resolve(operations: list[Operation], counts: list[int]) -> None:
    waiting = iter(counts)
    for item in operations:
        if isinstance(item, UsageUpdate):
            item.resolve(next(waiting))
        elif isinstance(item, FlushMarker):
            item.resolve(0)
