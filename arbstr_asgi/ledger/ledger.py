"""The ledger: records calls, and answers queries about them."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from databases import Database

from arbstr_asgi.config.settings import LONGEST_RETENTION
from arbstr_asgi.database.database import LedgerDatabase
from arbstr_asgi.database.drivers.base import describe_error
from arbstr_asgi.database.records import LedgerEntry, PendingEntry
from arbstr_asgi.database.statements import statements
from arbstr_asgi.errors import ConfigError, LedgerError, LedgerUnavailable
from arbstr_asgi.ledger.queries import MAX_CONCURRENT_QUERIES, LedgerQueries, QueryRunner
from arbstr_asgi.ledger.queue import FlushMarker, Resolve, UsageUpdate, make_future
from arbstr_asgi.ledger.spill.locks import new_worker_id
from arbstr_asgi.ledger.spill.store import open_spill
from arbstr_asgi.ledger.status import LossCounters, QueueLimits, Snapshot
from arbstr_asgi.ledger.writer import Writer
from arbstr_asgi.stats.rollups.cache import RollupCache
from arbstr_asgi.stats.rollups.scheduler import RollupScheduler
from arbstr_asgi.stats.sql import SqlDialect

logger = logging.getLogger("arbstr_asgi.ledger")

COMMIT_PATIENCE = 2.0  # seconds

_CLOSED = "the ledger is not open"


class Ledger(LedgerQueries):
    """Records one row for each call, in the database at `url` or in a connected `database` of the host.

    The table prefix is `""` in our own database and `"arbstr_"` in the host's; `migrate` (at start) defaults to True
    for our own and False for the host's. `spill` is the folder for rows that the database does not accept (default:
    beside an SQLite file, else `arbstr-spill`). `durable` commits survive a power cut on SQLite too. `bounds` limits
    the queue in memory. Rows older than `retention_days` are deleted, their roll-ups are kept. Raises ConfigError for
    arguments that can not work; nothing is read or opened before `open()`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        database: Database | None = None,
        table_prefix: str | None = None,
        migrate: bool | None = None,
        spill: str | None = None,
        durable: bool = False,
        bounds: QueueLimits = QueueLimits(),  # noqa: B008 - a frozen value
        retention_days: float | None = None,
    ) -> None:
        source = url if database is None else database
        if source is None or (url is not None and database is not None):
            raise ConfigError("database: give either a url or a connected database")
        self._target = LedgerDatabase.create(source, table_prefix, durable=durable)
        self._spill_below = spill
        self._durable = durable
        self._limits = bounds
        self._migrate = self._target.own if migrate is None else migrate
        self._statements = statements(self._target.dialect, self._target.prefix)
        self._sql_dialect = SqlDialect(self._target.dialect, self._target.prefix)
        self._losses = LossCounters()
        self._writer: Writer | None = None
        self._opening = False
        self._worker_id = ""
        if retention_days is not None and not 0 < retention_days <= LONGEST_RETENTION:
            raise ConfigError(f"retention_days: must be more than 0 and at most {LONGEST_RETENTION}")
        self._retention = None if retention_days is None else timedelta(days=retention_days)
        self._scheduler: RollupScheduler | None = None

    def __repr__(self) -> str:
        return f"<Ledger {self._target} {'open' if self.is_open else 'closed'}>"

    @property
    def is_open(self) -> bool:
        """Whether `record` accepts entries."""
        return self._writer is not None and self._writer.accepting

    @property
    def queued(self) -> int:
        """The number of entries in memory that are neither committed nor on disk."""
        return 0 if self._writer is None else self._writer.queued

    @property
    def lost(self) -> int:
        """The number of entries lost since this object was created."""
        return self._losses.count

    @property
    def worker_id(self) -> str:
        """Identifies the writing process: host, process id, spill folder; different after each `open()`."""
        return self._worker_id

    @property
    def spill_folder(self) -> Path:
        """The folder for rows that the database does not accept."""
        return self._target.spill_folder(self._spill_below)

    def snapshot(self) -> Snapshot:
        """Queue length, spilled rows, and counters of losses."""
        writer = self._writer
        spill = writer.spill if writer is not None else None
        ages = [] if writer is None or writer.oldest is None else [writer.oldest]
        if spill is not None and spill.rows and spill.oldest is not None:
            ages.append((datetime.now(UTC) - spill.oldest).total_seconds())
        return Snapshot(
            queued=self.queued,
            queued_bytes=0 if writer is None else writer.size,
            oldest_unwritten_seconds=round(max(ages), 3) if ages else None,
            spilled=0 if spill is None else spill.rows,
            spill_bytes=spill.slot.size if spill is not None and spill.rows else 0,
            spills=writer is not None and writer.spills,
            degraded=self._losses.degraded,
            lost=self._losses.count,
            late=self._losses.late,
        )

    def has_room(self, calls: int = 0) -> bool:
        """Whether the queue has room for the entries of this many more calls."""
        return self._writer is not None and self._limits.has_room(self._writer.queued + 2 * calls, self._writer.size)

    async def open(self, patience: float = 5.0) -> None:
        """Connect, migrate or check the schema, and start the writer.

        Where the database does not answer within `patience` seconds, rows are spilled until it does. Raises LedgerError
        where an operator has to act (a missing schema, a wrong folder); nothing is left open then.
        """
        if self.is_open or self._opening:
            raise LedgerError("the ledger is open already")
        self._target.check()
        self._opening = True
        try:
            spill = await open_spill(self.spill_folder, durable=self._durable)
            self._worker_id = new_worker_id(spill.locks.id if spill else "")
            if spill is not None:
                spill.store.slot.write_owner(self._worker_id)
            self._writer = Writer(self._target, self._statements, self._losses, spill, migrate=self._migrate)
            try:
                await self._writer.opened(patience)
            except asyncio.CancelledError:
                await self._writer.stop(1.0)
                raise
            self._query_slots = asyncio.Semaphore(MAX_CONCURRENT_QUERIES)
            self._cache = RollupCache()
            writer = self._writer
            self._scheduler = RollupScheduler(
                lambda: writer.connections if writer.accepting else None, self._sql_dialect, self._retention
            )
        finally:
            self._opening = False

    async def close(self, timeout: float = 10.0) -> None:
        """Flush the queue, for at most `timeout` seconds, stop the writer and disconnect.

        Rows that were not committed are in the spill, for the next start; rows that could not be spilled either are
        counted in `lost` and logged as CRITICAL. A second call does nothing.
        """
        if self._scheduler is not None:
            await self._scheduler.stop()
        if self._writer is not None:
            await self._writer.stop(timeout)

    def record(self, entry: LedgerEntry) -> None:
        """Queue one state of a call; of its states the highest revision is kept. Thread-safe, never raises or waits."""
        if isinstance(entry, LedgerEntry):
            self._add(entry)
        else:
            self._losses.add(1, "not an entry")

    def record_started(self, call: PendingEntry) -> None:
        """Queue the first state of a call; the writer asks it for `entry()` on the event loop's thread.

        It is not written if the finished entry is recorded before. Thread-safe, never raises or waits.
        """
        self._add(call)

    def _add(self, item: LedgerEntry | PendingEntry) -> None:
        try:
            writer = self._writer
            if writer is None or not writer.accepting:
                self._losses.add(1, "the ledger is not open")
            elif self._limits.is_full(writer.queued, writer.size):
                self._losses.add(1, f"{writer.queued} wait already")
            else:
                writer.add(item)
        except Exception as error:  # noqa: BLE001 - accounting must never break the call that it accounts for
            self._losses.add(1, type(error).__name__)

    async def commit(self, entry: LedgerEntry) -> None:
        """Record, and wait until it is committed or spilled; after COMMIT_PATIENCE it is counted as late."""
        self.record(entry)
        writer = self._writer
        if writer is None or not writer.accepting:
            return
        resolve, future = make_future()
        writer.add(FlushMarker(resolve, spilled=True), urgent=True)
        try:
            async with asyncio.timeout(COMMIT_PATIENCE):
                await future
        except (TimeoutError, LedgerError):
            self._losses.add_late()

    async def flush(self) -> None:
        """Wait until everything recorded so far is committed. Raises LedgerError if the ledger is closed before."""
        if self._writer is not None and self._writer.accepting:
            resolve, future = make_future()
            self._writer.add(FlushMarker(resolve), urgent=True)
            await future

    async def update_usage(
        self, correlation_id: str, input_tokens: int | None, output_tokens: int | None, cost_sats: Decimal | None
    ) -> int:
        """Write exactly these three columns of one row; None writes NULL.

        Returns the number of rows matched, after the commit: 1, or 0 for an unknown id. Ordered behind entries recorded
        before. Raises LedgerError when the ledger is not open, or is closed before the commit.
        """
        resolve, future = make_future()
        self._update(UsageUpdate.create(correlation_id, input_tokens, output_tokens, cost_sats, resolve), urgent=True)
        return await future

    def spawn_usage_update(
        self, correlation_id: str, input_tokens: int | None, output_tokens: int | None, cost_sats: Decimal | None
    ) -> None:
        """As `update_usage`, without waiting; never raises. Logs WARNING on zero rows or failure, DEBUG on success.

        Carried out before `close()` returns.
        """
        try:
            self._update(
                UsageUpdate.create(correlation_id, input_tokens, output_tokens, cost_sats, _report(correlation_id)),
                urgent=False,
            )
        except Exception as error:  # noqa: BLE001 - fire and forget
            logger.warning("ledger: usage of %s not updated: %s", correlation_id, describe_error(error))

    def _open_reader(self) -> QueryRunner:
        if self._writer is None or not self.is_open:
            raise LedgerError(_CLOSED)
        if self._writer.connections is None:
            raise LedgerUnavailable("the database can't answer: it has not been reached yet")
        return QueryRunner(self._writer.connections, self._statements, self._sql_dialect, self._cache)

    def _update(self, update: UsageUpdate, *, urgent: bool) -> None:
        if self._writer is None or not self._writer.accepting:
            raise LedgerError(_CLOSED)
        if self._limits.is_full(self._writer.queued, self._writer.size):
            raise LedgerError("too much is waiting to be written already")
        self._writer.add(update, urgent=urgent)


def _report(correlation_id: str) -> Resolve:
    def resolve(outcome: int | LedgerError) -> None:
        if isinstance(outcome, LedgerError):
            logger.warning("ledger: usage of %s not updated: %s", correlation_id, outcome)
        elif outcome == 0:
            logger.warning("ledger: usage of %s not updated: no such row", correlation_id)
        else:
            logger.debug("ledger: usage of %s updated", correlation_id)

    return resolve
