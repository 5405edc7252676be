"""Servers that have nothing in common but their ledger."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.support.databases import fresh_database, run_sql
from tests.support.fake_provider import provider
from tests.support.raw_http_client import Wire, ask
from tests.support.servers import SECONDS, spawned

FAILS_OFTEN = {"aliases.m": "fails_sometimes"}
ROUNDS = 15
CLIENTS = 8  # at each server


async def until_completed(database: str, count: int) -> None:
    """Return once so many calls have ended well in the ledger."""
    done = "SELECT count(*) FROM requests WHERE end_reason = 'completed'"
    for _ in range(round(SECONDS / 0.05)):
        if await asyncio.to_thread(run_sql, database, done) == [(count,)]:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("rows are missing")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hypercorn", "arbstr"])
def test_two_servers_of_two_workers_share_a_ledger(kind: str, tmp_path: Path) -> None:
    """Two servers with two workers each, on one PostgreSQL database, under load: every answer has its row, once."""

    async def client(url: str, number: int, answered: list[Wire]) -> None:
        for turn in range(ROUNDS):
            asked = {"model": "m", "stream": (number + turn) % 2 == 0, "messages": []}
            got = await ask(url, asked)
            assert (got.status, got.clean) == (200, True)
            answered.append(got)

    async def main(database: str) -> list[Wire]:
        answered: list[Wire] = []
        async with AsyncExitStack() as stack:
            cheap, dear = [await stack.enter_async_context(provider()) for _ in range(2)]
            aliases = '[[providers]]\nname = "q"\nurl = "%s"\naliases = { m = "good" }\nbase_fee = 100\n%s'
            more = aliases % (dear.url, "input_rate = 10000\noutput_rate = 30000\n")
            servers = []
            for name in ("one", "other"):
                folder = tmp_path / name
                folder.mkdir()
                facts = {"url": database, "spill": str(folder / "spill")}
                server = spawned(
                    folder, kind, cheap.url, workers=2, database=facts, provider=FAILS_OFTEN, more=more, grace=5.0
                )
                servers.append(await stack.enter_async_context(server))
            urls = [server.url for server in servers]
            await asyncio.gather(*(client(url, n, answered) for url in urls for n in range(CLIENTS)))
            assert len(answered) == 2 * CLIENTS * ROUNDS
            await until_completed(database, len(answered))
        return answered

    with fresh_database("postgresql", tmp_path) as database:
        answered = asyncio.run(main(database))
        rows = run_sql(database, "SELECT correlation_id, input_tokens, output_tokens, provider, attempts FROM requests")
        assert Counter(row[0] for row in rows) == Counter(got.headers["x-arbstr-request-id"] for got in answered)
        assert {row[1:3] for row in rows} == {(7, 2)}
        said = {got.headers["x-arbstr-request-id"]: got.headers for got in answered}
        for call, _, _, who, attempts in rows:
            assert said[call]["x-arbstr-provider"] == who
            assert ("x-arbstr-retries" in said[call]) == (attempts == 2)
        assert {row[3] for row in rows} == {"p", "q"}
        assert run_sql(database, "SELECT count(*) FROM all_attempts") == [(sum(row[4] for row in rows),)]
        assert run_sql(database, "SELECT count(DISTINCT worker_id) FROM requests")[0][0] >= 3
