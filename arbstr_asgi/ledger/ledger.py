"""The ledger as the gateway sees it."""

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

COMMIT_PATIENCE = 2.0  # seconds for which an answer is held for its row

_CLOSED = "the ledger is not open"


class Ledger(LedgerQueries):
    """Records one row for each call; give it a `url`, or a connected `database` of the host's.

    The table prefix is "" on a database of our own and "arbstr_" on the host's; `migrate` (at start) is on for our own
    and off for the host's. `spill` is the folder below which rows wait for a database that can't take them (default:
    beside an SQLite file, else `arbstr-spill`). `durable` commits survive a power cut on SQLite too. At most `bounds`
    wait in memory. Rows older than `retention_days` are deleted, and their roll-ups kept. Raises ConfigError for what
    can't work; nothing is read or opened before `open()`.
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
        """Whether `record` keeps what it is given."""
        return self._writer is not None and self._writer.accepting

    @property
    def queued(self) -> int:
        """Entries that are recorded and neither committed nor on disk."""
        return 0 if self._writer is None else self._writer.queued

    @property
    def lost(self) -> int:
        """Entries that could not be kept, since this object was made."""
        return self._losses.count

    @property
    def worker_id(self) -> str:
        """Who writes: host, process and, where there is a spill, its folder; different for each opening."""
        return self._worker_id

    @property
    def spill_folder(self) -> Path:
        """Where rows wait on disk while the database can't take them."""
        return self._target.spill_folder(self._spill_below)

    def snapshot(self) -> Snapshot:
        """What waits, and what went wrong."""
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
        """Whether the entries of so many more calls could be kept in memory."""
        return self._writer is not None and self._limits.has_room(self._writer.queued + 2 * calls, self._writer.size)

    async def open(self, patience: float = 5.0) -> None:
        """Start writing: connect, migrate or check the schema.

        Where the database does not answer, or not within `patience` seconds, rows are spilled until it does. Raises
        LedgerError for what will not work until somebody mends it (a missing schema, a wrong folder), and leaves
        nothing open then.
        """
        if self.is_open or self._opening:
            raise LedgerError("the ledger is open already")
        self._target.check()
        self._opening = True
        try:
            result = await open_spill(self.spill_folder, durable=self._durable)
            self._worker_id = new_worker_id(result.locks.id if result else "")
            if result is not None:
                result.spill.slot.write_owner(self._worker_id)
            self._writer = Writer(self._target, self._statements, self._losses, result, migrate=self._migrate)
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
        """Write everything recorded and every spawned update, for at most `timeout` seconds, then disconnect ours.

        What the database did not take is in the spill for the next start; what that can't take either is counted in
        `lost` and logged as CRITICAL. A second call does nothing.
        """
        if self._scheduler is not None:
            await self._scheduler.stop()
        if self._writer is not None:
            await self._writer.stop(timeout)

    def record(self, entry: LedgerEntry) -> None:
        """Queue one state of a call; the highest revision stays. Never raises, never waits, from any thread."""
        if isinstance(entry, LedgerEntry):
            self._add(entry)
        else:
            self._losses.add(1, "not an entry")

    def record_started(self, call: PendingEntry) -> None:
        """Queue the first state of a call, of which it is asked on the loop's thread when that is to be written.

        It isn't, where its entry is recorded before. Never raises, never waits, from any thread.
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
        """Record, and return once that is in the database or in the spill; after two seconds in any case, counted."""
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
        """Return when everything recorded so far is committed. Raises LedgerError if it is closed before."""
        if self._writer is not None and self._writer.accepting:
            resolve, future = make_future()
            self._writer.add(FlushMarker(resolve), urgent=True)
            await future

    async def update_usage(
        self, correlation_id: str, input_tokens: int | None, output_tokens: int | None, cost_sats: Decimal | None
    ) -> int:
        """Write exactly these three columns of one row; None writes NULL.

        Returns the number of rows matched, after the commit: 1, or 0 for an unknown id. Stays behind what was recorded
        before. Raises LedgerError when the ledger is not open, or is closed before the commit.
        """
        resolve, future = make_future()
        self._update(UsageUpdate.create(correlation_id, input_tokens, output_tokens, cost_sats, resolve), urgent=True)
        return await future

    def spawn_usage_update(
        self, correlation_id: str, input_tokens: int | None, output_tokens: int | None, cost_sats: Decimal | None
    ) -> None:
        """The same without waiting; never raises. Logs WARNING on zero rows and on failure, DEBUG on success.

        Finished before `close()` is.
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
