"""Learns that a client has hung up; no server tells an app unless it asks."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.types import Receive

MAX_MESSAGES = 16  # a server has nothing to say between the request and the hang-up; never spin on one that has


@contextmanager
def watching(receive: Receive, left: Callable[[], None]) -> Iterator[None]:
    """Call `left` from the event loop when `receive` says that the client is gone, during the block."""

    async def watch() -> bool:
        for _ in range(MAX_MESSAGES):
            if (await receive())["type"] == "http.disconnect":
                return True
        return False

    def done(task: asyncio.Task[bool]) -> None:
        # A receive that raises says nothing about the client.
        if not task.cancelled() and task.exception() is None and task.result():
            left()

    task = asyncio.ensure_future(watch())
    task.add_done_callback(done)
    try:
        yield
    finally:
        task.remove_done_callback(done)
        task.add_done_callback(_forget)
        task.cancel()


def _forget(task: asyncio.Task[bool]) -> None:
    if not task.cancelled():
        task.exception()
