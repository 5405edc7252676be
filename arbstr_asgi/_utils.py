"""Small things that several packages need."""

import asyncio
import importlib.util
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeVar

ROWS_PER_BATCH = 200  # rows


def new_request_id() -> str:
    """A random UUID (RFC 9562, version 4), as `str(uuid.uuid4())` makes it in three times the time."""
    digits = os.urandom(16).hex()
    return (
        f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{'89ab'[int(digits[16], 16) & 3]}{digits[17:20]}-{digits[20:]}"
    )


def is_installed(package: str) -> bool:
    """Whether there is such a package; nothing of it is imported."""
    return importlib.util.find_spec(package) is not None


class Throttle:
    """`allow()` is True the first time, and then again once `seconds` have passed since it was."""

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


T = TypeVar("T")


async def in_batches(rows: Sequence[T], size: int = ROWS_PER_BATCH) -> AsyncIterator[Sequence[T]]:
    """A few rows at a time; others have the loop in between."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
        await asyncio.sleep(0)
