"""The background task that rolls up and prunes; a lease in the database lets one process at a time work."""

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

START_DELAY = 3.0  # seconds; spares short-lived processes
INTERVAL = 15.0  # seconds between runs
PAUSE_FACTOR = 1.0  # pause after each step, as a multiple of its duration
LEASE = 60.0  # seconds
_LOG_INTERVAL = 300.0


class RollupScheduler:
    """Runs every INTERVAL seconds while the ledger is open; unfinished work is left to the next run or process."""

    def __init__(
        self, connections: Callable[[], ConnectionTasks | None], sql_dialect: SqlDialect, retention: timedelta | None
    ) -> None:
        self._connections = connections
        self._sql_dialect = sql_dialect
        self._sql = RollupStatements(sql_dialect)
        self._retention = retention
        self._owner = secrets.token_hex(8)
        self._lease_expires = float("-inf")  # monotonic seconds
        self._log_throttle = Throttle(_LOG_INTERVAL)
        self._maintenance: Maintenance | None = None
        self._task = asyncio.create_task(self._run(), name="arbstr-rollups", context=contextvars.Context())

    async def stop(self) -> None:
        """Cancel the task; a running step ends on its connection. Never raises."""
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _run(self) -> None:
        await asyncio.sleep(START_DELAY)
        while True:
            try:
                await self._run_once()
            except Exception as error:  # noqa: BLE001 - it is not what the ledger is for
                if self._log_throttle.allow():
                    logger.warning("ledger: no roll-ups are made, trying again: %s", error)
            await asyncio.sleep(INTERVAL)

    async def _run_once(self) -> None:
        connections = self._connections()
        if connections is None or not await self._acquire_lease(connections):
            return
        if self._maintenance is None:
            self._maintenance = Maintenance(connections, self._sql_dialect, pause_factor=PAUSE_FACTOR)
        try:
            await self._maintenance.roll_up(lambda: self._acquire_lease(connections))
        finally:
            if self._retention is not None and await self._acquire_lease(connections):
                await self._maintenance.prune(datetime.now(UTC) - self._retention, None)

    async def _acquire_lease(self, connections: ConnectionTasks) -> bool:
        """Take or renew the lease, when less than half of it is left; False if another process holds it."""
        if time.monotonic() < self._lease_expires - LEASE / 2:
            return True
        now = time.time()

        async def acquire(raw: Any) -> int:
            # A lease beyond the maximum was taken by a clock that is ahead, and is ignored.
            parameters = (int(now + LEASE), self._owner, int(now), self._owner, int(now + 3 * LEASE))
            async with connections.driver.begin(raw):
                return await connections.driver.execute(raw, self._sql.take_lease, parameters)

        started = time.monotonic()
        if not await connections.run(acquire):
            return False
        self._lease_expires = started + LEASE
        return True
