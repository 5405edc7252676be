"""How long to wait after the database failed, and how often to say so."""

import logging
import random
import time

from databases import Database

from arbstr_asgi.ledger.faults import described

logger = logging.getLogger("arbstr_asgi.ledger")

_FIRST_PAUSE = 0.1  # seconds; doubled for each failure in a row
_LONGEST_PAUSE = 5.0
_QUIET = 30.0


class Trouble:
    """Failures in a row; WARNING at the first and then every half minute, INFO when it is over."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._failures = 0
        self._quiet_until = float("-inf")

    def note(self, error: Exception, waiting: int) -> float:
        """Another failure; returns the seconds to wait, jittered."""
        if not self._failures or time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + _QUIET
            what = described(error, self._database)
            logger.warning("ledger: can't write, %d waiting, trying again: %s", waiting, what)
        pause = min(_FIRST_PAUSE * 2.0 ** min(self._failures, 10), _LONGEST_PAUSE)
        self._failures += 1
        return pause * random.uniform(0.5, 1.0)  # noqa: S311 - jitter

    def over(self) -> None:
        """A commit succeeded."""
        if self._failures:
            logger.info("ledger: writing again after %d failures", self._failures)
            self._failures = 0
