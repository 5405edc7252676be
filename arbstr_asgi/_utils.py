"""Helpers that several packages share: request ids, a log throttle, iteration in batches."""

import asyncio
import importlib.util
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
ROWS_PER_BATCH = 200  # rows
MAX_NAME_CHARACTERS = 255


def new_request_id() -> str:
    """A random UUID (RFC 9562, version 4) as text; `str(uuid.uuid4())` takes three times as long."""
    digits = os.urandom(16).hex()
    return (
        f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{'89ab'[int(digits[16], 16) & 3]}{digits[17:20]}-{digits[20:]}"
    )


def is_installed(package: str) -> bool:
    """Whether the package can be imported; it is not imported."""
    return importlib.util.find_spec(package) is not None


def is_name(value: object) -> bool:
    """Whether this name of an end user or a tenant is stored unchanged by every database: such a name is never cut."""
    if not isinstance(value, str) or len(value) > MAX_NAME_CHARACTERS or "\0" in value:
        return False
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


class Throttle:
    """Rate-limits an action such as a log line: `allow()` is True at most once per `seconds`."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._now = now
        self._until = float("-inf")

    def allow(self) -> bool:
        """Whether the action may be done now; True starts a new interval."""
        if self._now() < self._until:
            return False
        self._until = self._now() + self._seconds
        return True


async def in_batches(rows: Sequence[T], size: int = ROWS_PER_BATCH) -> AsyncIterator[Sequence[T]]:
    """Yield slices of at most `size` rows, and give other tasks a turn of the event loop after each."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
        await asyncio.sleep(0)
