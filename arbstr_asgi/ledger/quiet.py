"""Says a thing at most every so often."""

import time
from collections.abc import Callable


class Throttle:
    """`over()` is True the first time, and then again once `seconds` have passed since it was."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._now = now
        self._until = float("-inf")

    def allow(self) -> bool:
        """Whether it may be said now; it then counts as said."""
        if self._now() < self._until:
            return False
        self._until = self._now() + self._seconds
        return True
