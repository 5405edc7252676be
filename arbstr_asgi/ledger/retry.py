"""Retries with exponential backoff and jitter, and rate-limited logging of the failures."""

import logging
from collections.abc import Awaitable, Callable

from databases import Database
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential, wait_random

from arbstr_asgi._utils import Throttle
from arbstr_asgi.database.drivers.base import describe_error
from arbstr_asgi.errors import LedgerError, LedgerUnavailable

logger = logging.getLogger("arbstr_asgi.ledger")

_FIRST_PAUSE = 0.1  # seconds; doubled per failure, plus jitter of up to as much
_LONGEST_PAUSE = 5.0
_LOG_INTERVAL = 30.0


class RetryLoop:
    """Retries one kind of write. Logs WARNING at the first failure and then every half minute, INFO on recovery."""

    def __init__(self, name: str, database: Callable[[], Database | None]) -> None:
        self._name = name
        self._database = database
        self._log_throttle = Throttle(_LOG_INTERVAL)
        self.failures = 0

    def retrying(
        self,
        pause: Callable[[float], Awaitable[None]],
        give_up: Callable[[], bool],
        waiting: Callable[[], int],
    ) -> AsyncRetrying:
        """Retry until success; raises the last error once `give_up()` is True. `pause(seconds)` waits in between."""

        def failed(state: RetryCallState) -> None:
            assert state.outcome is not None
            error = state.outcome.exception()
            assert isinstance(error, Exception)
            self.note(error, waiting())

        return AsyncRetrying(
            retry=retry_if_exception_type(Exception),
            wait=wait_exponential(multiplier=_FIRST_PAUSE, max=_LONGEST_PAUSE) + wait_random(0, _FIRST_PAUSE),
            stop=lambda state: give_up(),
            sleep=pause,
            before_sleep=failed,
            reraise=True,
        )

    def note(self, error: Exception, waiting: int) -> None:
        """Count and log a failure; `waiting` is the number of queued items."""
        if self._log_throttle.allow() or not self.failures:
            ours = isinstance(error, LedgerError)
            level = logging.ERROR if ours and not isinstance(error, LedgerUnavailable) else logging.WARNING
            reason = str(error) if ours else describe_error(error, self._database())
            logger.log(level, "%s: can't write, %d waiting, trying again: %s", self._name, waiting, reason)
        self.failures += 1

    def recovered(self) -> None:
        """A write has succeeded: log it, and reset the count of failures."""
        if self.failures:
            logger.info("%s: writing again after %d failures", self._name, self.failures)
            self.failures = 0
