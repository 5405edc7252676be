"""Reading the ledger: the rows, and whether the database answers."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from arbstr_asgi.errors import LedgerError
from arbstr_asgi.ledger import values
from arbstr_asgi.ledger.columns import ATTEMPT_COLUMNS
from arbstr_asgi.ledger.driver import READ_TIMEOUT
from arbstr_asgi.ledger.faults import describe_error
from arbstr_asgi.ledger.fragments import SqlDialect
from arbstr_asgi.ledger.pages import Pagination
from arbstr_asgi.ledger.sessions import ConnectionTasks
from arbstr_asgi.ledger.statements import Statements
from arbstr_asgi.ledger.statistics import StatsReader
from arbstr_asgi.stats import Group, Page, RequestsQuery, StatsQuery, Summary

T = TypeVar("T")
Q = TypeVar("Q")

_CHECK_TIMEOUT = 2.0  # seconds
_ATTEMPTS = 6  # one more than our pool has connections: each may have died unnoticed while it was idle


class QueryRunner:
    """Queries on connections of their own, beside the writer."""

    def __init__(self, sessions: ConnectionTasks, statements: Statements, fragments: SqlDialect) -> None:
        self.sessions = sessions
        self._statements = statements
        self._fragments = fragments

    async def groups(self, query: StatsQuery) -> list[Group]:
        """Figures. Raises LedgerError."""
        return await self._run(self._statistics().groups, query)

    async def summary(self, query: StatsQuery) -> Summary:
        """Figures of the groups and of everything. Raises LedgerError."""
        return await self._run(self._statistics().summary, query)

    async def names(self, column: str) -> list[str]:
        """The values of a column, sorted. Raises LedgerError."""
        return await self._run(self._statistics().names, column)

    async def page(self, query: RequestsQuery, *, counted: bool = True) -> Page:
        """One page. Raises LedgerError."""
        pages = Pagination(self.sessions.driver, self._fragments, self.sessions.memory)
        return await self._run(pages.page if counted else pages.uncounted, query)

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

    def _statistics(self) -> StatsReader:
        return StatsReader(self.sessions.driver, self._fragments, self.sessions.memory)

    async def _fetch(self, sql: str, parameters: Sequence[Any], timeout: float) -> list[Sequence[Any]]:
        fetch = self.sessions.driver.fetch
        asking = self._run(lambda raw, found: fetch(raw, sql, found), parameters, timeout)
        return await self.waited(asking, timeout)

    async def waited(self, asking: Awaitable[T], timeout: float) -> T:
        """An answer, waited for no longer than this: SQLite's calls can't be given up. Raises LedgerError."""
        try:
            async with asyncio.timeout(timeout):
                return await asking
        except TimeoutError as error:
            raise self._failed(error) from error

    async def _run(self, work: Callable[[Any, Q], Awaitable[T]], query: Q, timeout: float = READ_TIMEOUT) -> T:
        sessions = self.sessions

        async def ask(raw: Any) -> T:
            return await work(raw, query)

        end = asyncio.get_running_loop().time() + timeout
        for tries in range(_ATTEMPTS):
            left = end - asyncio.get_running_loop().time()
            try:
                return await sessions.run(ask, timeout=max(left, 0.0))
            except Exception as error:
                if tries + 1 == _ATTEMPTS or not sessions.driver.is_connection_lost(error):
                    raise self._failed(error) from error
        raise AssertionError

    def _failed(self, error: Exception) -> LedgerError:
        return LedgerError(f"the database can't answer: {describe_error(error, self.sessions.database)}")
