"""Long work in the event loop, cut into turns."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

T = TypeVar("T")

AT_ONCE = 200  # rows
TALLIES = 40  # that are read or made, with some hundreds of numbers each


async def in_batches(rows: Sequence[T], at_once: int = AT_ONCE) -> AsyncIterator[Sequence[T]]:
    """A few rows at a time; others have the loop in between."""
    for place in range(0, len(rows), at_once):
        yield rows[place : place + at_once]
        await asyncio.sleep(0)
