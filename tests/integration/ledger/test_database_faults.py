"""The ledger when its database fails: nothing recorded is lost while it can come back, and nothing hangs when not."""

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from arbstr_asgi.database.database import LedgerDatabase
from arbstr_asgi.errors import LedgerError
from arbstr_asgi.ledger.ledger import Ledger
from arbstr_asgi.ledger.spill.locks import SpillLock, SpillLocks
from tests.support.databases import an_entry, dialect_of, run_sql, sqlite_file
from tests.support.tcp_proxy import Gate


@asynccontextmanager
async def unreachable(url: str, ledger_of: list[Ledger], way: str) -> AsyncIterator[None]:
    """A ledger that was open and whose database then hangs, refuses or is locked."""
    if dialect_of(url) == "sqlite":
        ledger = Ledger(url)
        await ledger.open()
        ledger_of.append(ledger)
        holder = sqlite3.connect(sqlite_file(url), isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            holder.close()
        return
    gate = Gate(url)
    await gate.open()
    ledger = Ledger(gate.url)
    await ledger.open()
    ledger_of.append(ledger)
    ledger.record(an_entry("before"))
    await ledger.flush()
    if way == "hangs":
        gate.hang()
    else:
        await gate.shut()
    try:
        yield
    finally:
        await gate.shut()


def no_spill(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no ledger have a spill."""

    def claim(locks: SpillLocks) -> SpillLock:
        raise OSError("no space left on device")

    monkeypatch.setattr(SpillLocks, "claim", claim)


def refuse(url: str) -> None:
    """Let the database refuse the model `poison` and 666 input tokens."""
    if dialect_of(url) == "sqlite":
        run_sql(
            url,
            "CREATE TRIGGER refuse BEFORE INSERT ON requests WHEN NEW.model = 'poison' "
            "BEGIN SELECT RAISE(ABORT, 'secret'); END",
            "CREATE TRIGGER refuse_too BEFORE UPDATE ON requests WHEN NEW.input_tokens = 666 "
            "BEGIN SELECT RAISE(ABORT, 'secret'); END",
        )
    else:
        run_sql(url, "ALTER TABLE requests ADD CONSTRAINT refuse CHECK (model <> 'poison' AND input_tokens <> 666)")


@pytest.mark.parametrize("bad", [{250}, {0, 499}, {7, 8, 9, 100, 300}, set(range(50))])
def test_a_bad_row_takes_no_other_with_it(database_url: str, bad: set[int], caplog: pytest.LogCaptureFixture) -> None:
    """Of a batch with rows that the database refuses, all others are whole; the refused stand there degraded."""

    async def main() -> None:
        ledger = Ledger(database_url)
        await ledger.open()
        await asyncio.to_thread(refuse, database_url)
        for number in range(500):
            ledger.record(
                an_entry(f"call-{number:03}", model="poison" if number in bad else "good", tags="secret", latency_ms=7)
            )
        ledger.spawn_usage_update("call-400", 1, 1, None)
        await ledger.flush()
        assert await ledger.update_usage("call-400", 2, 2, None) == 1
        with pytest.raises(LedgerError, match="refused"):
            await ledger.update_usage("call-400", 666, 1, None)
        stored = {row["correlation_id"]: row for row in await ledger.rows(limit=1000)}
        assert len(stored) == 500
        assert {row["model"] for row in stored.values()} == {"good", "(refused)"}
        assert {call for call, row in stored.items() if row["model"] == "(refused)"} == {f"call-{n:03}" for n in bad}
        for row in stored.values():
            degraded = row["model"] == "(refused)"
            assert row["tags"] == (None if degraded else "secret")
            assert (row["error_message"] or "").startswith("degraded: ") is degraded
        assert (ledger.lost, ledger.queued, ledger.snapshot().degraded) == (0, 0, len(bad))
        await ledger.close()

    asyncio.run(main())
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == len(bad)
    assert all(any(f"call-{number:03}" in error for error in errors) for number in bad)
    assert "secret" not in caplog.text
    assert "poison" not in caplog.text


def test_a_text_that_is_refused_costs_no_identity(database_url: str) -> None:
    """Where only a reply's text is refused, the degraded row still says who, which model, when and how long."""

    async def main() -> None:
        ledger = Ledger(database_url)
        await ledger.open()
        if dialect_of(database_url) == "sqlite":
            trigger = "CREATE TRIGGER no BEFORE INSERT ON requests WHEN NEW.response_id = 'odd' "
            await asyncio.to_thread(run_sql, database_url, trigger + "BEGIN SELECT RAISE(ABORT, 'no'); END")
        else:
            await asyncio.to_thread(
                run_sql, database_url, "ALTER TABLE requests ADD CONSTRAINT no CHECK (response_id <> 'odd')"
            )
        facts = {"end_user": "ann", "tenant": "t", "provider": "p", "latency_ms": 7, "stream_duration_ms": 9}
        ledger.record(an_entry("call", revision=1, end_reason="completed", response_id="odd", input_tokens=5, **facts))
        await ledger.flush()
        (row,) = await ledger.rows()
        kept = {"model": "gpt-4o", "end_reason": "completed", "revision": 1, "usage_source": "none", **facts}
        assert {name: row[name] for name in kept} == kept
        assert row["input_tokens"] is row["response_id"] is None
        await ledger.close()

    asyncio.run(main())


def test_a_row_that_is_refused_in_every_form_is_lost_and_counted(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of it can be stored: an ERROR names it, `lost` counts it, and the others are there."""

    async def main() -> None:
        ledger = Ledger(database_url)
        await ledger.open()
        if dialect_of(database_url) == "sqlite":
            trigger = "CREATE TRIGGER no BEFORE INSERT ON requests WHEN NEW.correlation_id = 'odd' "
            await asyncio.to_thread(run_sql, database_url, trigger + "BEGIN SELECT RAISE(ABORT, 'no'); END")
        else:
            await asyncio.to_thread(
                run_sql, database_url, "ALTER TABLE requests ADD CONSTRAINT no CHECK (correlation_id <> 'odd')"
            )
        for call in ("one", "odd", "two"):
            ledger.record(an_entry(call))
        await ledger.flush()
        assert {row["correlation_id"] for row in await ledger.rows()} == {"one", "two"}
        assert (ledger.lost, ledger.snapshot().degraded) == (1, 0)
        await ledger.close()

    asyncio.run(main())
    assert "the row of odd was refused in every form and is lost" in caplog.text


def test_an_entry_that_makes_no_row_is_recorded_degraded(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A value that can't even be normalised costs its own column; what is no entry at all is lost and counted."""
    odd: Any = 3

    async def main() -> None:
        ledger = Ledger(database_url)
        await ledger.open()
        ledger.record(an_entry("odd", timestamp=odd))
        ledger.record(an_entry("fine"))
        ledger.record(odd)
        await ledger.flush()
        rows = {row["correlation_id"]: row for row in await ledger.rows()}
        assert set(rows) == {"odd", "fine"}
        assert rows["odd"]["model"] == "gpt-4o"
        assert rows["odd"]["error_message"] == "degraded: AttributeError"
        assert (ledger.lost, ledger.snapshot().degraded) == (1, 1)
        await ledger.close()

    asyncio.run(main())
    assert "the row of odd was refused and is recorded degraded: AttributeError" in caplog.text


async def _calls(ledger: Ledger, seconds: float, progress: list[int]) -> None:
    """About a thousand calls a second, each in flight and then finished."""
    started = time.monotonic()
    number = 0
    while time.monotonic() - started < seconds:
        for _ in range(10):
            ledger.record(an_entry(f"call-{number}"))
            if number >= 100:
                ledger.record(an_entry(f"call-{number - 100}", revision=1, end_reason="completed"))
            number += 1
        await asyncio.sleep(0.01)
    for left in range(max(0, number - 100), number):
        ledger.record(an_entry(f"call-{left}", revision=1, end_reason="completed"))
    progress.append(number)


async def _all_finished(ledger: Ledger, number: int) -> None:
    async with asyncio.timeout(20):
        await ledger.flush()
    rows = await ledger.rows(limit=100_000)
    assert len(rows) == number
    assert {row["end_reason"] for row in rows} == {"completed"}
    assert (ledger.lost, ledger.queued) == (0, 0)


def kill_connections(server_url: str) -> int:
    """Have the server end everybody's connections to a database; returns how many."""
    name = urlsplit(server_url).path[1:]
    if dialect_of(server_url) == "postgresql":
        sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = "
        return len(run_sql(server_url, f"{sql}'{name}'"))
    ids = run_sql(
        server_url, f"SELECT id FROM information_schema.processlist WHERE db = '{name}' AND id <> CONNECTION_ID()"
    )
    for (thread,) in ids:
        with contextlib.suppress(Exception):  # it may have gone by itself
            run_sql(server_url, f"KILL {thread}")
    return len(ids)


def test_killed_connections_lose_nothing(server_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """While the server kills our connections under load, every call is stored once and finished."""

    async def main() -> None:
        ledger = Ledger(server_url)
        await ledger.open()
        progress: list[int] = []
        calls = asyncio.create_task(_calls(ledger, 1.5, progress))
        killed = 0
        while not calls.done():
            await asyncio.sleep(0.15)
            killed += await asyncio.to_thread(kill_connections, server_url)
        await calls
        assert killed > 3
        await _all_finished(ledger, progress[0])
        await ledger.close()

    asyncio.run(main())
    assert {record.name for record in caplog.records if record.levelno >= logging.WARNING} <= {"arbstr_asgi.ledger"}
    assert not [record for record in caplog.records if record.levelname == "CRITICAL" or record.exc_info]


def test_letting_a_connection_go_asks_nothing_of_a_silent_server(server_url: str) -> None:
    """A server that falls silent right behind a piece of work keeps nobody from ending it."""

    async def main() -> None:
        gate = Gate(server_url)
        await gate.open()
        target = LedgerDatabase.create(gate.url, None)
        connections = await target.open(migrate=True)

        async def work(raw: Any) -> None:
            assert await target.driver.fetch(raw, "SELECT 1")
            gate.hang()

        async with asyncio.timeout(1.0):
            await connections.run(work)
        gate.resume()
        await target.close()
        await gate.shut()

    asyncio.run(main())


def test_reading_survives_killed_connections(server_url: str) -> None:
    """A read gets a fresh connection where the server has killed those that were idle."""

    async def main() -> None:
        ledger = Ledger(server_url)
        await ledger.open()
        for _ in range(5):
            await asyncio.gather(*(ledger.rows() for _ in range(3)))  # fills the pool
            await asyncio.to_thread(kill_connections, server_url)
            assert await ledger.rows() == []
            await ledger.check()
        await ledger.close()

    asyncio.run(main())


def test_a_locked_file_loses_nothing(tmp_path: Any) -> None:
    """SQLite locked for a second by another writer under load: every call is there, once and finished."""
    url = f"sqlite:///{tmp_path}/arbstr.db"

    async def main() -> None:
        ledger = Ledger(url)
        await ledger.open()
        progress: list[int] = []
        calls = asyncio.create_task(_calls(ledger, 1.5, progress))
        await asyncio.sleep(0.1)
        holder = sqlite3.connect(sqlite_file(url), isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        await asyncio.sleep(1)
        assert ledger.snapshot().spilled >= 100
        holder.execute("COMMIT")
        holder.close()
        await calls
        await _all_finished(ledger, progress[0])
        await ledger.close()

    asyncio.run(main())


@pytest.mark.parametrize("way", ["hangs", "refuses"])
def test_close_keeps_its_time_and_counts_what_is_lost(
    database_url: str, way: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a dead (SQLite: locked) database and no spill close keeps its time; what waited is counted and logged."""
    no_spill(monkeypatch)

    async def main() -> None:
        made: list[Ledger] = []
        async with unreachable(database_url, made, way):
            (ledger,) = made
            for _ in range(7):
                ledger.record(an_entry())
            ledger.spawn_usage_update("spawned", 1, 1, None)
            waiting = [asyncio.create_task(ledger.update_usage("x", 1, 1, None)), asyncio.create_task(ledger.flush())]
            await asyncio.sleep(0.2)
            started = time.monotonic()
            await ledger.close(timeout=1.0)
            assert time.monotonic() - started < 1.3
            assert ledger.lost == 7
            assert ledger.queued == 0
            for outcome in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(outcome, LedgerError)
            ledger.record(an_entry())
            assert ledger.lost == 8

    asyncio.run(main())
    assert "7 entries lost" in caplog.text
    assert "usage of spawned not updated" in caplog.text


@pytest.mark.parametrize("way", ["hangs", "refuses"])
def test_close_leaves_rows_in_the_spill(database_url: str, way: str) -> None:
    """With a dead (SQLite: locked) database close takes a second or two, loses nothing, and the next start has it."""

    async def main() -> None:
        made: list[Ledger] = []
        async with unreachable(database_url, made, way):
            (ledger,) = made
            for number in range(7):
                ledger.record(an_entry(str(number), revision=1, end_reason="completed"))
            started = time.monotonic()
            await ledger.close(timeout=8.0)
            assert time.monotonic() - started < 5
            assert (ledger.lost, ledger.queued) == (0, 0)
        again = Ledger(made[0]._target._source.url)
        if dialect_of(database_url) != "sqlite":
            again._target = LedgerDatabase.create(database_url, None)
            again._target.spill_folder = made[0]._target.spill_folder  # type: ignore[method-assign]
        await again.open()
        await again.flush()
        stored = {row["correlation_id"] for row in await again.rows()} - {"before"}
        assert stored == {str(number) for number in range(7)}
        await again.close()

    asyncio.run(main())


def test_cancelled_callers_hurt_nobody(database_url: str) -> None:
    """Cancelling whoever waits for an update, a flush, rows or a check leaves the ledger and its work intact."""

    async def main() -> None:
        ledger = Ledger(database_url)
        await ledger.open()
        for number in range(60):
            ledger.record(an_entry(f"call-{number}"))
            tasks = [
                asyncio.create_task(ledger.update_usage(f"call-{number}", number, 1, None)),
                asyncio.create_task(ledger.flush()),
                asyncio.create_task(ledger.rows()),
                asyncio.create_task(ledger.check()),
            ]
            await asyncio.sleep(number / 10_000)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await ledger.flush()
        rows = await ledger.rows()
        assert {(row["correlation_id"], row["input_tokens"]) for row in rows} == {(f"call-{n}", n) for n in range(60)}
        await ledger.close()

    asyncio.run(main())


def test_work_outlives_its_caller(database_url: str) -> None:
    """A session whose caller is cancelled works on to its end and lets go of its connection."""

    async def main() -> None:
        target = LedgerDatabase.create(database_url, None)
        connections = await target.open(migrate=True)
        at_work, done = asyncio.Event(), asyncio.Event()

        async def work(raw: Any) -> None:
            at_work.set()
            await asyncio.sleep(0.05)
            await connections.driver.fetch(raw, "SELECT 1")
            done.set()

        caller = asyncio.create_task(connections.run(work))
        await at_work.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        async with asyncio.timeout(2):
            await done.wait()
        await connections.end(1)
        await target.close()

    asyncio.run(main())


def test_reading_while_closing_is_an_error_not_a_cancellation(database_url: str) -> None:
    """Rows that are asked for while the ledger closes come, or raise LedgerError; their task is not cancelled."""

    async def main() -> None:
        ledger = Ledger(database_url)
        await ledger.open()
        readers = [asyncio.create_task(ledger.rows()) for _ in range(5)]
        await asyncio.sleep(0)
        await ledger.close()
        for outcome in await asyncio.gather(*readers, return_exceptions=True):
            assert outcome == [] or isinstance(outcome, LedgerError)

    asyncio.run(main())


def test_a_failed_open_leaves_nothing_open(tmp_path: Any) -> None:
    """After a LedgerError at open no thread is left, and a later open of the same object works."""
    import threading

    broken = tmp_path / "arbstr.db"
    broken.write_bytes(b"this is not a database file, but it is longer than its header would be" * 20)
    ledger = Ledger(f"sqlite:///{broken}")

    def left() -> list[threading.Thread]:
        found = [thread for thread in threading.enumerate() if "_connection_worker" in thread.name]
        for thread in found:
            thread.join(1)
        return [thread for thread in found if thread.is_alive()]

    with pytest.raises(LedgerError, match="not a database"):
        asyncio.run(ledger.open())
    assert left() == []
    assert not ledger.is_open
    broken.unlink()

    async def again() -> None:
        await ledger.open()
        await ledger.close()

    asyncio.run(again())
    assert left() == []
