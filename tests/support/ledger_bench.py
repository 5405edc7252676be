"""A ledger on each of the three databases, for tests that do much with one."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from arbstr_asgi.database.records import LedgerEntry
from arbstr_asgi.ledger.ledger import Ledger
from arbstr_asgi.stats.rollups import scheduler
from arbstr_asgi.stats.rollups.maintenance import Maintenance
from tests.support.databases import DIALECTS, fresh_database


class Bench(NamedTuple):
    """An open ledger on one of the databases, its loop, and nobody who rolls up by himself."""

    run: Callable[[Coroutine[Any, Any, Any]], Any]
    ledger: Ledger
    url: str

    @property
    def maintenance(self) -> Maintenance:
        """Rolls up when it is told to."""
        return self.ledger._maintenance()

    async def sql(self, statement: str) -> None:
        """Past the ledger."""
        connections = self.ledger._open_reader().connections
        await connections.run(lambda raw: connections.driver.execute(raw, statement, ()))

    async def clear(self) -> None:
        """As after a migration of an empty database."""
        for table in ("attempts", "requests", "dirty_hours", "rollups"):
            await self.sql(f"DELETE FROM {table}" + (" WHERE period <> 'state'" if table == "rollups" else ""))
        await self.sql("UPDATE rollups SET total = 0")

    async def record(self, *entries: LedgerEntry) -> None:
        """And commit."""
        for entry in entries:
            self.ledger.record(entry)
        await self.ledger.flush()

    async def fetch(self, statement: str) -> list[Any]:
        """Past the ledger."""
        connections = self.ledger._open_reader().connections
        return await connections.run(lambda raw: connections.driver.fetch(raw, statement))

    async def rows(self) -> list[dict[str, Any]]:
        """All rows, with their numbers."""
        connections = self.ledger._open_reader().connections
        numbers = dict(
            await connections.run(lambda raw: connections.driver.fetch(raw, "SELECT correlation_id, id FROM requests"))
        )
        return [{"id": numbers[row["correlation_id"]], **row} for row in await self.ledger.rows(limit=10**6)]


@pytest.fixture(scope="module", params=DIALECTS)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One for all the tests of a database."""
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        folder: Path = tmp_path_factory.mktemp("stats")
        patch.chdir(folder)
        patch.setattr(scheduler, "START_DELAY", 10**6)
        url = stack.enter_context(fresh_database(request.param, folder))
        runner = stack.enter_context(asyncio.Runner())
        ledger = Ledger(url)
        runner.run(ledger.open())
        stack.callback(lambda: runner.run(ledger.close()))
        yield Bench(runner.run, ledger, url)
