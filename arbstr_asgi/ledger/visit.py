"""A ledger that other processes write to: opened by a command, to look at it or to tidy up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from arbstr_asgi.ledger.fragments import SqlDialect
from arbstr_asgi.ledger.readable import AT_ONCE, LedgerQueries
from arbstr_asgi.ledger.reader import QueryRunner
from arbstr_asgi.ledger.sessions import ConnectionTasks
from arbstr_asgi.ledger.statements import statements
from arbstr_asgi.ledger.target import LedgerDatabase


class LedgerReader(LedgerQueries):
    """Answers as a `Ledger` does, and records nothing: no row waits here, and no spill is claimed."""

    def __init__(self, target: LedgerDatabase, sessions: ConnectionTasks, spill: str | None) -> None:
        self._target = target
        self._sessions = sessions
        self._spill_below = spill
        self._fragments = SqlDialect(target.dialect, target.prefix)
        self._at_once = asyncio.Semaphore(AT_ONCE)

    @property
    def spill_folder(self) -> Path:
        """Where the writers' rows wait on disk while the database can't take them."""
        return self._target.spill_folder(self._spill_below)

    async def flush(self) -> None:
        """Nothing is recorded here."""

    def _open_reader(self) -> QueryRunner:
        return QueryRunner(self._sessions, statements(self._target.dialect, self._target.prefix), self._fragments)


@asynccontextmanager
async def open_reader(
    url: str, *, table_prefix: str | None = None, spill: str | None = None
) -> AsyncIterator[LedgerReader]:
    """Open the tables at `url` for the length of a block; `spill` is the writers'.

    Nothing is made, migrated or replayed, and no call is closed as abandoned. Raises ConfigError, and LedgerError where
    there is no ledger of this version.
    """
    target = LedgerDatabase.create(url, table_prefix)
    target.check(there=True)
    sessions = await target.open(migrate=False, visit=True)
    try:
        yield LedgerReader(target, sessions, spill)
    finally:
        await sessions.end(1.0)
        await target.close()
