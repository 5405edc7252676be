"""The ledger through outages of seconds, beside processes that are killed, and with another that rolls up."""

import asyncio
import contextlib
import logging
import multiprocessing
import sqlite3
from typing import Any

import pytest

from arbstr_asgi.database.drivers.base import load
from arbstr_asgi.errors import LedgerError
from arbstr_asgi.ledger.ledger import Ledger
from arbstr_asgi.stats import Rebuilt
from tests.integration.ledger.test_database_faults import _all_finished, _calls
from tests.integration.ledger.test_spill_recovery import Outage, killed, outage, program, until
from tests.integration.stats.test_rollups_maintenance import compare, filled
from tests.support.databases import an_entry, dialect_of
from tests.support.ledger_bench import Bench, bench
from tests.support.tcp_proxy import Gate

__all__ = ["bench"]


@pytest.mark.parametrize("way", ["hangs", "refuses"])
def test_an_outage_loses_nothing(
    server_url: str, way: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is silent or gone for a second under load gets every call afterwards; one WARNING, one INFO."""
    caplog.set_level(logging.INFO, "arbstr_asgi.ledger")
    dialect = dialect_of(server_url)
    patience = load(dialect).batch_timeout
    monkeypatch.setattr(load(dialect), "batch_timeout", 0.5)

    async def main() -> None:
        gate = Gate(server_url)
        await gate.open()
        ledger = Ledger(gate.url)
        await ledger.open()
        progress: list[int] = []
        calls = asyncio.create_task(_calls(ledger, 1.5, progress))
        await asyncio.sleep(0.2)
        if way == "hangs":
            gate.hang()
            await asyncio.sleep(1)
            with pytest.raises(LedgerError, match="no answer in time"):
                await ledger.check()
            monkeypatch.setattr(load(dialect), "batch_timeout", patience)  # a slow machine is no second outage
            await asyncio.sleep(0.6)  # what has begun with the short time-out ends within the outage
            gate.resume()
        else:
            await gate.shut()
            await asyncio.sleep(1)
            with pytest.raises(LedgerError, match="can't answer"):
                await ledger.check()
            monkeypatch.setattr(load(dialect), "batch_timeout", patience)
            await gate.open()
        await calls
        await _all_finished(ledger, progress[0])
        await ledger.check()
        await ledger.close()
        await gate.shut()

    asyncio.run(main())
    told = [record for record in caplog.records if record.levelno >= logging.WARNING or "arbstr" in record.name]
    told = [record for record in told if record.module != "scheduler"]  # roll-ups have an outage of their own
    assert [record.levelname for record in told] == ["WARNING", "INFO"]


def test_what_comes_back_takes_little_room(tmp_path: Any) -> None:
    """After an outage SQLite's WAL stays small: once it has filled the disk, it could not be emptied any more."""
    path = tmp_path / "ledger.db"

    async def main() -> None:
        ledger = Ledger(f"sqlite+aiosqlite:///{path}")
        await ledger.open()
        await ledger.flush()
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            for _ in range(110):  # until it has given up waiting for the lock
                for _ in range(30):
                    ledger.record(an_entry(revision=1, end_reason="completed", usage_json="x" * 1500))
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)
            holder.execute("ROLLBACK")
            await ledger.flush()
            for _ in range(200):
                if not ledger.snapshot().spilled:
                    break
                await asyncio.sleep(0.05)
            assert holder.execute("SELECT count(*) FROM requests").fetchone() == (3300,)
            assert path.with_name("ledger.db-wal").stat().st_size < 2_000_000
            await ledger.close()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_the_next_start_finishes_what_a_killed_process_left(database_url: str) -> None:
    """Its finished call is there, its open one is `abandoned`; those of a living process are left alone."""

    async def scenario(out: Outage) -> None:
        with program(out.url, "await ledger.close()") as living:
            assert living.stdout is not None
            assert await asyncio.to_thread(living.stdout.readline) == "ready\n"
            dead = await asyncio.to_thread(killed, out.url)
            await out.begin()
            dead_too = await asyncio.to_thread(killed, out.url)
            await out.end()
            ledger = Ledger(out.url)
            await ledger.open()

            async def closed() -> bool:
                rows = {row["correlation_id"]: row for row in await ledger.rows()}
                return len(rows) == 6 and sum(row["end_reason"] == "abandoned" for row in rows.values()) == 2

            await until(closed)
            rows = {row["correlation_id"]: row for row in await ledger.rows()}
            for pid in (dead, dead_too):
                assert rows[f"done-{pid}"]["end_reason"] == "completed"
                row = rows[f"open-{pid}"]
                assert (row["end_reason"], row["success"], row["usage_source"]) == ("abandoned", False, "none")
                assert row["error_message"].startswith("abandoned: ")
            assert rows[f"open-{living.pid}"]["end_reason"] == "in_flight"
            living.communicate("", timeout=20)
            await ledger.close()

    outage(database_url, scenario)


def _roll_up(url: str, barrier: Any) -> None:
    """One of several processes."""

    async def main() -> None:
        ledger = Ledger(url)
        await ledger.open()
        barrier.wait(60)
        await ledger._maintenance().roll_up()
        await ledger.close()

    asyncio.run(main())


def test_two_processes_roll_up_at_once(bench: Bench) -> None:
    """They get in each other's way and nothing is counted twice or lost."""

    async def record() -> None:
        await bench.clear()
        await bench.record(*filled(120))

    async def look() -> None:
        await bench.maintenance.roll_up()
        assert await bench.fetch("SELECT * FROM dirty_hours") == []
        await compare(bench, await bench.rows())
        assert await bench.ledger.rebuild() == Rebuilt(94, 0)

    bench.run(record())
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    processes = [context.Process(target=_roll_up, args=(bench.url, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    bench.run(look())
