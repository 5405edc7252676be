"""Calls whose first state is asked for when it is to be written: as late as possible, and often not at all."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from arbstr_asgi.database.records import LedgerEntry
from arbstr_asgi.ledger import writer
from arbstr_asgi.ledger.ledger import Ledger
from arbstr_asgi.ledger.queue import WriteQueue
from tests.support.databases import an_entry
from tests.support.raw_http_client import eventually

DONE: dict[str, Any] = {"revision": 1, "end_reason": "completed", "success": True}


class Asked:
    """A call that counts how often it is asked, and remembers by which thread."""

    def __init__(self, correlation_id: str, error: Exception | None = None) -> None:
        self.correlation_id = correlation_id
        self.model = "at first"
        self.threads: list[int] = []
        self._error = error

    def entry(self) -> LedgerEntry:
        """What is known of it now."""
        self.threads.append(threading.get_ident())
        if self._error is not None:
            raise self._error
        return an_entry(self.correlation_id, model=self.model)


def with_ledger(folder: Path, work: Callable[[Ledger], Awaitable[None]]) -> None:
    """With one on an SQLite file, closed at the end."""

    async def main() -> None:
        ledger = Ledger(f"sqlite:///{folder}/ledger.db")
        await ledger.open()
        await work(ledger)
        await ledger.close()

    asyncio.run(main())


def test_a_pending_entry_is_built_when_it_is_written(tmp_path: Path) -> None:
    """Its row is what it says of itself then, asked for once and in the loop's thread, whoever follows it."""

    async def work(ledger: Ledger) -> None:
        call = Asked("call")
        await asyncio.to_thread(ledger.record_started, call)
        call.model = "later"
        assert call.threads == []
        await eventually(lambda: ledger.queued == 0)
        ((row),) = await ledger.rows()
        assert (row["model"], row["end_reason"]) == ("later", "in_flight")
        assert call.threads == [threading.get_ident()]
        ledger.record(an_entry("call", **DONE))
        await ledger.flush()
        assert [row["end_reason"] for row in await ledger.rows()] == ["completed"]

    with_ledger(tmp_path, work)


def test_the_first_row_of_a_short_call_is_never_built(tmp_path: Path) -> None:
    """Where its last state is in the same batch, or came before, that alone is written."""

    async def work(ledger: Ledger) -> None:
        before, after = Asked("before"), Asked("after")
        ledger.record_started(before)
        ledger.record(an_entry("before", **DONE))
        ledger.record(an_entry("after", **DONE))
        ledger.record_started(after)
        await ledger.flush()
        assert (before.threads, after.threads) == ([], [])
        assert {row["end_reason"] for row in await ledger.rows()} == {"completed"}

    with_ledger(tmp_path, work)


def test_a_call_that_ends_in_the_next_batch_has_a_first_row(tmp_path: Path, monkeypatch: Any) -> None:
    """Between two batches the first state is written, however soon the last one comes."""
    monkeypatch.setattr(writer, "BATCH", 1)

    async def work(ledger: Ledger) -> None:
        call = Asked("call")
        ledger.record_started(call)
        ledger.record(an_entry("call", **DONE))
        await ledger.flush()
        assert len(call.threads) == 1
        assert [row["end_reason"] for row in await ledger.rows()] == ["completed"]

    with_ledger(tmp_path, work)


def test_a_pending_entry_that_fails_costs_no_other(tmp_path: Path) -> None:
    """It is counted as lost, and what came with it is written; its end too, when that comes."""

    async def work(ledger: Ledger) -> None:
        ledger.record(an_entry("first", **DONE))
        ledger.record_started(Asked("call", ValueError("no")))
        ledger.record(an_entry("last", **DONE))
        await ledger.flush()
        assert ledger.lost == 1
        assert {row["correlation_id"] for row in await ledger.rows()} == {"first", "last"}
        ledger.record(an_entry("call", **DONE))
        await ledger.flush()
        assert len(await ledger.rows()) == 3

    with_ledger(tmp_path, work)


def test_a_call_that_goes_on_is_on_disk_in_time(tmp_path: Path) -> None:
    """The spill asks as the database does."""
    import sqlite3

    async def work(ledger: Ledger) -> None:
        other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        ledger.record(an_entry("first"))
        await asyncio.sleep(0.1)
        call = Asked("call")
        ledger.record_started(call)
        await eventually(lambda: ledger.snapshot().spilled == 2)
        assert (len(call.threads), ledger.queued) == (1, 0)
        other.close()
        await ledger.flush()
        assert len(await ledger.rows()) == 2

    with_ledger(tmp_path, work)


def test_a_closed_ledger_follows_nobody(tmp_path: Path) -> None:
    """As with an entry: counted, never raised, not asked."""
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    call = Asked("call")
    ledger.record_started(call)
    assert (ledger.lost, call.threads) == (1, [])


def test_an_update_stays_behind_the_call() -> None:
    """A call that follows an update of the same id is left for the next time, as an entry is."""
    from arbstr_asgi.ledger.queue import UsageUpdate

    queue = WriteQueue()
    queue.add(UsageUpdate.create("call", 1, 2, None, lambda _: None), 0.0)
    assert queue.add(Asked("call"), 0.0) == 2
    assert len(queue.take(500).updates) == 1
    (call,) = queue.take(500).entries
    assert isinstance(call, Asked)
