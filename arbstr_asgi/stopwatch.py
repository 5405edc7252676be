"""How long a call has taken so far."""

from collections.abc import Callable


class Stopwatch:
    """Counts from `start`, which is a time of the clock `now`, in seconds."""

    __slots__ = ("_now", "_start")

    def __init__(self, start: float, now: Callable[[], float]) -> None:
        self._start = start
        self._now = now

    def seconds(self) -> float:
        """Seconds since the start."""
        return self._now() - self._start

    def ms(self) -> int:
        """Milliseconds since the start."""
        return round((self._now() - self._start) * 1000)
