"""Ends what a task waits for when a deadline has passed or somebody says so, with one timer for all calls of a loop."""

import asyncio
from collections.abc import Callable
from math import inf
from types import TracebackType
from typing import Self

LONGEST_PAUSE = 60.0  # seconds between looks at a deadline


class Deadline:
    """A context that can be left from outside: `cancel` cancels its task and swallows exactly that cancellation.

    A cancellation that comes from elsewhere passes through. The deadline is looked at lazily: to move it only sets an
    attribute, and the loop's timer, which serves all deadlines, looks again later. Seconds of the loop's clock.
    """

    __slots__ = (
        "_calls",
        "_cancelling",
        "_loop",
        "_pause",
        "_task",
        "_timed",
        "_timer",
        "_total",
        "_total_reason",
        "limit",
        "reason",
    )

    def __init__(self, timer: "DeadlineTimer | None" = None) -> None:
        """`timer` is that of the event loop; None: one of its own."""
        self.reason: str | None = None
        """Why the block was left; None: it was not, from outside."""
        self.limit = inf
        """The deadline on the loop's clock; to be set directly where `extend` would be called very often."""
        self._pause = LONGEST_PAUSE
        self._total = inf
        self._total_reason = "timeout"
        self._calls: tuple[tuple[float, Callable[[], None]], ...] = ()
        self._timer = timer
        self._timed = False
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
        if self._timed and self._timer is not None:
            self._timer.remove(self)
            self._calls = ()
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
        """Move the deadline to `limit` on the loop's clock (`inf` pauses it); never past `limit_total`."""
        self.limit = limit

    def start(self, seconds: float) -> None:
        """Cancel for "timeout" in `seconds`, unless extended."""
        self._pause = min(seconds, LONGEST_PAUSE)
        self.limit = self._loop.time() + seconds
        self._look_at(self.limit)

    def consume(self) -> bool:
        """Whether the cancellation at hand comes from the deadline, and from nowhere else: then the block goes on."""
        task = self._task
        if self.reason != "timeout" or task is None or task.cancelling() > self._cancelling + 1:
            return False
        task.uncancel()
        self.reason, self.limit = None, inf
        return True

    def limit_total(self, seconds: float, reason: str) -> None:
        """Cancel for `reason` in `seconds`, extended or not."""
        self._total, self._total_reason = self._loop.time() + seconds, reason
        self._look_at(self._total)

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call this in `seconds` if the block has not been left by then."""
        when = self._loop.time() + seconds
        self._calls = (*self._calls, (when, call))
        self._look_at(when)

    def _look_at(self, when: float) -> None:
        if self._timer is None:
            self._timer = DeadlineTimer(self._loop)
        self._timed = True
        self._timer.add(self, min(when, self._loop.time() + self._pause))

    def check(self, now: float) -> float:
        """Do what is due at `now`; returns when to look again."""
        if self._calls:
            due = [call for when, call in self._calls if when <= now]
            self._calls = tuple([later for later in self._calls if later[0] > now])
            for call in due:
                call()
        if now >= self._total:
            self.cancel(self._total_reason)
        elif now >= self.limit:
            self.cancel("timeout")
        if self.reason is not None:
            return now + self._pause  # `consume` may let the block go on
        return min(self.limit, self._total, now + self._pause, *[when for when, _ in self._calls])


class DeadlineTimer:
    """Looks at the deadlines of one event loop with one timer; one that moves to later costs nothing until then."""

    __slots__ = ("_armed", "_deadlines", "_loop", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._deadlines: dict[Deadline, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._armed = inf

    def add(self, deadline: Deadline, when: float) -> None:
        """Look at it at `when`, or earlier where it is known with an earlier time."""
        if when < self._deadlines.get(deadline, inf):
            self._deadlines[deadline] = when
            if when < self._armed:
                self._arm(when)

    def close(self) -> None:
        """Look at nothing more."""
        self._deadlines.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._armed = None, inf

    def remove(self, deadline: Deadline) -> None:
        """Look at it no more."""
        self._deadlines.pop(deadline, None)
        if not self._deadlines and self._timer is not None and self._armed - self._loop.time() > 1.0:
            self._timer.cancel()  # nothing of ours should stay in an idle loop for long
            self._timer, self._armed = None, inf

    def _arm(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed = when
        self._timer = self._loop.call_at(when, self._wake)

    def _wake(self) -> None:
        self._timer, self._armed = None, inf
        now, deadlines = self._loop.time(), self._deadlines
        for deadline in [deadline for deadline, when in deadlines.items() if when <= now]:
            deadlines[deadline] = inf
            deadlines[deadline] = min(deadline.check(now), deadlines[deadline])
        first = min(deadlines.values(), default=inf)
        if first < self._armed:
            self._arm(first)
