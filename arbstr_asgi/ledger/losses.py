"""Counts what could not be written, and says so at most once a minute."""

import logging
import time
from collections.abc import Callable

logger = logging.getLogger("arbstr_asgi.ledger")

_QUIET = 60.0  # seconds


class Losses:
    """Lost entries; each is counted, CRITICAL is logged when the last such line is a minute old."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.count = 0
        self._now = now
        self._quiet_until = float("-inf")

    def add(self, number: int, reason: str, *, always: bool = False) -> None:
        """Count `number` entries as lost; `always` logs in any case."""
        self.count += number
        if always or self._now() >= self._quiet_until:
            self._quiet_until = self._now() + _QUIET
            logger.critical("ledger: %d entries lost (%s), %d in all", number, reason, self.count)
