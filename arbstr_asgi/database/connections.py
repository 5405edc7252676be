"""Runs work on database connections, in tasks that cancelling the caller does not stop."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar, cast

from databases import Database

from arbstr_asgi.database.drivers.base import Driver

IDLE_TIMEOUT = 5.0  # seconds


T = TypeVar("T")
Work = Callable[[Any], Awaitable[T]]


class ConnectionTasks:
    """Runs each piece of work on a raw connection of its own, in a task of its own.

    A task for each, because `databases` ties a connection to the task: a client that disconnects can not cancel the
    work half-way, a connection that failed to be released is not reused, and an open transaction of the host is not
    joined.
    """

    def __init__(self, database: Database, driver: Driver, *, own: bool, durable: bool = False) -> None:
        self.database = database
        self.driver = driver
        self._own = own
        self._durable = durable
        self._tasks: set[asyncio.Task[Any]] = set()
        self._opening: set[asyncio.Task[Any]] = set()

    async def run(self, work: Work[T], *, timeout: float | None = None) -> T:
        """Acquire a connection, run `work(raw)`, release it, within `timeout` seconds (SQLite: no timeout).

        Raises what the database raises, and ConnectionAbortedError after `end`. Cancelling the caller does not stop the
        work.
        """
        limit = timeout if timeout is not None else self.driver.batch_timeout
        task = asyncio.create_task(self._run_on_connection(work, limit), context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not _this_task().cancelling():  # `end` cancelled the work; the caller was not cancelled
                raise ConnectionAbortedError("the ledger is closing") from None
            raise

    async def end(self, grace: float) -> None:
        """Cancel the running work and wait for it, at most `grace` seconds."""
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
            if _this_task() in self._opening:  # aiosqlite's thread still calls the loop, which may close now
                await asyncio.sleep(0.02)
            raise

    async def _run_prepared(self, work: Work[T], raw: Any) -> T:
        shared = self.driver.in_transaction(
            raw
        )  # force_rollback: a connection shared with the host, so not closed here
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
            task.exception()  # the caller may be gone; retrieving it avoids a warning at exit


def _this_task() -> "asyncio.Task[Any]":
    return cast("asyncio.Task[Any]", asyncio.current_task())


class HeldConnection:
    """Runs queued work one piece at a time on a connection that is kept until it has been idle for IDLE_TIMEOUT.

    A connection on which work failed is not used for the next piece.
    """

    def __init__(self, connections: ConnectionTasks) -> None:
        self._connections = connections
        self._queue: asyncio.Queue[tuple[Work[Any], asyncio.Future[Any]]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def run(self, work: Work[T]) -> T:
        """As `ConnectionTasks.run`, in the order of the calls."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((work, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run_all(), name="arbstr-connection", context=contextvars.Context())
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
    if not future.done():  # cancelled, if the caller is gone
        future.set_result(result)


def _set_exception(future: "asyncio.Future[Any]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
