"""Rows that wait on disk: written in time, brought back whoever starts next, and calls of the dead closed."""

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from arbstr_asgi.errors import LedgerError
from arbstr_asgi.ledger import batch as pending
from arbstr_asgi.ledger.ledger import Ledger
from arbstr_asgi.ledger.spill.locks import SpillLocks
from arbstr_asgi.ledger.spill.store import SpillStore
from arbstr_asgi.ledger.status import QueueLimits
from tests.support.databases import an_entry, dialect_of, run_sql, sqlite_file
from tests.support.raw_http_client import eventually
from tests.support.tcp_proxy import Gate

DONE: dict[str, Any] = {"revision": 1, "end_reason": "completed", "success": True}


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Return once it holds."""
    async with asyncio.timeout(20):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.02)


async def settled(ledger: Ledger) -> None:
    """Return once nothing waits, in memory or on disk."""

    async def nothing() -> bool:
        snapshot = ledger.snapshot()
        return snapshot.queued == snapshot.spilled == 0

    await until(nothing)


class Outage:
    """A database that can be out of reach: a locked file, or a server behind a gate."""

    def __init__(self, url: str) -> None:
        self._real = url
        self._gate = None if dialect_of(url) == "sqlite" else Gate(url)
        self._holder: sqlite3.Connection | None = None

    @property
    def url(self) -> str:
        """Where the ledger is to connect."""
        return self._real if self._gate is None else self._gate.url

    async def begin(self) -> None:
        """Out of reach from now on."""
        if self._gate is not None:
            if not self._gate.port:
                await self._gate.open()
            await self._gate.shut()
        else:
            self._holder = sqlite3.connect(sqlite_file(self._real), isolation_level=None)
            self._holder.execute("BEGIN EXCLUSIVE")

    async def end(self) -> None:
        """Back again."""
        if self._gate is not None:
            await self._gate.open()
        elif self._holder is not None:
            self._holder.close()
            self._holder = None

    async def close(self) -> None:
        """Nothing is left of it."""
        if self._gate is not None:
            await self._gate.shut()


def outage(url: str, scenario: Callable[[Outage], Awaitable[None]]) -> None:
    """Run a scenario on a database that can go away."""

    async def main() -> None:
        out = Outage(url)
        await out.begin()
        await out.end()
        try:
            await scenario(out)
        finally:
            await out.close()

    asyncio.run(main())


def test_a_database_that_is_down_at_start_gets_everything_later(database_url: str) -> None:
    """The ledger opens all the same, keeps rows on disk in time, counts them, and writes them when it can."""

    async def scenario(out: Outage) -> None:
        await out.begin()
        ledger = Ledger(out.url)
        await ledger.open(patience=0.3)
        for number in range(20):
            ledger.record(an_entry(f"call-{number}"))
            ledger.record(an_entry(f"call-{number}", **DONE))
        update = asyncio.create_task(ledger.update_usage("call-3", 3, 4, None))
        await until(lambda: _spilled(ledger, 20))
        snapshot = ledger.snapshot()
        assert snapshot.spill_bytes > 0
        assert (snapshot.lost, snapshot.degraded, snapshot.spills) == (0, 0, True)
        assert snapshot.oldest_unwritten_seconds is not None
        with pytest.raises(LedgerError, match="can't answer"):
            await ledger.check()
        await out.end()
        assert await update == 1
        await ledger.flush()
        await settled(ledger)
        rows = {row["correlation_id"]: row for row in await ledger.rows()}
        assert set(rows) == {f"call-{number}" for number in range(20)}
        assert {row["end_reason"] for row in rows.values()} == {"completed"}
        assert (rows["call-3"]["input_tokens"], rows["call-3"]["revision"]) == (3, 2)
        assert ledger.snapshot().oldest_unwritten_seconds is None
        await ledger.close()

    outage(database_url, scenario)


@pytest.mark.parametrize("kept", [0, pending.MAX_SPILLED_IN_MEMORY])
def test_an_update_waits_for_the_row_that_is_on_disk(
    database_url: str, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its row is in no batch of the memory's any more, the update finds it."""
    monkeypatch.setattr(pending, "MAX_SPILLED_IN_MEMORY", kept)

    async def scenario(out: Outage) -> None:
        ledger = Ledger(out.url)
        await ledger.open()
        await out.begin()
        for number in range(1200):
            ledger.record(an_entry(f"call-{number}", **DONE))
        await until(lambda: _spilled(ledger, 1200))
        update = asyncio.create_task(ledger.update_usage("call-1199", 3, 4, None))
        await asyncio.sleep(0.05)
        await out.end()
        assert await update == 1
        (row,) = await ledger.rows(correlation_id="call-1199")
        assert (row["input_tokens"], row["revision"]) == (3, 2)
        await ledger.close()

    outage(database_url, scenario)


async def _spilled(ledger: Ledger, number: int) -> bool:
    return ledger.snapshot().spilled >= number


def test_a_replay_undoes_nothing(database_url: str) -> None:
    """A state on disk that is older than what the database has by now changes nothing."""

    async def scenario(out: Outage) -> None:
        ledger = Ledger(out.url)
        await ledger.open()
        await out.begin()
        ledger.record(an_entry("call"))
        await until(lambda: _spilled(ledger, 1))
        await ledger.close(timeout=3)
        assert ledger.lost == 0
        await out.end()
        other = Ledger(out.url, spill="elsewhere")
        await other.open()
        other.record(an_entry("call", input_tokens=5, **DONE))
        await other.close()
        await ledger.open()
        await settled(ledger)
        (row,) = await ledger.rows()
        assert (row["end_reason"], row["input_tokens"], row["revision"]) == ("completed", 5, 1)
        await ledger.close()

    outage(database_url, scenario)


def test_a_row_is_on_disk_in_time(tmp_path: Path) -> None:
    """A quarter of a second after it was recorded it is in the spill's file, whoever reads it, with mode 0600."""
    url = f"sqlite:///{tmp_path}/arbstr.db"

    async def scenario(out: Outage) -> None:
        ledger = Ledger(out.url)
        await ledger.open()
        await out.begin()
        ledger.record(an_entry("call"))
        await asyncio.sleep(0.25)
        spill = tmp_path / "arbstr.db-spill" / "1.db"
        with sqlite3.connect(f"file:{spill}?mode=ro", uri=True) as reader:
            found = reader.execute("SELECT correlation_id, end_reason FROM requests").fetchall()
        reader.close()
        assert found == [("call", "in_flight")]
        assert stat.S_IMODE(spill.stat().st_mode) == 0o600
        assert stat.S_IMODE(spill.parent.stat().st_mode) == 0o700
        await out.end()
        await ledger.close()

    outage(url, scenario)


def test_a_large_spill_does_not_hold_up_what_comes(database_url: str) -> None:
    """While thousands of rows come back, new ones are written too; the file is small again afterwards."""

    async def scenario(out: Outage) -> None:
        ledger = Ledger(out.url)
        await ledger.open()
        await out.begin()
        for number in range(4000):
            ledger.record(an_entry(f"old-{number}", **DONE))
        await until(lambda: _spilled(ledger, 3500))
        await out.end()
        for number in range(100):
            ledger.record(an_entry(f"new-{number}", **DONE))
            await asyncio.sleep(0.005)
        await ledger.flush()
        await settled(ledger)
        rows = {row["correlation_id"] for row in await ledger.rows(limit=10_000)}
        assert rows == {f"old-{n}" for n in range(4000)} | {f"new-{n}" for n in range(100)}
        await ledger.close()
        assert ledger.snapshot().lost == 0

    outage(database_url, scenario)


def program(url: str, end: str) -> subprocess.Popen[str]:
    """A process that records an open and a finished call and says `ready`; then it is as `end` says."""
    source = f"""
        import asyncio, os, sys
        from tests.support.databases import an_entry
        from arbstr_asgi.ledger.ledger import Ledger

        async def main():
            ledger = Ledger({url!r})
            await ledger.open(patience=0.2)
            ledger.record(an_entry("open-" + str(os.getpid()), worker_id=ledger.worker_id))
            ledger.record(an_entry("done-" + str(os.getpid()), worker_id=ledger.worker_id, revision=1,
                                   end_reason="completed"))
            await asyncio.sleep(0.25)
            print("ready", flush=True)
            await asyncio.to_thread(sys.stdin.read)
            {end}

        asyncio.run(main())
    """
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(source)],
        env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def killed(url: str) -> int:
    """Run such a process and end it by SIGKILL; returns its id."""
    with program(url, "pass") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        return process.pid


def test_calls_of_strangers_are_given_up_after_a_day(database_url: str) -> None:
    """An open call of a process that nobody here can ask about is closed when it is 24 hours old, not before."""
    now = datetime.now(UTC)

    async def main() -> None:
        ledger = Ledger(database_url)
        await ledger.open()
        for call, hours in (("young", 23), ("old", 25)):
            at = now - timedelta(hours=hours)
            ledger.record(an_entry(call, timestamp=at, worker_id="elsewhere:1:0123abcd.4567"))
            ledger.record(an_entry(f"{call}-nameless", timestamp=at))
        await ledger.close()
        await ledger.open()

        async def closed() -> bool:
            return any(row["end_reason"] == "abandoned" for row in await ledger.rows())

        await until(closed)
        reasons = {row["correlation_id"]: row["end_reason"] for row in await ledger.rows()}
        assert reasons == {
            "young": "in_flight",
            "young-nameless": "in_flight",
            "old": "abandoned",
            "old-nameless": "abandoned",
        }
        ledger.record(an_entry("old", input_tokens=5, **DONE))
        await ledger.flush()
        (row,) = await ledger.rows(correlation_id="old")
        assert (row["end_reason"], row["input_tokens"]) == ("completed", 5)
        ledger.record(an_entry("young", revision=7, end_reason="abandoned"))
        ledger.record(an_entry("young", input_tokens=6, **DONE))
        await ledger.flush()
        (row,) = await ledger.rows(correlation_id="young")
        assert (row["end_reason"], row["input_tokens"]) == ("completed", 6)
        await ledger.close()

    asyncio.run(main())


def test_locks_show_which_owners_live(tmp_path: Path) -> None:
    """A slot has one owner at a time; whose lock is free is an orphan, and its place is taken again."""
    locks = SpillLocks(tmp_path / "spill")
    first, second = locks.claim(), locks.claim()
    first.write_owner("one")
    second.write_owner("another")
    assert first.file != second.file
    assert locks.live_owners() == {"one", "another"}
    assert list(locks.orphans()) == []
    first.release()
    assert SpillLocks(tmp_path / "spill").live_owners() == {"another"}
    (orphan,) = locks.orphans()
    assert orphan.file == first.file
    assert locks.claim().file not in (first.file, second.file)
    orphan.release()
    assert locks.claim().file == first.file
    assert SpillLocks(tmp_path / "spill").id == locks.id


def test_each_database_has_a_spill_of_its_own(tmp_path: Path) -> None:
    """Neither another database nor another prefix gets rows that were not meant for it."""
    folders = [
        Ledger(url, table_prefix=prefix, spill=str(tmp_path))._target.spill_folder(str(tmp_path))
        for url in ("postgresql://u@h/a", "postgresql://u@h/b", "mysql://u@h/a", "sqlite:///a", "postgresql://u@i/a")
        for prefix in ("", "x_")
    ]
    assert len(set(folders)) == len(folders)
    assert {folder.parent for folder in folders} == {tmp_path}
    renamed = Ledger("postgresql://another:password@h/a")
    assert renamed._target.spill_folder(str(tmp_path)) == folders[0]


def test_without_a_spill_everything_works_but_the_spill(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A folder that can't be made is a WARNING that names the setting; rows are written and kept in memory."""
    (tmp_path / "file").write_text("")

    async def main() -> None:
        ledger = Ledger(f"sqlite:///{tmp_path}/arbstr.db", spill=str(tmp_path / "file" / "folder"))
        await ledger.open()
        assert not ledger.snapshot().spills
        ledger.record(an_entry("call"))
        await ledger.close()
        await ledger.open()
        assert [row["correlation_id"] for row in await ledger.rows()] == ["call"]
        await ledger.close()

    asyncio.run(main())
    assert "set database.spill to a folder" in caplog.text


def break_spill(folder: Path) -> sqlite3.Connection:
    """Let the spill refuse every row, as a full disk does; undone by `mend_spill`."""
    connection = sqlite3.connect(folder / "1.db", isolation_level=None)
    connection.execute("CREATE TRIGGER full BEFORE INSERT ON requests BEGIN SELECT RAISE(FAIL, 'full'); END")
    return connection


def test_what_is_lost_is_lost_exactly_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Database and spill fail, ten wait: of 25 entries 15 are lost, counted and told; the ten are stored later."""
    url = f"sqlite:///{tmp_path}/arbstr.db"

    async def scenario(out: Outage) -> None:
        ledger = Ledger(out.url, bounds=QueueLimits(entries=10))
        await ledger.open()
        await out.begin()
        spill = break_spill(tmp_path / "arbstr.db-spill")
        for number in range(25):
            ledger.record(an_entry(f"call-{number}", **DONE))
            await asyncio.sleep(0.02)
        snapshot = ledger.snapshot()
        assert (snapshot.queued, snapshot.lost, snapshot.spilled, snapshot.spills) == (10, 15, 0, False)
        assert ledger.lost == 15
        with pytest.raises(LedgerError, match="too much is waiting"):
            await ledger.update_usage("call-1", 1, 1, None)
        await out.end()
        spill.execute("DROP TRIGGER full")
        spill.close()
        await ledger.flush()
        assert len(await ledger.rows()) == 10
        await ledger.close()

    outage(url, scenario)
    critical = [record.getMessage() for record in caplog.records if record.levelname == "CRITICAL"]
    assert critical == [
        "ledger: 1 entries lost (10 wait already), 1 in all",
        "ledger: 15 entries lost in all",
    ]


def test_bytes_are_bounded_too(tmp_path: Path) -> None:
    """Large entries fill the memory's bound before many of them wait."""

    async def scenario(out: Outage) -> None:
        ledger = Ledger(out.url, bounds=QueueLimits(size=50_000))
        await ledger.open()
        await out.begin()
        for _ in range(50):
            ledger.record(an_entry(usage_json="x" * 4000))
        assert 5 <= ledger.queued <= 11
        assert ledger.lost == 50 - ledger.queued
        assert ledger.snapshot().queued_bytes < 60_000
        await out.end()
        await ledger.close()

    outage(f"sqlite:///{tmp_path}/arbstr.db", scenario)


def test_memory_is_free_again_once_rows_are_on_disk(tmp_path: Path) -> None:
    """What is spilled does not count against memory's bound, so that an outage loses nothing while there is disk."""

    async def scenario(out: Outage) -> None:
        ledger = Ledger(out.url, bounds=QueueLimits(entries=1000))
        await ledger.open()
        await out.begin()
        for number in range(3000):
            ledger.record(an_entry(f"call-{number}", **DONE))
            if number % 50 == 0:
                await asyncio.sleep(0.02)
        await until(lambda: _spilled(ledger, 3000))
        assert ledger.queued <= 600
        assert ledger.lost == 0
        await out.end()
        await ledger.flush()
        assert len(await ledger.rows(limit=5000)) == 3000
        await ledger.close()

    outage(f"sqlite:///{tmp_path}/arbstr.db", scenario)


def test_commit_returns_when_the_row_is_safe(database_url: str) -> None:
    """In the database while that works, in the spill while it does not; then the row is there for anybody."""

    async def scenario(out: Outage) -> None:
        ledger = Ledger(out.url, durable=True)
        await ledger.open()
        async with asyncio.timeout(5):
            await asyncio.gather(*(ledger.commit(an_entry(f"call-{n}", **DONE)) for n in range(50)))
        await settled(ledger)
        assert len(await asyncio.to_thread(run_sql, database_url, "SELECT 1 FROM requests")) == 50
        await out.begin()
        async with asyncio.timeout(5):
            await ledger.commit(an_entry("spilled", **DONE))
        assert ledger.snapshot().spilled == 1
        assert ledger.snapshot().late == 0
        await out.end()
        await settled(ledger)
        assert len(await ledger.rows()) == 51
        await ledger.close()
        await ledger.commit(an_entry("closed"))
        assert ledger.lost == 1

    outage(database_url, scenario)


def test_commit_waits_two_seconds_at_most(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With database and spill both dead an answer goes out late, counted, with one WARNING."""

    async def scenario(out: Outage) -> None:
        ledger = Ledger(out.url)
        await ledger.open()
        await out.begin()
        spill = break_spill(tmp_path / "arbstr.db-spill")
        async with asyncio.timeout(4):
            await asyncio.gather(*(ledger.commit(an_entry()) for _ in range(3)))
        assert ledger.snapshot().late == 3
        spill.execute("DROP TRIGGER full")
        spill.close()
        await out.end()
        await ledger.close()
        assert ledger.lost == 0

    outage(f"sqlite:///{tmp_path}/arbstr.db", scenario)
    late = [record for record in caplog.records if "before their rows are durable" in record.getMessage()]
    assert [record.levelname for record in late] == ["WARNING"]


def test_an_orphan_that_is_no_database_is_logged_and_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A spill file that can't be read hinders nobody."""
    folder = tmp_path / "arbstr.db-spill"
    mine = SpillLocks(folder).claim()
    broken = SpillLocks(folder).claim()
    broken.file.write_bytes(b"this is not a database file, but it is longer than its header would be" * 20)
    mine.release()
    broken.release()

    async def main() -> None:
        ledger = Ledger(f"sqlite:///{tmp_path}/arbstr.db")
        await ledger.open()
        ledger.record(an_entry("call"))
        await ledger.flush()
        await eventually(lambda: "can't be read" in caplog.text)
        assert len(await ledger.rows()) == 1
        await ledger.close()

    asyncio.run(main())
    assert broken.file.exists()


def test_a_spill_keeps_the_newest_state(tmp_path: Path) -> None:
    """States of one call are one row; what has changed since it was read is not removed."""

    async def main() -> None:
        from arbstr_asgi.database.values import record

        spill = SpillStore(SpillLocks(tmp_path / "spill").claim())
        await spill.open()
        await spill.write([record(an_entry("a")), record(an_entry("b"))])
        kept = await spill.read(10)
        await spill.write([record(an_entry("a", **DONE))])
        await spill.remove(kept)
        (left,) = await spill.read(10)
        assert left.record.correlation_id == "a"
        assert (spill.rows, spill.oldest is not None) == (1, True)
        await spill.remove([left])
        assert (spill.rows, spill.oldest) == (0, None)
        await spill.close()

    asyncio.run(main())


def test_a_spill_knows_how_many_rows_it_has(tmp_path: Path) -> None:
    """Through new rows, newer states, removals, an emptied table and another opening, as a count of all would say."""

    async def main() -> None:
        from arbstr_asgi.database.values import record

        def counted() -> list[tuple[Any, ...]]:
            return run_sql(f"sqlite:///{tmp_path}/spill/1.db", "SELECT count(*) FROM requests")

        spill = SpillStore(SpillLocks(tmp_path / "spill").claim())
        await spill.open()
        for turn in range(4):
            for number in range(5):
                await spill.write([record(an_entry(f"{turn}-{n}")) for n in range(number, 2 * number + 1)])
                assert counted() == [(spill.rows,)]
            kept = await spill.read(3)
            await spill.write([record(an_entry(f"{turn}-0", **DONE)), record(an_entry(f"{turn}-new"))])
            await spill.remove(kept)
            assert counted() == [(spill.rows,)]
            await spill.remove(await spill.read(1000))
            assert (counted(), spill.rows) == ([(0,)], 0)
        await spill.write([record(an_entry("left"))])
        await spill.close()
        again = SpillStore(SpillLocks(tmp_path / "spill").claim())
        await again.open()
        assert again.rows == 1
        await again.close()

    asyncio.run(main())
