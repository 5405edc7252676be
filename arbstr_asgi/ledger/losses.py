"""Counts what was not written, not as it was, or not in time, and says so at most once a minute."""

import logging
import time
from collections.abc import Callable

from arbstr_asgi.ledger.quiet import Throttle

logger = logging.getLogger("arbstr_asgi.ledger")

_QUIET = 60.0  # seconds
_REMEMBERED = 10_000  # calls


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
        self._said = 0
        self._quiet = Throttle(_QUIET, now)
        self._quiet_when_late = Throttle(_QUIET, now)

    def add(self, number: int, reason: str) -> None:
        """Count `number` entries as lost."""
        self.count += number
        if self._quiet.allow():
            self._said = self.count
            logger.critical("ledger: %d entries lost (%s), %d in all", number, reason, self.count)

    def degrade(self, correlation_id: str, reason: str) -> None:
        """Count a row that is not recorded as it was, and say so; once for each call, however often it comes."""
        if correlation_id in self._degraded:
            return
        if len(self._degraded) >= _REMEMBERED:
            del self._degraded[next(iter(self._degraded))]
        self._degraded[correlation_id] = None
        self.degraded += 1
        logger.error("ledger: the row of %s was refused and is recorded degraded: %s", correlation_id, reason)

    def add_late(self) -> None:
        """Count an answer whose row was not durable in time."""
        self.late += 1
        if self._quiet_when_late.allow():
            logger.warning("ledger: answers go out before their rows are durable, %d so far", self.late)

    def log_summary(self) -> None:
        """Say the final number, if it has not been said."""
        if self.count != self._said:
            self._said = self.count
            logger.critical("ledger: %d entries lost in all", self.count)
