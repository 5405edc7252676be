"""The background task that spills to disk the rows that the database has not accepted in time."""

import asyncio
import contextvars
from collections.abc import Callable
from contextlib import suppress

from arbstr_asgi.ledger.batch import Batch, PendingBatches
from arbstr_asgi.ledger.queue import WriteQueue
from arbstr_asgi.ledger.retry import RetryLoop
from arbstr_asgi.ledger.spill.store import SpillStore

SPILL_AFTER = 0.15  # seconds after an entry was queued
BATCH = 500  # rows
REMOVE_BATCH = 128  # rows


class SpillWriter:
    """Works beside the writer on the same `queue` and `pending` batches; neither waits for the other."""

    def __init__(self, spill: SpillStore, queue: WriteQueue, pending: PendingBatches, now: Callable[[], float]) -> None:
        self._spill = spill
        self._queue = queue
        self._batches = pending
        self._now = now
        self._event = asyncio.Event()
        self._retry = RetryLoop(f"ledger's spill {spill.slot.file}", lambda: None)
        self._task = asyncio.create_task(self._run(), name="arbstr-spill", context=contextvars.Context())

    @property
    def is_working(self) -> bool:
        """Whether the last write to the spill succeeded."""
        return not self._retry.failures

    def wake(self) -> None:
        """Notify the task of a new item."""
        self._event.set()

    async def stop(self, timeout: float) -> None:
        """Stop the task, then spill all that is left, within `timeout` seconds."""
        self._task.cancel()
        await asyncio.wait({self._task})
        with suppress(Exception):  # the writer counts what is left
            async with asyncio.timeout(timeout):
                await self._spill_all(self._now())
                await self._remove_committed(len(self._batches.stale))

    async def _run(self) -> None:
        while True:
            await self._wait_until_due()
            retrying = self._retry.retrying(asyncio.sleep, lambda: False, self._waiting)
            await retrying(self._spill_due)

    async def _wait_until_due(self) -> None:
        while True:
            since = self._oldest_unspilled()
            seconds_left = SPILL_AFTER if since is None else since + SPILL_AFTER - self._now()
            if seconds_left <= 0:
                return
            if self._batches.stale and seconds_left > SPILL_AFTER / 2:
                await self._remove_committed(REMOVE_BATCH)
            elif since is None:
                self._event.clear()
                await self._event.wait()
            else:
                await asyncio.sleep(seconds_left)

    async def _remove_committed(self, limit: int) -> None:
        """Delete rows that have been committed since; a failure is harmless, the replay is idempotent."""
        records = self._batches.stale[:limit]
        with suppress(Exception):
            await self._spill.remove_committed(records)
        del self._batches.stale[: len(records)]

    async def _spill_due(self) -> None:
        await self._spill_all(self._now() - SPILL_AFTER)

    async def _spill_all(self, until: float) -> None:
        """Spill batch by batch while the oldest row was queued before `until`."""
        while True:
            since = self._queue.since
            if since is not None and since <= until:
                self._batches.take(self._queue, BATCH)
            batch = self._first_unspilled()
            if batch is None or batch.since > until:
                return
            await self._spill.write(batch.records)
            self._batches.mark_spilled(batch)
            self._retry.recovered()

    def _first_unspilled(self) -> Batch | None:
        return next(iter(self._batches.unspilled), None)

    def _oldest_unspilled(self) -> float | None:
        """When the oldest item that is in memory only was queued."""
        first = self._first_unspilled()
        waiting = self._queue.since
        if first is None or waiting is None:
            return waiting if first is None else first.since
        return min(first.since, waiting)

    def _waiting(self) -> int:
        return len(self._queue) + len(self._batches)
