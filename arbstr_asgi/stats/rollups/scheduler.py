"""A task beside the writer that rolls up what is over, and prunes; one process at a time does."""

import asyncio
import contextvars
import logging
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from arbstr_asgi._utils import Throttle
from arbstr_asgi.database.connections import ConnectionTasks
from arbstr_asgi.stats.rollups.maintenance import Maintenance
from arbstr_asgi.stats.rollups.statements import RollupStatements
from arbstr_asgi.stats.sql import SqlDialect

logger = logging.getLogger("arbstr_asgi.ledger")

FIRST = 3.0  # seconds from the opening: who lives shorter doesn't pay
PAUSE = 15.0  # seconds between two looks
REST = 1.0  # times as long as it worked
LEASE = 60.0  # seconds for which the others leave it to us
_QUIET = 300.0


class RollupScheduler:
    """Works while the ledger is open; what it does not get done is done later, or by somebody else."""

    def __init__(
        self, sessions: Callable[[], ConnectionTasks | None], fragments: SqlDialect, retention: timedelta | None
    ) -> None:
        self._sessions = sessions
        self._fragments = fragments
        self._sql = RollupStatements(fragments)
        self._retention = retention
        self._name = secrets.token_hex(8)
        self._leased = float("-inf")  # until when, on the monotonic clock
        self._quiet = Throttle(_QUIET)
        self._upkeep: Maintenance | None = None
        self._task = asyncio.create_task(self._run(), name="arbstr-caretaker", context=contextvars.Context())

    async def stop(self) -> None:
        """End between two steps, or leave one to its connection. Never raises."""
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _run(self) -> None:
        await asyncio.sleep(FIRST)
        while True:
            try:
                await self._look()
            except Exception as error:  # noqa: BLE001 - it is not what the ledger is for
                if self._quiet.allow():
                    logger.warning("ledger: no roll-ups are made, trying again: %s", error)
            await asyncio.sleep(PAUSE)

    async def _look(self) -> None:
        sessions = self._sessions()
        if sessions is None or not await self._leads(sessions):
            return
        if self._upkeep is None:
            self._upkeep = Maintenance(sessions, self._fragments, rest=REST)
        try:
            await self._upkeep.roll_up(lambda: self._leads(sessions))
        finally:
            if self._retention is not None and await self._leads(sessions):
                await self._upkeep.prune(datetime.now(UTC) - self._retention, None)

    async def _leads(self, sessions: ConnectionTasks) -> bool:
        """Whether it is ours to do; asks again when half of the lease is over."""
        if time.monotonic() < self._leased - LEASE / 2:
            return True
        now = time.time()

        async def take(raw: Any) -> int:
            # A lease that ends later than any can was taken by a clock that ran ahead.
            parameters = (int(now + LEASE), self._name, int(now), self._name, int(now + 3 * LEASE))
            async with sessions.driver.begin(raw):
                return await sessions.driver.execute(raw, self._sql.take_lease, parameters)

        begun = time.monotonic()
        if not await sessions.run(take):
            return False
        self._leased = begun + LEASE
        return True
