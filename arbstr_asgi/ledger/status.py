"""State of the ledger: the snapshot for health checks, the limits of the queue, counters of losses."""

import logging
import time
from collections.abc import Callable

import msgspec

from arbstr_asgi._utils import Throttle

logger = logging.getLogger("arbstr_asgi.ledger")
_LOG_INTERVAL = 60.0  # seconds
_MAX_REMEMBERED = 10_000  # calls


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """State of the ledger of one process; counters since it was created.

    `queued` entries (about `queued_bytes`) are in memory, `spilled` rows (a file of `spill_bytes`) on disk; the oldest
    of both has waited for `oldest_unwritten_seconds`. `spills`: rows can be spilled to disk, as far as is known.
    `degraded` rows are in the database without the values that it refused, `lost` entries nowhere; `late` responses
    were sent before their rows were durable (`durability = "strict"`).
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
    """Limits of the queue in memory: number of entries, and bytes.

    With `refuse` new calls are refused at the limit, so that every entry of a running call is kept.
    """

    entries: int = 100_000
    size: int = 128 * 1024 * 1024
    refuse: bool = False

    def is_full(self, entries: int, size: int) -> bool:
        """Whether one more entry would exceed the limits."""
        return not self.refuse and not self.has_room(entries + 1, size)

    def has_room(self, entries: int, size: int) -> bool:
        """Whether this many entries are within the limits."""
        return entries <= self.entries and size < self.size


class LossCounters:
    """Counters of lost, degraded and late entries, with rate-limited log lines.

    `degraded` counts rows that the database refused and that were written with fewer columns; `late` counts responses
    sent before their rows were durable.
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
        """Count `number` entries as lost; CRITICAL at most once a minute."""
        self.count += number
        if self._log_throttle.allow():
            self._logged_count = self.count
            logger.critical("ledger: %d entries lost (%s), %d in all", number, reason, self.count)

    def degrade(self, correlation_id: str, reason: str) -> None:
        """Count and log a degraded row, once per call."""
        if correlation_id in self._degraded:
            return
        if len(self._degraded) >= _MAX_REMEMBERED:
            del self._degraded[next(iter(self._degraded))]
        self._degraded[correlation_id] = None
        self.degraded += 1
        logger.error("ledger: the row of %s was refused and is recorded degraded: %s", correlation_id, reason)

    def add_late(self) -> None:
        """Count a response whose row was not durable in time."""
        self.late += 1
        if self._late_log_throttle.allow():
            logger.warning("ledger: answers go out before their rows are durable, %d so far", self.late)

    def log_summary(self) -> None:
        """Log the final number of losses, unless the last line said it."""
        if self.count != self._logged_count:
            self._logged_count = self.count
            logger.critical("ledger: %d entries lost in all", self.count)
