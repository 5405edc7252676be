"""What the ledger says of itself: what waits, what was not written, and how much may wait in memory."""

import logging
import time
from collections.abc import Callable

import msgspec

from arbstr_asgi._utils import Throttle

logger = logging.getLogger("arbstr_asgi.ledger")
_LOG_INTERVAL = 60.0  # seconds
_MAX_REMEMBERED = 10_000  # calls


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one process's ledger; counts are since it was made.

    `queued` entries (about `queued_bytes`) wait in memory, `spilled` rows (a file of `spill_bytes`) on disk, the
    oldest of both for `oldest_unwritten_seconds`. `spills`: rows can be kept on disk, as far as is known. `degraded`
    rows stand in the database without what it refused of them, `lost` entries nowhere; `late` answers went out before
    their rows were durable (`durability = "strict"`).
    """

    queued: int
    queued_bytes: int
    oldest_unwritten_seconds: float | None
    spilled: int
    spill_bytes: int
    spills: bool
    degraded: int
    lost: int
    late: int


class QueueLimits(msgspec.Struct, frozen=True):
    """How much may wait in memory: entries, and about how many bytes.

    With `refuse` no more calls are let in when it is reached, so that whatever comes from the running ones is kept.
    """

    entries: int = 100_000
    size: int = 128 * 1024 * 1024
    refuse: bool = False

    def is_full(self, entries: int, size: int) -> bool:
        """Whether one more entry is one too many."""
        return not self.refuse and not self.has_room(entries + 1, size)

    def has_room(self, entries: int, size: int) -> bool:
        """Whether so many entries may wait."""
        return entries <= self.entries and size < self.size


class LossCounters:
    """Lost entries; each is counted, CRITICAL is logged when the last such line is a minute old, and at the end.

    `degraded` counts rows that the database refused and that stand there without what it refused; `late` answers that
    went out before their rows were durable.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.count = 0
        self.degraded = 0
        self.late = 0
        self._degraded: dict[str, None] = {}
        self._logged_count = 0
        self._log_throttle = Throttle(_LOG_INTERVAL, now)
        self._late_log_throttle = Throttle(_LOG_INTERVAL, now)

    def add(self, number: int, reason: str) -> None:
        """Count `number` entries as lost."""
        self.count += number
        if self._log_throttle.allow():
            self._logged_count = self.count
            logger.critical("ledger: %d entries lost (%s), %d in all", number, reason, self.count)

    def degrade(self, correlation_id: str, reason: str) -> None:
        """Count a row that is not recorded as it was, and say so; once for each call, however often it comes."""
        if correlation_id in self._degraded:
            return
        if len(self._degraded) >= _MAX_REMEMBERED:
            del self._degraded[next(iter(self._degraded))]
        self._degraded[correlation_id] = None
        self.degraded += 1
        logger.error("ledger: the row of %s was refused and is recorded degraded: %s", correlation_id, reason)

    def add_late(self) -> None:
        """Count an answer whose row was not durable in time."""
        self.late += 1
        if self._late_log_throttle.allow():
            logger.warning("ledger: answers go out before their rows are durable, %d so far", self.late)

    def log_summary(self) -> None:
        """Say the final number, if it has not been said."""
        if self.count != self._logged_count:
            self._logged_count = self.count
            logger.critical("ledger: %d entries lost in all", self.count)
