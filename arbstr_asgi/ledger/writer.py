"""The one task that writes: takes what waits, keeps it until it is committed."""

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from arbstr_asgi.entry import Entry
from arbstr_asgi.errors import LedgerError
from arbstr_asgi.ledger.backlog import Backlog, Mark, Update, Waiting
from arbstr_asgi.ledger.hand import Hand
from arbstr_asgi.ledger.losses import Losses
from arbstr_asgi.ledger.sessions import Sessions
from arbstr_asgi.ledger.statements import Statements
from arbstr_asgi.ledger.trouble import Trouble

BATCH = 500  # rows
GATHER = 0.05  # seconds from the first waiting item to its batch
MAX_QUEUED = 100_000  # entries
GRACE = 1.0  # seconds for cancelled work to let go of its connection
LAST_FLUSH = 5.0  # seconds, when the loop ends and nobody has closed us
_SHORTEST = 0.2  # seconds between attempts while there is little time left


class Writer:
    """Owns the backlog and, through `sessions`, the connection. Made and stopped by `Ledger`."""

    def __init__(
        self,
        sessions: Sessions,
        statements: Statements,
        losses: Losses,
        when_done: Callable[[], Awaitable[None]],
    ) -> None:
        self._sessions = sessions
        self._losses = losses
        self._when_done = when_done
        self._backlog = Backlog()
        self._hand = Hand(sessions.driver, statements, losses)
        self._some = asyncio.Event()
        self._hurry = asyncio.Event()
        self._ending = asyncio.Event()
        self._stopped = False  # out of time
        self.accepting = True
        self._trouble = Trouble(sessions.database)
        self._grace = GRACE
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        # An empty context: a ledger opened by the first request must not carry that request's trace for ever.
        self._task = self._loop.create_task(self._run(), name="arbstr-ledger", context=contextvars.Context())

    @property
    def queued(self) -> int:
        """What is recorded and not committed."""
        return len(self._backlog) + len(self._hand)

    def add(self, item: Waiting, *, urgent: bool = False) -> None:
        """Queue; `urgent` is written without waiting for company. From any thread."""
        self._backlog.add(item)
        hurry = urgent or len(self._backlog) >= BATCH
        if threading.get_ident() == self._thread:
            self._wake(hurry=hurry)
        else:
            self._loop.call_soon_threadsafe(lambda: self._wake(hurry=hurry))

    async def stop(self, timeout: float) -> None:
        """Write what is queued, for at most `timeout` seconds, then end; what is left counts as lost."""
        self._ending.set()
        self._wake(hurry=True)
        self._grace = min(GRACE, timeout / 4)
        await asyncio.wait({self._task}, timeout=timeout - self._grace)
        if not self._task.done():
            self._stopped = True
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=self._grace)

    def _wake(self, *, hurry: bool) -> None:
        self._some.set()
        if hurry:
            self._hurry.set()

    async def _run(self) -> None:
        try:
            await self._write_until_told()
        except asyncio.CancelledError:
            if not self._stopped:  # the loop is closing, and nobody has closed us
                await self._last_flush()
            raise
        finally:
            self.accepting = False
            await self._sessions.end(self._grace)
            self._give_up()
            await self._when_done()

    async def _last_flush(self) -> None:
        self._ending.set()
        self._hurry.set()
        await self._sessions.end(self._grace)
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_FLUSH):
                await self._write_until_told()

    async def _write_until_told(self) -> None:
        while await self._something():
            try:
                await self._sessions.run(self._serve)
            except Exception as error:  # noqa: BLE001 - whatever it is: keep the batch, try again
                await self._pause(error)

    async def _something(self) -> bool:
        """Wait for work and a little company for it; False when told to end and all is written."""
        while not self._hand and not self._backlog:
            if self._ending.is_set():
                return False
            self._some.clear()
            self._hurry.clear()
            await self._some.wait()
        if not self._hand and len(self._backlog) < BATCH and not self._ending.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(GATHER):
                    await self._hurry.wait()
        return True

    async def _serve(self, raw: Any) -> None:
        """With a connection: write what is there; on SQLite also what comes later."""
        while True:
            if not self._hand:
                self._hand.take(self._backlog, BATCH)
            if not self._backlog:
                self._hurry.clear()
            while self._hand:
                await self._hand.write(raw)
                self._trouble.over()
            if not self._sessions.driver.holds or not await self._something():
                return

    async def _pause(self, error: Exception) -> None:
        pause = self._trouble.note(error, self.queued)
        if self._ending.is_set():
            await asyncio.sleep(min(pause, _SHORTEST))
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._ending.wait()

    def _give_up(self) -> None:
        """Count and report everything that was not committed."""
        left = [*self._hand.clear(), *self._backlog.clear()]
        lost = sum(isinstance(item, tuple | Entry) for item in left)
        if lost:
            self._losses.add(lost, "the ledger was closed before they could be written", always=True)
        for item in left:
            if isinstance(item, Update | Mark):
                item.settle(LedgerError("the ledger was closed before this could be written"))
