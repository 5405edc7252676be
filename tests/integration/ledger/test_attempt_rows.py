"""The rows of a call's attempts: kept, replayed and read like the row of the call itself."""

import asyncio
import sqlite3
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from arbstr_asgi.database.records import AttemptEntry, LedgerEntry
from arbstr_asgi.database.values import record
from arbstr_asgi.ledger.ledger import Ledger
from arbstr_asgi.ledger.spill.locks import SpillLocks
from arbstr_asgi.ledger.spill.store import SpillStore
from tests.support.databases import an_entry, dialect_of, run_sql, sqlite_file
from tests.support.raw_http_client import eventually

SENT = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
FAILED: dict[str, Any] = {"number": 1, "provider": "a", "timestamp": SENT, "model": "m", "revision": 1}
RUNNING: dict[str, Any] = {"number": 2, "provider": "b", "timestamp": SENT, "model": "big/m", "status": 200}
FINISHED = {**RUNNING, "input_tokens": 7, "output_tokens": 2, "cost_sats": Decimal("1.5"), "revision": 1}
CLOSED = [("abandoned",)]
UNKNOWN = dict.fromkeys(("status", "latency_ms", "input_tokens", "output_tokens", "cost_sats", "error_message"))


def started(call: str) -> LedgerEntry:
    """A call whose second attempt has been answered."""
    return an_entry(call, tries=(AttemptEntry(**FAILED, status=503, latency_ms=9), AttemptEntry(**RUNNING)))


def finished(call: str) -> LedgerEntry:
    """The same at its end."""
    tries = AttemptEntry(**FAILED, status=503, latency_ms=9), AttemptEntry(**FINISHED)
    return an_entry(call, revision=1, end_reason="completed", tries=tries)


def expected(call: str, facts: dict[str, Any]) -> dict[str, Any]:
    """An attempt as it is read."""
    return {"correlation_id": call, **UNKNOWN, "maybe_billed": False, "revision": 0, **facts}


@pytest.mark.parametrize("order", ["in order", "in one batch", "the wrong way round", "twice"])
def test_attempts_are_rows(database_url: str, order: str) -> None:
    """Each attempt is one row with its newest state, in whatever order and batches the states come."""

    async def main() -> None:
        ledger = Ledger(database_url)
        await ledger.open()
        states = [started("call"), finished("call")]
        if order == "the wrong way round":
            states.reverse()
        for state in states * (2 if order == "twice" else 1):
            ledger.record(state)
            if order != "in one batch":
                await ledger.flush()
        await ledger.flush()
        first, second = await ledger.attempts("call")
        assert first == expected("call", {**FAILED, "status": 503, "latency_ms": 9})
        assert second == expected("call", {**FINISHED, "cost_sats": Decimal("1.500000000")})
        assert await ledger.attempts("other") == []
        await ledger.close()

    asyncio.run(main())


def test_attempts_wait_in_the_spill(tmp_path: Path) -> None:
    """While the database is locked attempts are on disk with their calls; they come back with them, and none stays."""
    url = f"sqlite:///{tmp_path}/l.db"

    async def main() -> None:
        ledger = Ledger(url)
        await ledger.open()
        holder = sqlite3.connect(tmp_path / "l.db", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        for number in range(3):
            ledger.record(finished(f"call-{number}"))
        await eventually(lambda: ledger.snapshot().spilled == 3)
        holder.close()
        await ledger.flush()
        await eventually(lambda: ledger.snapshot().spilled == 0)
        for number in range(3):
            assert [row["status"] for row in await ledger.attempts(f"call-{number}")] == [503, 200]
        await ledger.close()

    asyncio.run(main())
    assert run_sql(f"sqlite:///{tmp_path}/l.db-spill/1.db", "SELECT count(*) FROM attempts") == [(0,)]


def test_a_newer_state_keeps_its_attempts_in_the_spill(tmp_path: Path) -> None:
    """What is removed from the spill takes its attempts along; a call with a newer state by then keeps them."""

    async def main() -> None:
        spill = SpillStore(SpillLocks(tmp_path / "spill").claim())
        await spill.open()
        await spill.write([record(started("a")), record(started("b"))])
        kept = await spill.read(10)
        assert [len(one.record.attempts) for one in kept] == [2, 2]
        await spill.write([record(finished("a"))])
        await spill.remove(kept)
        (left,) = await spill.read(10)
        assert left.record == record(finished("a"))._replace(row=left.record.row)
        await spill.remove([left])
        await spill.close()

    asyncio.run(main())
    assert run_sql(f"sqlite:///{tmp_path}/spill/1.db", "SELECT count(*) FROM attempts") == [(0,)]


def test_a_dead_process_may_have_been_billed(tmp_path: Path) -> None:
    """Of a call that is closed as abandoned, the attempt that went on says so, and that it may have been billed."""

    async def die() -> None:
        ledger = Ledger(f"sqlite:///{tmp_path}/l.db")
        await ledger.open()
        ledger.record(msgspec.structs.replace(started("call"), worker_id=ledger.worker_id))
        await ledger.close()

    async def start() -> list[dict[str, Any]]:
        ledger = Ledger(f"sqlite:///{tmp_path}/l.db")
        await ledger.open()
        await eventually(lambda: run_sql(f"sqlite:///{tmp_path}/l.db", "SELECT end_reason FROM requests") == CLOSED)
        attempts = await ledger.attempts("call")
        await ledger.close()
        return attempts

    asyncio.run(die())
    first, second = asyncio.run(start())
    assert (first["maybe_billed"], first["error_message"]) == (False, None)
    assert second["maybe_billed"]
    assert second["error_message"].startswith("abandoned")


def test_a_refused_call_keeps_its_attempts(database_url: str) -> None:
    """Where a row is recorded degraded, for a text of its reply, its attempts are whole."""

    async def main() -> None:
        ledger = Ledger(database_url)
        await ledger.open()
        refusal = "response_id = 'odd'"
        if dialect_of(database_url) == "sqlite":
            sql = f"CREATE TRIGGER no BEFORE INSERT ON requests WHEN NEW.{refusal} BEGIN SELECT RAISE(ABORT, 'no'); END"
            assert sqlite_file(database_url)
        else:
            sql = f"ALTER TABLE requests ADD CONSTRAINT no CHECK (NOT ({refusal}))"
        await asyncio.to_thread(run_sql, database_url, sql)
        ledger.record(
            an_entry("call", response_id="odd", revision=1, end_reason="completed", tries=finished("call").tries)
        )
        await ledger.flush()
        assert ledger.snapshot().degraded == 1
        assert [row["cost_sats"] for row in await ledger.attempts("call")] == [None, Decimal("1.5")]
        await ledger.close()

    asyncio.run(main())
