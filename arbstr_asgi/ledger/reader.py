"""Reading the ledger: the rows, and whether the database answers."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypeVar

from arbstr_asgi.errors import LedgerError
from arbstr_asgi.ledger import values
from arbstr_asgi.ledger.columns import ATTEMPT_COLUMNS
from arbstr_asgi.ledger.driver import Driver
from arbstr_asgi.ledger.faults import described
from arbstr_asgi.ledger.sessions import Sessions, Work
from arbstr_asgi.ledger.statements import Statements

T = TypeVar("T")

_CHECK_TIMEOUT = 2.0  # seconds
READ_TIMEOUT = 30.0
_ATTEMPTS = 4  # one more than our pool has connections: each may have died unnoticed while it was idle


class Reader:
    """Queries on connections of their own, beside the writer."""

    def __init__(self, sessions: Sessions, statements: Statements) -> None:
        self._sessions = sessions
        self._statements = statements

    @property
    def driver(self) -> Driver:
        """What it speaks to the database with."""
        return self._sessions.driver

    async def rows(self, limit: int, correlation_id: str | None) -> list[dict[str, Any]]:
        """The newest rows, or those of one call. Raises LedgerError."""
        limit = min(max(limit, 0), 2**63 - 1)
        if correlation_id is None:
            found = await self._fetch(self._statements.newest, (limit,), READ_TIMEOUT)
        else:
            parameters = (values.identifier(correlation_id), limit)
            found = await self._fetch(self._statements.of_call, parameters, READ_TIMEOUT)
        return [values.read(row) for row in found]

    async def attempts(self, correlation_id: str) -> list[dict[str, Any]]:
        """The attempts of one call, in their order. Raises LedgerError."""
        parameters = (values.identifier(correlation_id),)
        found = await self._fetch(self._statements.attempts_of(1), parameters, READ_TIMEOUT)
        return [values.read(row, ATTEMPT_COLUMNS) for row in found]

    async def check(self) -> None:
        """Raises LedgerError unless the schema's version can be read in two seconds."""
        await self._fetch(self._statements.version, (), _CHECK_TIMEOUT)

    async def _fetch(self, sql: str, parameters: Sequence[Any], timeout: float) -> list[Sequence[Any]]:
        sessions = self._sessions

        async def fetch(raw: Any) -> list[Sequence[Any]]:
            return await sessions.driver.fetch(raw, sql, parameters)

        return await self.run(fetch, timeout)

    async def run(self, work: Work[T], timeout: float = READ_TIMEOUT) -> T:
        """Work that only reads. Raises LedgerError."""
        sessions = self._sessions
        try:
            async with asyncio.timeout(timeout):  # SQLite's calls can't be given up, but they need not be waited for
                for _ in range(_ATTEMPTS - 1):
                    with suppress(Exception):
                        return await sessions.run(work, timeout=timeout)
                return await sessions.run(work, timeout=timeout)
        except Exception as error:
            raise LedgerError(f"the database can't answer: {described(error, sessions.database)}") from error
