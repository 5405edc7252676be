"""Ends what a task waits for, when a deadline has passed or somebody says so."""

import asyncio
from math import inf
from types import TracebackType
from typing import Self

LONGEST_PAUSE = 60.0  # seconds between looks at a deadline


class Deadline:
    """A context that can be left from outside: `fire` cancels its task and swallows exactly that cancellation.

    A cancellation that comes from elsewhere passes through. The deadline is re-armed lazily: `touch` only sets an
    attribute, and a timer that finds itself early starts again. Seconds of the loop's clock.
    """

    __slots__ = ("_cancelling", "_loop", "_pause", "_reason", "_task", "_timer", "_total", "limit", "reason")

    def __init__(self) -> None:
        self.reason: str | None = None
        self.limit = inf
        """The deadline on the loop's clock, to be set where `touch` would be called very often."""
        self._pause = LONGEST_PAUSE
        self._total = inf
        self._reason = "timeout"
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[object] | None = None

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        task, self._task = self._task, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.reason is None or task is None:
            return False
        ours = task.uncancel() <= self._cancelling
        return ours and kind is asyncio.CancelledError

    def now(self) -> float:
        """The time of the loop's clock."""
        return self._loop.time()

    def cancel(self, reason: str) -> None:
        """Leave the context now; only the first reason counts."""
        if self._task is not None and self.reason is None:
            self.reason = reason
            self._task.cancel()

    def extend(self, limit: float) -> None:
        """Move the deadline to `limit` on the loop's clock (`inf` pauses it); never past `at_most`."""
        self.limit = limit

    def start(self, seconds: float) -> None:
        """Fire "timeout" in `seconds`, unless touched."""
        self._pause = min(seconds, LONGEST_PAUSE)
        self.limit = limit = self._loop.time() + seconds
        if self._timer is None or self._timer.when() > limit:
            self._arm()

    def consume(self) -> bool:
        """Whether the cancellation at hand comes from the deadline, and from nowhere else: then the block goes on."""
        task = self._task
        if self.reason != "timeout" or task is None or task.cancelling() > self._cancelling + 1:
            return False
        task.uncancel()
        self.reason, self.limit = None, inf
        return True

    def limit_total(self, seconds: float, reason: str) -> None:
        """Fire `reason` in `seconds`, touched or not."""
        self._total, self._reason = self._loop.time() + seconds, reason
        self._arm()

    def _arm(self) -> None:
        """Look at the deadlines when the first has come, or in a while, when both may have been moved."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(min(self.limit, self._total, self._loop.time() + self._pause), self._wake)

    def _wake(self) -> None:
        self._timer = None
        now = self._loop.time()
        if now >= self._total:
            self.cancel(self._reason)
        elif now >= self.limit:
            self.cancel("timeout")
        else:
            self._arm()
