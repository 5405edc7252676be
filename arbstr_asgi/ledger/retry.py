"""How long to wait after a database failed, and how often to say so."""

import logging
from collections.abc import Awaitable, Callable

from databases import Database
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential, wait_random

from arbstr_asgi._utils import Throttle
from arbstr_asgi.database.drivers.base import describe_error
from arbstr_asgi.errors import LedgerError, LedgerUnavailable

logger = logging.getLogger("arbstr_asgi.ledger")

_FIRST_PAUSE = 0.1  # seconds; doubled for each failure in a row, and as much again at random
_LONGEST_PAUSE = 5.0
_LOG_INTERVAL = 30.0


class RetryLoop:
    """Failures in a row of one place; WARNING at the first and then every half minute, INFO when it is over."""

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
        """Attempts of one piece of work until it succeeds; then raises the last error if told to `give_up`."""

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
        """Another failure."""
        if self._log_throttle.allow() or not self.failures:
            ours = isinstance(error, LedgerError)
            level = logging.ERROR if ours and not isinstance(error, LedgerUnavailable) else logging.WARNING
            reason = str(error) if ours else describe_error(error, self._database())
            logger.log(level, "%s: can't write, %d waiting, trying again: %s", self._name, waiting, reason)
        self.failures += 1

    def recovered(self) -> None:
        """It works."""
        if self.failures:
            logger.info("%s: writing again after %d failures", self._name, self.failures)
            self.failures = 0
