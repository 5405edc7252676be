"""Replays spilled rows, our own and those of dead processes, and closes the calls that those left in flight."""

import logging
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from typing import Any

from arbstr_asgi.database import values
from arbstr_asgi.database.drivers.base import Driver, describe_error
from arbstr_asgi.database.statements import Statements
from arbstr_asgi.database.values import Record
from arbstr_asgi.ledger.batch import PendingBatches
from arbstr_asgi.ledger.spill.locks import SpillLocks
from arbstr_asgi.ledger.spill.store import Spill, SpillStore
from arbstr_asgi.ledger.status import LossCounters
from arbstr_asgi.stats.rollups.dirty_hours import DirtyHours

logger = logging.getLogger("arbstr_asgi.ledger")

BATCH = 500  # rows
ABANDONED = "abandoned: its process ended before the reply did"
UNKNOWN_OWNER_AGE = timedelta(hours=24)  # of an in-flight call whose process is unknown
_MAX_BATCH_SECONDS = 0.05  # longer batches delay new rows
_MIN_BATCH = 25  # rows
_RETRY_PAUSE = 5.0  # seconds


class Recovery:
    """The background work of the writer; every step is idempotent, since revisions decide which state is kept."""

    def __init__(
        self,
        driver: Driver,
        statements: Statements,
        losses: LossCounters,
        spill: Spill | None,
        dirty_hours: DirtyHours,
        stale: Collection[Record],
        now: Callable[[], float],
    ) -> None:
        self._driver = driver
        self._statements = statements
        self._losses = losses
        self._dirty_hours = dirty_hours
        self._stale = stale  # committed rows in our own spill, not to be replayed
        self._locks = None if spill is None else spill.locks
        self._spill = None if spill is None else spill.store
        self._now = now
        self._retry_at = float("-inf")
        self._batch_size = BATCH
        self._orphans: list[SpillStore] | None = None  # None: not searched yet
        self._has_in_flight = True

    @property
    def waiting(self) -> bool:
        """Whether `replay_batch` has something to do."""
        if not self.own_waiting and not self._has_in_flight:
            return False
        return self._now() >= self._retry_at

    @property
    def own_rows(self) -> bool:
        """Whether our own spill holds any row, which may be the only state of its call."""
        return self._spill is not None and self._spill.rows > 0

    @property
    def own_waiting(self) -> bool:
        """Whether our own spill holds rows that are not in the database."""
        return self._spill is not None and self._spill.rows > len(self._stale)

    @property
    def seconds_to_wait(self) -> float | None:
        """Seconds until there is something to do; None: nothing is left."""
        if not self.own_waiting and not self._has_in_flight:
            return None
        return max(self._retry_at - self._now(), 0.0)

    async def replay_batch(self, raw: Any) -> None:
        """One batch, or one other step. Raises what the database raises; an error of a spill only causes a pause."""
        if self._spill is not None and self._spill.rows:
            await self._replay(raw, self._spill)
        elif self._orphans is None:
            try:
                self._orphans = [] if self._locks is None else await self._claim(self._locks)
            except OSError as error:
                self._warn(error)
        elif self._orphans:
            if self._orphans[0].rows:
                await self._replay(raw, self._orphans[0])
            else:
                await self._orphans.pop(0).close()
        else:
            before = datetime.now(UTC)  # calls of processes that start from now on are later
            try:
                live_owners = set() if self._locks is None else self._locks.live_owners()
            except OSError as error:
                self._warn(error)
                return
            await self._abandon(raw, live_owners, before)
            self._has_in_flight = False

    async def replay_own(self, raw: Any) -> None:
        """Replay all of our own spill, for an operation that must come after it; stops where it can not be read."""
        while self._spill is not None and self._spill.rows and self._now() >= self._retry_at:
            await self._replay(raw, self._spill)

    async def close(self) -> None:
        """Release the spills of other processes."""
        for orphan in self._orphans or ():
            await orphan.close()

    async def _replay(self, raw: Any, spill: SpillStore) -> None:
        started = self._now()
        try:
            spilled = await spill.read(self._batch_size)
        except Exception as error:  # noqa: BLE001
            self._warn(error)
            return
        pending = PendingBatches(self._driver, self._statements, self._losses, self._dirty_hours)
        pending.put([record for _, record in spilled])
        while pending:
            await pending.write(raw)
        try:
            await spill.remove(spilled)
        except Exception as error:  # noqa: BLE001
            self._warn(error)
        slow = self._now() - started > _MAX_BATCH_SECONDS
        self._batch_size = max(self._batch_size // 2, _MIN_BATCH) if slow else min(self._batch_size * 2, BATCH)

    async def _claim(self, locks: SpillLocks) -> list[SpillStore]:
        """Open the spills of dead processes; one that can not be read is logged and left."""
        result: list[SpillStore] = []
        for slot in locks.orphans():
            spill = SpillStore(slot)
            try:
                await spill.open()
            except Exception as error:  # noqa: BLE001
                await spill.close()
                logger.warning("ledger: the spill %s can't be read: %s", slot.file, describe_error(error))
            else:
                result.append(spill)
        return result

    async def _abandon(self, raw: Any, live_owners: set[str], before: datetime) -> None:
        """Close the calls of dead processes as abandoned: those of this spill folder without a live owner.

        Calls of unknown processes are closed when they are older than UNKNOWN_OWNER_AGE.
        """
        after = 0
        while True:
            parameters = (self._driver.read_timestamp(values.timestamp(before)), after, BATCH)
            result = await self._driver.fetch(raw, self._statements.in_flight, parameters)
            dead = {
                call: at for _, call, worker_id, at in result if self._is_abandoned(worker_id, at, live_owners, before)
            }
            if dead:
                marks = self._dirty_hours.marks(map(values.read_timestamp, dead.values()))
                async with self._driver.begin(raw):
                    await self._driver.execute_many(raw, self._statements.mark_hour, marks)
                    for call in dead:
                        await self._driver.execute(raw, self._statements.abandon, (ABANDONED, call))
                        await self._driver.execute(raw, self._statements.abandon_attempt, (ABANDONED, call))
                logger.warning("ledger: %d calls of processes that died are closed as abandoned", len(dead))
            if len(result) < BATCH:
                return
            after = result[-1][0]

    def _is_abandoned(self, worker_id: str | None, select_timestamp: Any, live_owners: set[str], now: datetime) -> bool:
        if worker_id in live_owners:
            return False
        if self._locks is not None and f":{self._locks.id}." in (worker_id or ""):
            return True
        return values.read_timestamp(select_timestamp) < now - UNKNOWN_OWNER_AGE

    def _warn(self, error: Exception) -> None:
        self._retry_at = self._now() + _RETRY_PAUSE
        logger.warning("ledger: the spill can't be replayed, trying again: %s", describe_error(error))
