"""Questions that take too long or fail end in the database too, keep their turn till then, and are not repeated."""

import asyncio
import sqlite3
import time
from typing import Any

import pytest

from arbstr_asgi.errors import LedgerError
from arbstr_asgi.ledger import queries
from arbstr_asgi.ledger.queries import QueryRunner
from arbstr_asgi.stats.query import StatsQuery, Summary
from arbstr_asgi.stats.totals import Totals
from tests.integration.stats.test_rollups_maintenance import ALL
from tests.support.databases import dialect_of
from tests.support.ledger_bench import Bench, bench

__all__ = ["bench"]

ENDLESS = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
    "postgresql": "SELECT pg_sleep(60)",
    "mysql": "SELECT SLEEP(60), count(*) FROM information_schema.columns a, information_schema.columns b",
}


def test_the_database_gives_up_too(bench: Bench) -> None:
    """A statement that takes longer than its question may is ended, and the connection is as it was."""

    async def scenario() -> None:
        connections = bench.ledger._open_reader().connections
        driver = connections.driver
        limit = {"postgresql": "SHOW statement_timeout", "mysql": "SELECT @@max_statement_time"}.get(driver.dialect)

        async def work(raw: Any) -> None:
            before = await driver.fetch(raw, limit) if limit else None
            for _ in range(2):
                begun = time.monotonic()
                with pytest.raises(Exception, match=r"interrupted|timeout|max_statement_time"):
                    async with driver.reading(raw, 1.0):
                        await driver.fetch(raw, ENDLESS[driver.dialect])
                assert 0.9 < time.monotonic() - begun < 10
            async with driver.reading(raw, 1.0):
                assert int((await driver.fetch(raw, "SELECT 1"))[0][0]) == 1
            await asyncio.sleep(1.3)
            assert int((await driver.fetch(raw, "SELECT 1"))[0][0]) == 1
            assert (await driver.fetch(raw, limit) if limit else None) == before

        await connections.run(work, timeout=40.0)

    bench.run(scenario())


def test_a_turn_ends_with_the_work(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever hangs up leaves his question's turn taken for as long as the database works on it."""

    async def scenario() -> None:
        done = asyncio.Event()
        running = 0

        async def summary(self: QueryRunner, query: StatsQuery) -> Summary:
            nonlocal running
            running += 1
            await done.wait()
            return Summary(Totals.empty().figures(), [])

        monkeypatch.setattr(QueryRunner, "summary", summary)
        for _ in range(queries.MAX_CONCURRENT_QUERIES):
            asking = asyncio.create_task(bench.ledger.stats(ALL))
            await asyncio.sleep(0.01)
            asking.cancel()
        another = asyncio.create_task(bench.ledger.stats(ALL))
        await asyncio.sleep(0.05)
        assert running == queries.MAX_CONCURRENT_QUERIES
        done.set()
        assert await asyncio.wait_for(another, 5) == []
        assert running == queries.MAX_CONCURRENT_QUERIES + 1

    bench.run(scenario())


@pytest.mark.parametrize(
    ("error", "tries"),
    [(ValueError("a mistake"), 1), (TimeoutError(), 1), (sqlite3.OperationalError("no such table"), 1)],
)
def test_failures_are_not_repeated(bench: Bench, error: Exception, tries: int) -> None:
    """A question that fails by itself is asked once."""
    assert asked(bench, error) == tries


def test_lost_connections_are_replaced(bench: Bench) -> None:
    """Where the connection was to blame the question is asked on another one, as often as there may be dead ones."""
    assert asked(bench, ConnectionResetError()) == (1 if dialect_of(bench.url) == "sqlite" else 6)


def asked(bench: Bench, error: Exception) -> int:
    """How often a question that fails like this is asked."""

    async def scenario() -> int:
        count = 0

        async def work(raw: Any) -> None:
            nonlocal count
            count += 1
            raise error

        with pytest.raises(LedgerError):
            await bench.ledger._open_reader()._run(work)
        return count

    found: int = bench.run(scenario())
    return found
