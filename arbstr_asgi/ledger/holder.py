"""One connection that is kept while there is work for it; to open and close one takes longer than most of that."""

import asyncio
import contextvars
from typing import Any, TypeVar

from arbstr_asgi.ledger.sessions import ConnectionTasks, Work

T = TypeVar("T")

IDLE = 5.0  # seconds without work after which the connection is closed


class HeldConnection:
    """Runs pieces of work one after the other; a connection on which one failed is not used for the next."""

    def __init__(self, sessions: ConnectionTasks) -> None:
        self._sessions = sessions
        self._waiting: asyncio.Queue[tuple[Work[Any], asyncio.Future[Any]]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def run(self, work: Work[T]) -> T:
        """As `Sessions.run`: what the database raises comes out, and cancelling the caller doesn't stop the work."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((work, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._hold(), name="arbstr-holder", context=contextvars.Context())
        return await future

    async def _hold(self) -> None:
        while not self._waiting.empty():
            try:
                await self._sessions.run(self._serve)
            except Exception as error:  # noqa: BLE001 - the connection could not be opened, whyever
                self._fail_next(error)
            except asyncio.CancelledError:
                while not self._waiting.empty():
                    self._fail_next(ConnectionAbortedError("the ledger is closing"))
                raise

    async def _serve(self, raw: Any) -> None:
        while True:
            try:
                work, future = await asyncio.wait_for(self._waiting.get(), IDLE)
            except TimeoutError:
                return
            try:
                _settle(future, await work(raw))
            except Exception as error:  # noqa: BLE001 - it is the caller's
                _fail(future, error)
                return
            except asyncio.CancelledError:
                _fail(future, ConnectionAbortedError("the ledger is closing"))
                raise

    def _fail_next(self, error: Exception) -> None:
        if not self._waiting.empty():
            _, future = self._waiting.get_nowait()
            _fail(future, error)


def _settle(future: "asyncio.Future[Any]", result: Any) -> None:
    if not future.done():  # whoever asked may have gone
        future.set_result(result)


def _fail(future: "asyncio.Future[Any]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
