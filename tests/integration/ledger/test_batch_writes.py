"""How a batch gets to a database: in one transaction of few statements, and out of the spill again once it is there."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from arbstr_asgi.database import connections as connections_module
from arbstr_asgi.database import values
from arbstr_asgi.database.columns import ATTEMPT_COLUMNS, COLUMNS
from arbstr_asgi.database.connections import HeldConnection
from arbstr_asgi.database.database import LedgerDatabase
from arbstr_asgi.database.drivers import sqlite
from arbstr_asgi.database.drivers.base import BulkStatement
from arbstr_asgi.database.records import AttemptEntry
from arbstr_asgi.database.statements import statements
from arbstr_asgi.ledger.batch import PendingBatches, upsert_operations
from arbstr_asgi.ledger.ledger import Ledger
from arbstr_asgi.ledger.queue import WriteQueue
from arbstr_asgi.ledger.status import LossCounters
from arbstr_asgi.stats.rollups.dirty_hours import DirtyHours
from tests.support.databases import an_entry, run_sql, sqlite_file
from tests.support.raw_http_client import eventually

DONE: dict[str, Any] = {"revision": 1, "end_reason": "completed", "success": True}


def on_sqlite(folder: Path, work: Callable[[LedgerDatabase], Awaitable[None]]) -> None:
    """With an SQLite file that is migrated."""

    async def main() -> None:
        target = LedgerDatabase.create(f"sqlite:///{folder}/ledger.db", "")
        try:
            await work(target)
        finally:
            await target.close()

    asyncio.run(main())


@pytest.mark.parametrize("number", [1, 2, 31, 96, 500, 771])
@pytest.mark.parametrize("limit", [999, 32766])
def test_a_batch_is_few_statements(number: int, limit: int) -> None:
    """Each row is written once, in its order, in a number of statements that the loop need not wait long for."""
    with sqlite3.connect(":memory:", isolation_level=None) as connection:
        connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, limit)
        names = [column.name for column in COLUMNS]
        connection.execute(f"CREATE TABLE t ({', '.join(names)})")
        rows = [tuple(range(n, n + len(names))) for n in range(number)]
        run: list[str] = []
        connection.set_trace_callback(run.append)
        sqlite._write(
            connection,
            [BulkStatement(f"INSERT INTO t VALUES ({', '.join('?' * len(names))})", rows), BulkStatement("?", [])],
        )
        connection.set_trace_callback(None)
        assert connection.execute("SELECT * FROM t ORDER BY rowid").fetchall() == rows
    most = 16 if limit == 999 else 64
    assert len(run) - 2 <= number // most + most.bit_length() - 1
    assert (run[0], run[-1]) == ("BEGIN IMMEDIATE", "COMMIT")


def test_a_batch_is_all_or_nothing(database_url: str) -> None:
    """Where one step fails nothing is left of those before it, also inside of a transaction that goes on."""

    async def main() -> None:
        target = LedgerDatabase.create(database_url, "")
        connections = await target.open(migrate=True)
        driver = target.driver
        mark = {"sqlite": "?, ?, ?", "postgresql": "$1, $2, $3", "mysql": "%s, %s, %s"}[driver.dialect]
        good = f"INSERT INTO dirty_hours (hour, writer, mark) VALUES ({mark})"

        async def work(raw: Any) -> None:
            with pytest.raises(Exception, match=r"(?i)unique|duplicate"):
                await driver.write(raw, [BulkStatement(good, [(1, 1, 1)]), BulkStatement(good, [(2, 1, 1), (2, 1, 1)])])
            async with driver.begin(raw):
                await driver.write(raw, [BulkStatement(good, [(3, 1, 1)])])
                with pytest.raises(Exception, match=r"(?i)unique|duplicate"):
                    await driver.write(raw, [BulkStatement(good, [(4, 1, 1)]), BulkStatement(good, [(3, 1, 1)])])
            assert not driver.in_transaction(raw)
            assert [tuple(row) for row in await driver.fetch(raw, "SELECT hour FROM dirty_hours")] == [(3,)]

        await connections.run(work)
        await target.close()

    asyncio.run(main())


def test_a_batch_waits_for_another_writer(tmp_path: Path) -> None:
    """While somebody else holds the lock nothing is written; when he lets go, everything is."""

    async def work(target: LedgerDatabase) -> None:
        connections = await target.open(migrate=True)
        other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        insert = BulkStatement("INSERT INTO dirty_hours (hour, writer, mark) VALUES (?, ?, ?)", [(1, 1, 1)])
        writing = asyncio.create_task(connections.run(lambda raw: target.driver.write(raw, [insert])))
        await asyncio.sleep(0.2)
        assert not writing.done()
        other.execute("ROLLBACK")
        await writing
        assert other.execute("SELECT count(*) FROM dirty_hours").fetchone() == (1,)
        other.close()

    on_sqlite(tmp_path, work)


def test_a_held_connection_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One connection for all work in a row; another after a failure, and after a time without any."""
    monkeypatch.setattr(connections_module, "IDLE_TIMEOUT", 0.1)

    async def work(target: LedgerDatabase) -> None:
        held = HeldConnection(await target.open(migrate=True))
        seen: list[Any] = []

        async def note(raw: Any) -> int:
            seen.append(raw)
            return len(seen)

        async def fail(raw: Any) -> None:
            seen.append(raw)
            raise ValueError("no")

        assert await asyncio.gather(held.run(note), held.run(note)) == [1, 2]
        with pytest.raises(ValueError, match="no"):
            await held.run(fail)
        assert await held.run(note) == 4
        await asyncio.sleep(0.3)
        assert await held.run(note) == 5
        assert [raw is seen[0] for raw in seen] == [True, True, True, False, False]
        assert seen[4] is not seen[3]

    on_sqlite(tmp_path, work)


def test_held_work_goes_on_without_its_caller(tmp_path: Path) -> None:
    """A caller who is cancelled leaves his work and that of the others as it is; the end cancels all of it."""

    async def work(target: LedgerDatabase) -> None:
        connections = await target.open(migrate=True)
        held = HeldConnection(connections)
        go, done = asyncio.Event(), asyncio.Event()

        async def slow(raw: Any) -> None:
            await go.wait()
            done.set()

        first = asyncio.create_task(held.run(slow))
        second = asyncio.create_task(held.run(slow))
        await asyncio.sleep(0.1)
        first.cancel()
        go.set()
        await second
        assert done.is_set()
        assert first.cancelled()
        go.clear()
        third, fourth = asyncio.create_task(held.run(slow)), asyncio.create_task(held.run(slow))
        await asyncio.sleep(0.1)
        await connections.end(1.0)
        with pytest.raises(ConnectionAbortedError):
            await third
        fourth.cancel()

    on_sqlite(tmp_path, work)


def test_a_connection_that_cannot_be_opened_fails_its_work(tmp_path: Path) -> None:
    """Whoever asked hears why, and the next one may have more luck."""

    class Sessions:
        broken = True

        async def run(self, work: Callable[[Any], Awaitable[Any]]) -> Any:
            if self.broken:
                raise sqlite3.OperationalError("unable to open database file")
            return await work(None)

    async def main() -> None:
        connections = Sessions()
        held = HeldConnection(connections)  # type: ignore[arg-type]

        async def work(raw: Any) -> int:
            return 7

        with pytest.raises(sqlite3.OperationalError):
            await held.run(work)
        connections.broken = False
        assert await held.run(work) == 7

    asyncio.run(main())


def test_what_was_written_after_all_leaves_the_spill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that were spilled because the database was slow are not read back when it has taken them."""
    from arbstr_asgi.ledger.spill.store import SpillStore

    async def never(*_: Any) -> Any:
        raise AssertionError("there is nothing to be read")

    monkeypatch.setattr(SpillStore, "read", never)

    async def main() -> None:
        ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
        await ledger.open()
        tries = (AttemptEntry(number=1, provider="p", timestamp=an_entry().timestamp, model="m", revision=1),)
        other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        for number in range(3):
            ledger.record(an_entry(f"call-{number}", tries=tries, **DONE))
            await eventually(lambda: ledger.snapshot().spilled > number)  # noqa: B023 - waited for here
        assert ledger.queued == 0
        other.close()
        await eventually(lambda: ledger.snapshot().spilled == 0)
        (slot,) = ledger.spill_folder.glob("*.db")
        for file in (slot, sqlite_file(f"sqlite:///{tmp_path}/ledger.db")):
            count = [
                run_sql(f"sqlite:///{file}", f"SELECT count(*) FROM {table}") for table in ("requests", "attempts")
            ]
            assert count == [[(0 if file is slot else 3,)]] * 2
        await ledger.close()

    asyncio.run(main())


def test_what_was_committed_while_it_was_spilled_is_known(tmp_path: Path) -> None:
    """Whichever of both ends first, the rows need not be read back."""

    async def work(target: LedgerDatabase) -> None:
        connections = await target.open(migrate=True)
        queue = WriteQueue()
        pending = PendingBatches(target.driver, statements("sqlite", ""), LossCounters(), DirtyHours())
        for number in range(2):
            queue.add(an_entry(f"call-{number}"), 0.0)
            pending.take(queue, 1)
        first, second = pending.batches
        pending.mark_spilled(second)
        assert (len(pending), pending.waiting, pending.stale) == (2, 1, [])
        await connections.run(pending.write)
        assert pending.stale == []
        pending.mark_spilled(first)
        await connections.run(pending.write)
        assert pending.stale == [*first.records, *second.records]

    on_sqlite(tmp_path, work)


def test_a_newer_state_stays_in_the_spill(tmp_path: Path) -> None:
    """What is taken out because the database has it is that state, and none that has come since."""
    from arbstr_asgi.ledger.spill.locks import SpillLocks
    from arbstr_asgi.ledger.spill.store import SpillStore

    async def main() -> None:
        spill = SpillStore(SpillLocks(tmp_path).claim())
        await spill.open()
        first, other = values.record(an_entry("call")), values.record(an_entry("other"))
        await spill.write([first, other])
        await spill.write([values.record(an_entry("call", **DONE))])
        await spill.remove_committed([first, other])
        assert spill.rows == 1
        kept = await spill.read(9)
        assert [one.record.correlation_id for one in kept] == ["call"]
        await spill.remove_committed([one.record for one in kept])
        await spill.remove(kept)  # what has been forgotten meanwhile counts once
        assert spill.rows == 0
        await spill.close()

    asyncio.run(main())


@pytest.mark.parametrize("mode", ["", "NO_BACKSLASH_ESCAPES"])
def test_values_arrive_as_they_are(database_url: str, mode: str) -> None:
    """Whatever a text looks like to SQL, it is stored and nothing else; so are the smallest and the largest amount."""
    nasty = "'; DROP TABLE requests; -- \" \\ \\' %s {0} \n\r\x1a ü 😀 $1 ?"
    amounts = Decimal("0.000000001"), Decimal("-999999999999999.999999999"), Decimal(0)
    moment = datetime(2026, 2, 3, 4, 5, 6, 7000, tzinfo=UTC)
    fields: dict[str, Any] = {"model": nasty, "tags": nasty, "timestamp": moment, **DONE}
    money = dict(zip(("cost_sats", "provider_cost_sats", "dearest_cost_sats"), amounts, strict=True))
    attempt = AttemptEntry(number=1, provider=nasty, timestamp=moment, model="m", cost_sats=amounts[0], revision=1)
    record = values.record(an_entry("call", **fields, **money, input_tokens=-(2**63), tries=(attempt,)))

    async def main() -> None:
        target = LedgerDatabase.create(database_url, "")
        connections = await target.open(migrate=True)
        driver, sql = target.driver, statements(target.dialect, "")

        async def work(raw: Any) -> None:
            if driver.dialect == "mysql":
                await driver.execute(raw, "SET SESSION sql_mode = %s", (f"STRICT_ALL_TABLES,{mode}".strip(","),))
            await driver.write(raw, upsert_operations(driver, sql, [record]))
            ((_, *row),) = await driver.fetch(raw, sql.oldest, (1,))
            assert values.read_row(row) == record.row
            ((tried),) = await driver.fetch(raw, sql.select_attempts(1), ("call",))
            assert values.read_row(tried, ATTEMPT_COLUMNS) == record.attempts[0]

        await connections.run(work)
        await target.close()

    asyncio.run(main())
