"""Connections for one piece of work each, in tasks that no caller can cancel, or kept while there is work."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar, cast

from databases import Database

from arbstr_asgi.database.drivers.base import Driver

IDLE_TIMEOUT = 5.0  # seconds without work after which the connection is closed


T = TypeVar("T")
Work = Callable[[Any], Awaitable[T]]


class ConnectionTasks:
    """Runs work on a raw connection of its own.

    A task for each, because `databases` ties a connection to the task: a client that hangs up can't cancel it half
    way, a connection that could not be released is not met again, and a host's open transaction is not ours.
    """

    def __init__(self, database: Database, driver: Driver, *, own: bool, durable: bool = False) -> None:
        self.database = database
        self.driver = driver
        self._own = own
        self._durable = durable
        self._tasks: set[asyncio.Task[Any]] = set()
        self._opening: set[asyncio.Task[Any]] = set()

    async def run(self, work: Work[T], *, timeout: float | None = None) -> T:
        """Acquire, work, release, in `timeout` seconds (SQLite: no limit, a call there can't be given up).

        What the database raises comes out as it is. Cancelling the caller doesn't stop the work.
        """
        limit = timeout if timeout is not None else self.driver.batch_timeout
        task = asyncio.create_task(self._run_on_connection(work, limit), context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not _this_task().cancelling():  # `end` cancelled the work, nobody the caller
                raise ConnectionAbortedError("the ledger is closing") from None
            raise

    async def end(self, grace: float) -> None:
        """Cancel what still runs and wait for it, at most `grace` seconds."""
        if self._opening:  # cancelled while it opens a file, aiosqlite leaves its thread behind
            await asyncio.wait(set(self._opening), timeout=grace / 2)
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=grace)

    async def _run_on_connection(self, work: Work[T], timeout: float | None) -> T:
        if self.driver.batch_timeout is None:
            timeout = None
            self._opening.add(_this_task())
        try:
            async with asyncio.timeout(timeout), self.database.connection() as connection:
                self._opening.discard(_this_task())
                return await self._run_prepared(work, connection.raw_connection)
        except BaseException:
            if _this_task() in self._opening:  # aiosqlite's thread still has a word for the loop, which may close now
                await asyncio.sleep(0.02)
            raise

    async def _run_prepared(self, work: Work[T], raw: Any) -> T:
        shared = self.driver.in_transaction(raw)  # force_rollback: everyone's connection, not ours to close
        try:
            await self.driver.prepare(raw, own=self._own, durable=self._durable)
            return await work(raw)
        except BaseException:
            if not shared:
                self.driver.abandon(raw)
            raise

    def _forget(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        self._opening.discard(task)
        with suppress(asyncio.CancelledError):
            task.exception()  # its caller may have gone: nothing to complain about at exit


def _this_task() -> "asyncio.Task[Any]":
    return cast("asyncio.Task[Any]", asyncio.current_task())


class HeldConnection:
    """Runs pieces of work one after the other; a connection on which one failed is not used for the next."""

    def __init__(self, connections: ConnectionTasks) -> None:
        self._connections = connections
        self._queue: asyncio.Queue[tuple[Work[Any], asyncio.Future[Any]]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def run(self, work: Work[T]) -> T:
        """As `Sessions.run`: what the database raises comes out, and cancelling the caller doesn't stop the work."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((work, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run_all(), name="arbstr-holder", context=contextvars.Context())
        return await future

    async def _run_all(self) -> None:
        while not self._queue.empty():
            try:
                await self._connections.run(self._run_queued)
            except Exception as error:  # noqa: BLE001 - the connection could not be opened, whyever
                self._fail_queued(error)
            except asyncio.CancelledError:
                while not self._queue.empty():
                    self._fail_queued(ConnectionAbortedError("the ledger is closing"))
                raise

    async def _run_queued(self, raw: Any) -> None:
        while True:
            try:
                work, future = await asyncio.wait_for(self._queue.get(), IDLE_TIMEOUT)
            except TimeoutError:
                return
            try:
                _set_result(future, await work(raw))
            except Exception as error:  # noqa: BLE001 - it is the caller's
                _set_exception(future, error)
                return
            except asyncio.CancelledError:
                _set_exception(future, ConnectionAbortedError("the ledger is closing"))
                raise

    def _fail_queued(self, error: Exception) -> None:
        if not self._queue.empty():
            _, future = self._queue.get_nowait()
            _set_exception(future, error)


def _set_result(future: "asyncio.Future[Any]", result: Any) -> None:
    if not future.done():  # whoever asked may have gone
        future.set_result(result)


def _set_exception(future: "asyncio.Future[Any]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
