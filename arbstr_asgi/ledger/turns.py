"""Long work in the event loop, cut into turns."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

T = TypeVar("T")

AT_ONCE = 200  # rows


async def in_turns(rows: Sequence[T]) -> AsyncIterator[Sequence[T]]:
    """A few rows at a time; others have the loop in between."""
    for place in range(0, len(rows), AT_ONCE):
        yield rows[place : place + AT_ONCE]
        await asyncio.sleep(0)
