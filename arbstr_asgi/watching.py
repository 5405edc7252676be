"""Learns that a client has hung up; no server tells an app unless it asks."""

import asyncio
from collections.abc import Callable
from types import TracebackType

from starlette.types import Receive

MAX_MESSAGES = 16  # a server has nothing to say between the request and the hang-up; never spin on one that has


class DisconnectListener:
    """A block during which `left` is called from the event loop when `receive` says that the client is gone."""

    __slots__ = ("_left", "_receive", "_task")

    def __init__(self, receive: Receive, left: Callable[[], None]) -> None:
        self._receive = receive
        self._left: Callable[[], None] | None = left

    def __enter__(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._watch())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._left = None
        self._task.cancel()
        del self._task  # its last traceback leads here, and nobody should have to look for such circles

    async def _watch(self) -> None:
        gone, messages = False, 0
        try:
            while not gone and messages < MAX_MESSAGES:
                gone, messages = (await self._receive())["type"] == "http.disconnect", messages + 1
        except Exception:  # noqa: BLE001 - a receive that raises says nothing about the client
            return
        if gone and self._left is not None:
            self._left()
