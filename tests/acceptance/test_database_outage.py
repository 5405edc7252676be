"""A gateway whose database is out of reach: its clients don't notice, and its rows come later."""

import asyncio
import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from arbstr_asgi import DatabaseConfig
from tests.support.asgi_client import PLAIN_REQUEST, Provided, built, call, configured, rows, running
from tests.support.fake_provider import provider
from tests.support.raw_http_client import Wire, ask
from tests.support.servers import free_port, kind_arguments, started, write_toml


@pytest.mark.parametrize("policy", ["serve", "refuse"])
def test_nothing_more_can_be_kept(policy: Any, tmp_path: Path) -> None:
    """Database and spill both fail and memory is full: calls are served uncounted, or refused and none is lost."""
    settings = DatabaseConfig(path=str(tmp_path / "l.db"), max_queued=10, on_full=policy)

    async def main() -> None:
        async with running("sub-app", configured(tmp_path, database=settings), Provided()) as app:
            await call(app, PLAIN_REQUEST)
            await app.ledger.flush()
            spill = sqlite3.connect(tmp_path / "l.db-spill" / "1.db", isolation_level=None)
            spill.execute("CREATE TRIGGER full BEFORE INSERT ON requests BEGIN SELECT RAISE(FAIL, 'full'); END")
            holder = sqlite3.connect(tmp_path / "l.db", isolation_level=None)
            holder.execute("BEGIN EXCLUSIVE")
            replies = [await call(app, PLAIN_REQUEST) for _ in range(20)]
            ready = await call(app, path="/readyz", method="GET")
            assert (ready.status, json.loads(ready.body)["status"]) == (503, "unavailable")
            served = [reply for reply in replies if reply.status == 200]
            if policy == "serve":
                assert len(served) == 20
                assert app.snapshot()["lost"] == 10
            else:
                assert len(served) == 9
                refused = replies[-1]
                assert (refused.status, refused.error["code"]) == (503, "ledger_full")
                assert refused.headers["retry-after"] == "5"
                assert app.snapshot()["lost"] == 0
            spill.execute("DROP TRIGGER full")
            spill.close()
            holder.close()
            assert len(await rows(app)) == (11 if policy == "serve" else 10)
            assert (await call(app, PLAIN_REQUEST)).status == 200
            assert json.loads((await call(app, path="/readyz", method="GET")).body)["status"] == "ok"

    asyncio.run(main())


@pytest.mark.parametrize("opened", [True, False])
def test_a_database_that_is_silent_at_start_holds_nobody_up(opened: Any, tmp_path: Path) -> None:
    """Calls are answered while the database has not been reached, and their rows come when it is."""

    async def main() -> None:
        holder = sqlite3.connect(tmp_path / "l.db", isolation_level=None)
        holder.execute("CREATE TABLE theirs (x)")
        holder.execute("BEGIN EXCLUSIVE")
        app = built("sub-app", configured(tmp_path, database=DatabaseConfig(path=str(tmp_path / "l.db"))), Provided())
        if opened:
            await app._gateway.open(patience=0.1)
        async with asyncio.timeout(4):
            assert [(await call(app, PLAIN_REQUEST)).status for _ in range(3)] == [200] * 3
        assert (await call(app, path="/readyz", method="GET")).status == 200
        holder.close()
        async with asyncio.timeout(20):
            await app.ledger.flush()
        assert len(await app.ledger.rows()) == 3
        await app._gateway.close()

    asyncio.run(main())


def test_arbstr_serve_listens_for_no_client_that_it_lets_wait(tmp_path: Path) -> None:
    """Whoever gets through to a server whose database is silent at its start is answered soon."""

    async def main() -> tuple[float, Wire]:
        with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as holder:
            holder.execute("CREATE TABLE theirs (x)")
            holder.execute("BEGIN EXCLUSIVE")
            async with provider() as upstream:
                port = free_port()
                config = write_toml(tmp_path, upstream.url, port)
                server = await started(tmp_path, kind_arguments("arbstr", port, 1, "", (), config), config, port)
                try:
                    await server.until_taken()
                    begun = time.monotonic()
                    wire = await ask(server.url, {"model": "good"})
                    return time.monotonic() - begun, wire
                finally:
                    await server.kill()

    seconds, wire = asyncio.run(main())
    assert wire.status == 200
    assert seconds < 3.0
