"""Clients that call one after the other for as long as the block lasts."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tests.faults.calls import Call, register, until_all

AT_ONCE = 20  # streams that are opened together
PAUSE = 0.1  # seconds after a call that nobody took


def mixed(number: int) -> Call:
    """Two of three calls are streams."""
    return Call(streaming=number % 3 != 0, events=3 + number % 5)


@asynccontextmanager
async def load(url: str, clients: int, make: Callable[[int], Call] = mixed) -> AsyncIterator[list[Call]]:
    """So many clients at once; gives the calls as they are made. What has begun is finished at the end."""
    calls: list[Call] = []
    over = asyncio.Event()

    async def client() -> None:
        while not over.is_set():
            call = register(make(len(calls)))
            calls.append(call)
            await call.make(url)
            if not call.status:
                await asyncio.sleep(PAUSE)

    tasks = [asyncio.create_task(client()) for _ in range(clients)]
    try:
        yield calls
    finally:
        over.set()
        await asyncio.gather(*tasks)


async def opened(url: str, calls: list[Call]) -> list["asyncio.Task[None]"]:
    """All of these calls, a few at a time, each in a task of its own; each client has seen a part."""
    tasks: list[asyncio.Task[None]] = []
    for first in range(0, len(calls), AT_ONCE):
        some = calls[first : first + AT_ONCE]
        tasks += [asyncio.create_task(register(call).make(url)) for call in some]
        await until_all(some, 1, 20.0)
    return tasks
