"""The background task that writes batches: takes them from the queue, retries until the commit, replays the spill."""

import asyncio
import contextvars
import logging
import threading
from contextlib import suppress
from time import monotonic
from typing import Any

from arbstr_asgi.database.connections import ConnectionTasks
from arbstr_asgi.database.database import LedgerDatabase
from arbstr_asgi.database.statements import Statements
from arbstr_asgi.errors import LedgerError, LedgerUnavailable
from arbstr_asgi.ledger.batch import PendingBatches
from arbstr_asgi.ledger.queue import FlushMarker, Item, UsageUpdate, WriteQueue
from arbstr_asgi.ledger.recovery import Recovery
from arbstr_asgi.ledger.retry import RetryLoop
from arbstr_asgi.ledger.spill.store import Spill
from arbstr_asgi.ledger.spill.writer import SpillWriter
from arbstr_asgi.ledger.status import LossCounters
from arbstr_asgi.stats.rollups.dirty_hours import DirtyHours

logger = logging.getLogger("arbstr_asgi.ledger")

BATCH = 500  # rows
BATCH_WINDOW = 0.05  # seconds from the first item to its batch
GRACE = 1.0  # seconds for cancelled work to release its connection, and for the rest to be spilled
LAST_FLUSH_TIMEOUT = 5.0  # seconds, if the loop ends without `stop`
_SAFE_STOP_TIMEOUT = 1.0  # seconds, if all rows are on disk
_SHUTDOWN_RETRY_PAUSE = 0.2  # seconds


class Writer:
    """Owns the queue, the pending batches, the spill and the connections. Created and stopped by `Ledger`."""

    def __init__(
        self,
        target: LedgerDatabase,
        statements: Statements,
        losses: LossCounters,
        spill: Spill | None,
        *,
        migrate: bool,
    ) -> None:
        self._target = target
        self._migrate = migrate
        self._losses = losses
        self._queue = WriteQueue()
        dirty_hours = DirtyHours()
        self._batches = PendingBatches(target.driver, statements, losses, dirty_hours)
        self.spill = None if spill is None else spill.store
        self._recovery = Recovery(target.driver, statements, losses, spill, dirty_hours, self._batches.stale, monotonic)
        self._wake_up = asyncio.Event()
        self._urgent = asyncio.Event()
        self._ending = asyncio.Event()
        self._stopped = False  # `stop` has timed out
        self._failure: LedgerError | None = None  # an error that needs an operator
        self.accepting = True
        self.connections: ConnectionTasks | None = None
        self._retry = RetryLoop("ledger", lambda: target.database)
        self._grace = GRACE
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        # An empty context: a ledger opened by the first request must not keep that request's trace context.
        self._task = self._loop.create_task(self._run(), name="arbstr-ledger", context=contextvars.Context())
        self._spill_writer = (
            None if self.spill is None else SpillWriter(self.spill, self._queue, self._batches, monotonic)
        )

    @property
    def queued(self) -> int:
        """The number of operations in memory that are neither committed nor on disk."""
        return len(self._queue) + self._batches.waiting

    @property
    def size(self) -> int:
        """About how many bytes those take."""
        return self._queue.size + self._batches.size

    @property
    def oldest(self) -> float | None:
        """The age of the oldest of those, in seconds."""
        since = [at for at in (self._batches.since, self._queue.since) if at is not None]
        return monotonic() - min(since) if since else None

    @property
    def spills(self) -> bool:
        """Whether rows can be spilled to disk, as far as is known."""
        return self._spill_writer is not None and self._spill_writer.is_working

    async def opened(self, timeout: float) -> None:
        """Wait until the first attempt to open the database has ended, for at most `timeout` seconds.

        Raises LedgerError where an operator has to act; nothing is left open then. After any other failure it is
        retried.
        """
        await asyncio.wait({self._opened}, timeout=timeout)
        self._first_attempt_over()
        if self._opened.exception() is not None:
            await asyncio.wait({self._task})
            self._opened.result()

    def add(self, item: Item, *, urgent: bool = False) -> None:
        """Queue an item, thread-safe; an `urgent` one is written without waiting for BATCH_WINDOW."""
        waiting = self._queue.add(item, monotonic())
        urgent_now = urgent or waiting >= BATCH
        if waiting > 1 and not urgent_now:  # the first item has notified the tasks
            return
        if threading.get_ident() == self._thread:
            self._wake(urgent_now=urgent_now)
        else:
            self._loop.call_soon_threadsafe(lambda: self._wake(urgent_now=urgent_now))

    async def stop(self, timeout: float) -> None:
        """Write the queue, for at most `timeout` seconds, then spill the rest and end.

        Takes about a second at most where the database does not answer and all rows are safe in the spill.
        """
        self._ending.set()
        self._wake(urgent_now=True)
        self._grace = min(GRACE, timeout / 4)
        started = self._loop.time()
        while not self._task.done():
            remaining = started + timeout - self._grace * 2 - self._loop.time()
            if remaining <= 0 or (self._is_safe() and self._loop.time() >= started + _SAFE_STOP_TIMEOUT):
                break
            await asyncio.wait({self._task}, timeout=min(remaining, 0.1))
        if not self._task.done():
            self._stopped = True
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=self._grace * 2)

    def _is_safe(self) -> bool:
        return not self._queue and self._batches.can_wait

    def _wake(self, *, urgent_now: bool) -> None:
        self._wake_up.set()
        if self._spill_writer is not None:
            self._spill_writer.wake()
        if urgent_now:
            self._urgent.set()

    async def _run(self) -> None:
        try:
            await self._write_until_stopped()
        except asyncio.CancelledError:
            if not self._stopped:  # the loop is closing without `stop`
                await self._last_flush()
            raise
        except LedgerError as error:
            self._opened.set_exception(error)
        finally:
            self.accepting = False
            await self._shut_down()

    async def _shut_down(self) -> None:
        if self.connections is not None:
            await self.connections.end(self._grace)
        if self._spill_writer is not None:
            await self._spill_writer.stop(self._grace)
        self._report_unwritten()
        await self._recovery.close()
        if self.spill is not None:
            await self.spill.close()
        await self._target.close()

    async def _last_flush(self) -> None:
        self._ending.set()
        self._urgent.set()
        if self.connections is not None:
            await self.connections.end(self._grace)
        with suppress(Exception):
            async with asyncio.timeout(LAST_FLUSH_TIMEOUT):
                await self._write_until_stopped()

    async def _write_until_stopped(self) -> None:
        while await self._has_work():
            retrying = self._retry.retrying(self._pause, self._should_give_up, lambda: self.queued)
            try:
                await retrying(self._attempt)
            except Exception:
                if self._failure is not None:
                    raise
                return  # stopping, and the rest is safe on disk

    def _should_give_up(self) -> bool:
        return self._failure is not None or (self._ending.is_set() and self._is_safe())

    async def _attempt(self) -> None:
        if self.connections is None:
            try:
                self.connections = await self._target.open(migrate=self._migrate)
            except LedgerError as error:
                if isinstance(error, LedgerUnavailable) or self._opened.done():
                    self._first_attempt_over()
                else:
                    self._failure = error
                raise
            self._first_attempt_over()
        await self.connections.run(self._write_and_replay)

    def _first_attempt_over(self) -> None:
        if not self._opened.done():
            self._opened.set_result(None)

    async def _has_work(self) -> bool:
        """Wait for work and, for BATCH_WINDOW, for more of it; False once stopping and all is written."""
        while not self._batches and not self._queue and not self._may_replay():
            if self._ending.is_set():
                return False
            self._wake_up.clear()
            self._urgent.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._recovery.seconds_to_wait):
                    await self._wake_up.wait()
        since = self._queue.since
        if since is None or self._batches or len(self._queue) >= BATCH or self._ending.is_set() or self._may_replay():
            return True
        with suppress(TimeoutError):
            async with asyncio.timeout(since + BATCH_WINDOW - monotonic()):
                await self._urgent.wait()
        return True

    def _may_replay(self) -> bool:
        """Whether to replay the spill; while stopping only our own."""
        return self._recovery.waiting and (self._recovery.own_waiting or not self._ending.is_set())

    async def _write_and_replay(self, raw: Any) -> None:
        """On one connection: write pending batches, then replay the spill; on SQLite keep it for later batches."""
        recovering = self._retry.failures > 0
        if recovering:
            await self._target.driver.limit_disk_use(raw)
        while True:
            await self._write(raw)
            if self._may_replay():
                await self._recovery.replay_batch(raw)
                self._retry.recovered()
            elif recovering or not self._target.driver.keeps_connection or not await self._has_work():
                return

    async def _write(self, raw: Any) -> None:
        if not self._batches:
            self._batches.take(self._queue, BATCH)
        if not self._queue:
            self._urgent.clear()
        while self._batches:
            if self._batches.needs_order and self._recovery.own_rows:
                await self._recovery.replay_own(raw)
            await self._batches.write(raw)
            self._retry.recovered()
            if self._spill_writer is not None and self._batches.stale:
                self._spill_writer.wake()

    async def _pause(self, seconds: float) -> None:
        if self._ending.is_set():
            await asyncio.sleep(min(seconds, _SHUTDOWN_RETRY_PAUSE))
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._ending.wait()

    def _report_unwritten(self) -> None:
        """Count and log all entries that are neither committed nor spilled, and fail the pending updates."""
        remaining = [*self._batches.clear(), *self._queue.clear()]
        lost = sum(not isinstance(item, UsageUpdate | FlushMarker) for item in remaining)
        if lost:
            self._losses.add(lost, "the ledger was closed before they could be written")
        self._losses.log_summary()
        if self.spill is not None and self.spill.rows:
            logger.warning("ledger: %d rows wait in %s for the next start", self.spill.rows, self.spill.slot.file)
        for item in remaining:
            if isinstance(item, UsageUpdate | FlushMarker):
                item.resolve(LedgerError("the ledger was closed before this could be written"))
