"""The rows of a call's attempts: kept, replayed and read like the row of the call itself."""

import asyncio
import sqlite3
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from arbstr_asgi.database.columns import ATTEMPT_COLUMNS
from arbstr_asgi.database.records import AttemptEntry, LedgerEntry, derived_attempt
from arbstr_asgi.database.values import normalise_attempt, record
from arbstr_asgi.ledger.ledger import Ledger
from arbstr_asgi.ledger.spill.locks import SpillLocks
from arbstr_asgi.ledger.spill.store import SpillStore
from tests.support.databases import an_entry, dialect_of, run_sql, sqlite_file
from tests.support.raw_http_client import eventually

SENT = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
FAILED: dict[str, Any] = {"number": 1, "provider": "a", "timestamp": SENT, "model": "m", "revision": 1}
RUNNING: dict[str, Any] = {"number": 2, "provider": "b", "timestamp": SENT, "model": "big/m", "status": 200}
FINISHED = {**RUNNING, "input_tokens": 7, "output_tokens": 2, "cost_sats": Decimal("1.5"), "revision": 1}
CLOSED = [("abandoned",)] * 2
UNKNOWN = dict.fromkeys(("status", "latency_ms", "input_tokens", "output_tokens", "cost_sats", "error_message"))


def started(call: str) -> LedgerEntry:
    """A call whose second attempt has been answered."""
    return an_entry(call, tries=(AttemptEntry(**FAILED, status=503, latency_ms=9), AttemptEntry(**RUNNING)))


def finished(call: str) -> LedgerEntry:
    """The same at its end."""
    tries = AttemptEntry(**FAILED, status=503, latency_ms=9), AttemptEntry(**FINISHED)
    return an_entry(call, revision=1, end_reason="completed", tries=tries)


def only(call: str, **facts: Any) -> LedgerEntry:
    """A finished call whose row tells its only attempt."""
    known: dict[str, Any] = {"provider": "b", "sent_ms": 1500, "attempts": 1, "end_reason": "completed"}
    known |= {"latency_ms": 1509, "provider_model": "big/m", "input_tokens": 7, "cost_sats": Decimal("1.5")}
    entry = an_entry(call, **{**known, "timestamp": SENT, "usage_source": "provider", "revision": 1, **facts})
    attempt = derived_attempt(entry)
    assert attempt is not None
    return msgspec.structs.replace(entry, tries=(attempt,))


def columns(attempt: AttemptEntry, call: str) -> dict[str, Any]:
    """An attempt as it is read."""
    names = [column.name for column in ATTEMPT_COLUMNS]
    return dict(zip(names, normalise_attempt(call, attempt), strict=True))


def rows_of_attempts(url: str) -> int:
    """How many rows the table has."""
    ((count,),) = run_sql(url, "SELECT count(*) FROM attempts")
    return int(count)


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


TOLD: list[dict[str, Any]] = [
    {},
    {"provider_model": None},
    {"end_reason": "in_flight", "revision": 0, "usage_source": "none", "input_tokens": None, "cost_sats": None},
    {"end_reason": "abandoned", "revision": 0, "usage_source": "none", "error_message": "abandoned: why"},
    {"usage_source": "none", "input_tokens": None, "cost_sats": None},
    {"usage_source": "provider_partial", "end_reason": "client_disconnected"},
    {"usage_source": "estimated", "revision": 2},
    {"error_status": 429, "usage_source": "none", "error_message": "provider answered 429"},
    *(
        {"timestamp": SENT.replace(microsecond=ms * 1000), "sent_ms": ms, "latency_ms": 1509}
        for ms in range(0, 1000, 37)
    ),
    {"timestamp": datetime(2024, 2, 28, 23, 59, 59, 999_999, tzinfo=UTC)},
    {"timestamp": datetime(1, 1, 1, tzinfo=UTC) + timedelta(days=400_000), "sent_ms": 86_400_001, "latency_ms": 2**31},
]


def test_the_row_of_a_call_tells_its_only_attempt(database_url: str) -> None:
    """`attempts()` and the view `all_attempts` show it as ever, whatever became of the call; the table has no row."""

    async def main() -> None:
        ledger = Ledger(database_url)
        await ledger.open()
        worker_id = ledger.worker_id
        entries = [only(f"call-{number}", **{"worker_id": worker_id, **facts}) for number, facts in enumerate(TOLD)]
        for entry in entries:
            ledger.record(entry)
        await ledger.flush()
        for entry in entries:
            call = entry.correlation_id
            assert await ledger.attempts(call) == [columns(entry.tries[0], call)]
        await ledger.close()

    asyncio.run(main())
    assert rows_of_attempts(database_url) == 0
    assert run_sql(database_url, "SELECT count(*) FROM all_attempts") == [(len(TOLD),)]


@pytest.mark.parametrize("order", ["in order", "the wrong way round", "twice"])
@pytest.mark.parametrize("odd", ["start", "end", "both"])
def test_an_attempt_that_only_one_state_tells(database_url: str, order: str, odd: str) -> None:
    """Where the attempt has a row in one state of the call and none in the other, it is shown once, and the newest."""
    start = only("call", end_reason="in_flight", revision=0, usage_source="none", input_tokens=None, cost_sats=None)
    end = only("call")
    if odd != "end":
        start = msgspec.structs.replace(start, tries=(msgspec.structs.replace(start.tries[0], status=201),))
    if odd != "start":
        end = msgspec.structs.replace(end, tries=(msgspec.structs.replace(end.tries[0], status=201),))

    async def main() -> None:
        ledger = Ledger(database_url)
        await ledger.open()
        states = [end, start] if order == "the wrong way round" else [start, end]
        for state in states * (2 if order == "twice" else 1):
            ledger.record(state)
            await ledger.flush()
        assert await ledger.attempts("call") == [columns(end.tries[0], "call")]
        await ledger.close()

    asyncio.run(main())
    assert rows_of_attempts(database_url) == 1
    assert run_sql(database_url, "SELECT count(*) FROM all_attempts") == [(1,)]


def test_a_usage_update_leaves_the_attempt_as_it_was(database_url: str) -> None:
    """What a host corrects in the call's row is the call's; its only attempt then gets a row, which keeps its usage."""

    async def main() -> None:
        ledger = Ledger(database_url)
        await ledger.open()
        (before,) = (entry := only("call")).tries
        ledger.record(entry)
        await ledger.flush()
        for tokens in (100, 200):
            assert await ledger.update_usage("call", tokens, tokens, Decimal(9)) == 1
            assert await ledger.attempts("call") == [columns(before, "call")]
        (row,) = await ledger.rows()
        assert (row["input_tokens"], row["output_tokens"], row["cost_sats"]) == (200, 200, Decimal(9))
        await ledger.close()

    asyncio.run(main())
    assert rows_of_attempts(database_url) == 1


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
        ledger.record(only("only"))
        await eventually(lambda: ledger.snapshot().spilled == 4)
        holder.close()
        await ledger.flush()
        await eventually(lambda: ledger.snapshot().spilled == 0)
        for number in range(3):
            assert [row["status"] for row in await ledger.attempts(f"call-{number}")] == [503, 200]
        assert await ledger.attempts("only") == [columns(only("only").tries[0], "only")]
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
        facts = {"end_reason": "in_flight", "revision": 0, "usage_source": "none", "worker_id": ledger.worker_id}
        ledger.record(only("only", **facts))
        await ledger.close()

    async def start() -> list[dict[str, Any]]:
        ledger = Ledger(f"sqlite:///{tmp_path}/l.db")
        await ledger.open()
        await eventually(lambda: run_sql(f"sqlite:///{tmp_path}/l.db", "SELECT end_reason FROM requests") == CLOSED)
        attempts = [*await ledger.attempts("call"), *await ledger.attempts("only")]
        await ledger.close()
        return attempts

    asyncio.run(die())
    first, *others = asyncio.run(start())
    assert len(others) == 2
    assert (first["maybe_billed"], first["error_message"]) == (False, None)
    for other in others:
        assert other["maybe_billed"]
        assert other["error_message"].startswith("abandoned")


def test_a_refused_call_keeps_its_attempts(database_url: str) -> None:
    """Where a row is recorded degraded, for a text of its reply, its attempts are whole."""

    async def main() -> None:
        ledger = Ledger(database_url)
        await ledger.open()
        refusal = "response_id = 'odd'"
        told = only("only", response_id="odd")
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
        ledger.record(told)
        await ledger.flush()
        assert ledger.snapshot().degraded == 2
        assert await ledger.attempts("only") == [columns(told.tries[0], "only")]
        await ledger.close()

    asyncio.run(main())
