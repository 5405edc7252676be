"""The ledger on SQLite, PostgreSQL and MariaDB: what is recorded is what is read."""

import asyncio
import contextvars
import itertools
import logging
import os
import subprocess
import sys
import textwrap
import time
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from arbstr_asgi.database.records import LedgerEntry
from arbstr_asgi.errors import ConfigError, LedgerError
from arbstr_asgi.ledger.ledger import Ledger
from tests.support.databases import an_entry, dialect_of, run_sql

ALL: dict[str, Any] = {
    "provider": "alpha",
    "policy": "cheapest",
    "input_tokens": 11,
    "output_tokens": 2**63 - 1,
    "cost_sats": Decimal("123456789012345.123456789"),
    "provider_cost_sats": Decimal("0.1"),
    "dearest_cost_sats": Decimal("2.5"),
    "latency_ms": 0,
    "stream_duration_ms": 2**40,
    "success": True,
    "error_status": 200,
    "error_message": "server_error: überlastet 🙂 100% \\ ' \" ; --",
    "complexity_score": 0.1,
    "tier": "t",
    "end_user": "émile",
    "tenant": "acme",
    "tags": '{"a": "%s"}',
    "response_model": "gpt-4o-2024",
    "response_id": "chatcmpl-1",
    "finish_reason": "stop",
    "service_tier": "default",
    "total_tokens": 1,
    "cached_tokens": 2,
    "cache_write_tokens": 3,
    "reasoning_tokens": -4,
    "usage_json": '{"prompt_tokens":11}',
    "usage_source": "provider",
    "end_reason": "completed",
    "provider_cost_usd": Decimal("-0.000000001"),
    "ttft_ms": 7,
    "attempts": 2,
    "disconnect": "drained",
    "worker_id": "host-1",
    "revision": 1,
    "provider_model": "big/m",
}


async def stored(ledger: Ledger, entry: LedgerEntry) -> dict[str, Any]:
    ledger.record(entry)
    await ledger.flush()
    (row,) = await ledger.rows(correlation_id=entry.correlation_id)
    return row


def on(url: str, scenario: Any, **options: Any) -> Any:
    """Run `scenario(ledger)` with an open ledger, and close it."""

    async def main() -> Any:
        ledger = Ledger(url, **options)
        await ledger.open()
        try:
            return await scenario(ledger)
        finally:
            await ledger.close()

    return asyncio.run(main())


def test_every_column_comes_back_as_it_went_in(database_url: str) -> None:
    """A row that uses every column, and one that uses none, read equal on all three databases."""
    when = datetime(2026, 11, 22, 10, 0, 0, 123_999, tzinfo=timezone(timedelta(hours=2)))
    full = LedgerEntry(correlation_id="full", timestamp=when, model="GPT-4o", streaming=False, **ALL)
    bare = LedgerEntry(correlation_id="bare", timestamp=when, model="m", streaming=True)

    async def scenario(ledger: Ledger) -> None:
        read = await stored(ledger, full)
        assert read == {
            **ALL,
            "correlation_id": "full",
            "timestamp": datetime(2026, 11, 22, 8, 0, 0, 123_000, tzinfo=UTC),
            "model": "GPT-4o",
            "streaming": False,
            "sent_ms": None,  # there is no attempt to be told
        }
        assert [type(read[name]) for name in ("success", "cost_sats", "attempts", "complexity_score")] == [
            bool,
            Decimal,
            int,
            float,
        ]
        assert str(read["provider_cost_sats"]) == "0.100000000"
        assert read["timestamp"].tzinfo is UTC
        empty = await stored(ledger, bare)
        assert {name: value for name, value in empty.items() if value is not None} == {
            "correlation_id": "bare",
            "timestamp": datetime(2026, 11, 22, 8, 0, 0, 123_000, tzinfo=UTC),
            "model": "m",
            "streaming": True,
            "success": False,
            "usage_source": "none",
            "end_reason": "in_flight",
            "attempts": 0,
            "revision": 0,
        }

    on(database_url, scenario)


def test_rows_are_written_without_being_asked(database_url: str) -> None:
    """A recorded entry is committed soon, with nobody flushing."""

    async def scenario(ledger: Ledger) -> None:
        ledger.record(an_entry("soon"))
        assert ledger.queued == 1
        deadline = time.monotonic() + 5
        while ledger.queued and time.monotonic() < deadline:  # noqa: ASYNC110 - a test may look
            await asyncio.sleep(0.01)
        assert len(await ledger.rows(correlation_id="soon")) == 1

    on(database_url, scenario)


def test_the_highest_revision_stays_in_every_order(database_url: str) -> None:
    """Whatever the order in which states arrive, in one batch or in several, the newest one is the row."""
    orders = [[0, 1], [1, 0], [0, 1, 0], [2, 1, 0], [0, 2, 1], [1, 1]]

    async def scenario(ledger: Ledger) -> None:
        for number, (order, split) in enumerate(itertools.product(orders, (False, True))):
            for place, revision in enumerate(order):
                reason = "completed" if revision else "in_flight"
                model = f"{revision}.{order[:place].count(revision)}"
                ledger.record(an_entry(f"call-{number}", model=model, revision=revision, end_reason=reason))
                if split:
                    await ledger.flush()
        await ledger.flush()
        for number, (order, _) in enumerate(itertools.product(orders, (False, True))):
            (row,) = await ledger.rows(correlation_id=f"call-{number}")
            assert (row["revision"], row["model"]) == (max(order), f"{max(order)}.0"), order

    on(database_url, scenario)


@pytest.mark.parametrize("split", [False, True])
def test_an_update_neither_hides_the_end_nor_is_undone(database_url: str, split: bool) -> None:
    """The finished state still applies after an update in flight; no replay undoes a later update."""

    async def scenario(ledger: Ledger) -> None:
        async def pause() -> None:
            if split:
                await ledger.flush()

        start = an_entry("call")
        end = an_entry("call", revision=1, end_reason="completed", success=True, input_tokens=1)
        ledger.record(start)
        await pause()
        ledger.spawn_usage_update("call", 7, 7, None)
        await pause()
        ledger.record(end)
        await ledger.flush()
        (row,) = await ledger.rows()
        assert (row["end_reason"], row["success"], row["input_tokens"]) == ("completed", True, 1)
        ledger.spawn_usage_update("call", 8, 9, Decimal(3))
        await pause()
        ledger.record(end)
        ledger.record(start)
        await ledger.flush()
        (row,) = await ledger.rows()
        assert (row["end_reason"], row["input_tokens"], row["output_tokens"], row["cost_sats"]) == (
            "completed",
            8,
            9,
            3,
        )

    on(database_url, scenario)


def test_update_usage_counts_rows(database_url: str) -> None:
    """1 for a known call, also with NULLs and with the same values again; 0 for an unknown one."""

    async def scenario(ledger: Ledger) -> None:
        ledger.record(
            LedgerEntry(correlation_id="known", timestamp=datetime.now(UTC), model="m", streaming=True, **ALL)
        )
        updates: list[tuple[int | None, int | None, Decimal | None]] = [
            (1, 2, Decimal("0.5")),
            (1, 2, Decimal("0.5")),
            (None, None, None),
            (None, None, None),
            (None, 0, Decimal(0)),
        ]
        before = None
        for values in updates:
            assert await ledger.update_usage("known", *values) == 1
            (row,) = await ledger.rows(correlation_id="known")
            assert (row["input_tokens"], row["output_tokens"], row["cost_sats"]) == values
            rest = {k: v for k, v in row.items() if k not in {"input_tokens", "output_tokens", "cost_sats", "revision"}}
            assert before in (None, rest), "another column changed"
            before = rest
        assert row["revision"] == 1 + len(updates)
        assert await ledger.update_usage("unknown", 1, 2, Decimal(3)) == 0
        assert await ledger.update_usage("unknown", None, None, None) == 0
        assert len(await ledger.rows()) == 1

    on(database_url, scenario)


def test_an_update_before_its_row_finds_nothing(database_url: str) -> None:
    """Order is kept within a batch: an update queued before its INSERT counts 0, one behind it counts 1."""

    async def scenario(ledger: Ledger) -> None:
        early = asyncio.create_task(ledger.update_usage("call", 1, 1, None))
        await asyncio.sleep(0)
        ledger.record(an_entry("call"))
        late = asyncio.create_task(ledger.update_usage("call", 2, 2, None))
        assert (await early, await late) == (0, 1)
        (row,) = await ledger.rows()
        assert row["input_tokens"] == 2

    on(database_url, scenario)


def test_spawned_updates_report_and_finish_before_close(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """DEBUG for a written one, WARNING for an unknown call and when closed; all before close returns; never raises."""
    caplog.set_level(logging.DEBUG, "arbstr_asgi.ledger")
    ledger = Ledger(database_url)

    async def main() -> None:
        ledger.spawn_usage_update("early", 1, 2, None)
        await ledger.open()
        ledger.record(an_entry("known"))
        ledger.spawn_usage_update("known", 1, 2, Decimal(3))
        ledger.spawn_usage_update("unknown", 1, 2, Decimal(3))
        await ledger.close()
        ledger.spawn_usage_update("late", 1, 2, None)
        await ledger.open()
        (row,) = await ledger.rows()
        assert (row["input_tokens"], row["output_tokens"], row["cost_sats"]) == (1, 2, 3)
        await ledger.close()

    asyncio.run(main())
    ledger.spawn_usage_update("without a loop", 1, 2, None)
    levels = {
        word: record.levelname
        for record in caplog.records
        for word in ("early", "of known", "unknown", "late", "without a loop")
        if word in record.getMessage()
    }
    assert levels == {
        "early": "WARNING",
        "of known": "DEBUG",
        "unknown": "WARNING",
        "late": "WARNING",
        "without a loop": "WARNING",
    }


TRAPS: list[tuple[str, Any, Any]] = [
    ("model", "a\0b", "a\ufffdb"),
    ("model", "cut \ud83d", "cut \ufffd"),
    ("model", "\ud83d\ude00", "\U0001f600"),
    ("model", "\U0001f600" * 300, "\U0001f600" * 255),
    ("error_message", "x" * 501, "x" * 500),
    ("tags", "é" * 4096, "é" * 2048),
    ("tags", "x" * 70_000, "x" * 4096),
    ("worker_id", "x" * 65, "x" * 64),
    ("end_user", "x' OR 1=1; -- \\", "x' OR 1=1; -- \\"),
    ("end_user", "", ""),
    ("input_tokens", 2**63, None),
    ("input_tokens", -(2**63), -(2**63)),
    ("input_tokens", True, None),
    ("input_tokens", 1.5, None),
    ("latency_ms", 2**31, 2**31),
    ("cost_sats", Decimal("NaN"), None),
    ("cost_sats", Decimal("sNaN"), None),
    ("cost_sats", Decimal("-Infinity"), None),
    ("cost_sats", Decimal("1e15"), None),
    ("cost_sats", Decimal("999999999999999.9999999995"), None),
    ("cost_sats", Decimal("-999999999999999.999999999"), Decimal("-999999999999999.999999999")),
    ("cost_sats", Decimal("0.0000000005"), Decimal(0)),
    ("cost_sats", Decimal("0.0000000015"), Decimal("0.000000002")),
    ("cost_sats", Decimal("-0"), Decimal(0)),
    ("cost_sats", Decimal("1e-999999"), Decimal(0)),
    ("complexity_score", float("nan"), None),
    ("complexity_score", float("inf"), None),
    ("complexity_score", 1 / 3, 1 / 3),
    ("complexity_score", 1e308, 1e308),
    ("streaming", 1, True),
    ("timestamp", datetime(2026, 12, 31, 23, 59, 59, 999_999), datetime(2026, 12, 31, 23, 59, 59, 999_000, UTC)),  # noqa: DTZ001
    (
        "timestamp",
        datetime(2026, 1, 1, 0, 30, tzinfo=timezone(timedelta(hours=14))),
        datetime(2025, 12, 31, 10, 30, tzinfo=UTC),
    ),
]


def test_values_that_drivers_stumble_over(database_url: str) -> None:
    """Each trap becomes the same harmless value on every database, and takes no other row with it."""

    async def scenario(ledger: Ledger) -> None:
        for number, (name, value, _) in enumerate(TRAPS):
            ledger.record(an_entry(f"trap-{number}", **{name: value}))
        await ledger.flush()
        for number, (name, value, expected) in enumerate(TRAPS):
            (row,) = await ledger.rows(correlation_id=f"trap-{number}")
            assert row[name] == expected, (name, value)
            assert type(row[name]) is type(expected)
        assert ledger.lost == 0

    on(database_url, scenario)


def test_an_odd_correlation_id_is_found_again(database_url: str) -> None:
    """An id is stored as 36 characters of printable ASCII, and found by what was recorded; case matters."""

    async def scenario(ledger: Ledger) -> None:
        for odd in ("ä\n" + "x" * 50, "case", "CASE"):
            ledger.record(an_entry(odd))
            assert await ledger.update_usage(odd, 1, 1, None) == 1
            assert len(await ledger.rows(correlation_id=odd)) == 1
        assert {row["correlation_id"] for row in await ledger.rows()} == {"??" + "x" * 34, "case", "CASE"}

    on(database_url, scenario)


def test_rows_come_newest_first(database_url: str) -> None:
    """The newest arrivals first, the later recorded one first at a tie, and no more than asked for."""
    start = datetime(2026, 1, 1, tzinfo=UTC)

    async def scenario(ledger: Ledger) -> None:
        for name, second in (("b", 2), ("a", 1), ("d", 3), ("c", 2)):
            ledger.record(an_entry(name, timestamp=start + timedelta(seconds=second)))
            await ledger.flush()
        assert [row["correlation_id"] for row in await ledger.rows()] == ["d", "c", "b", "a"]
        assert [row["correlation_id"] for row in await ledger.rows(limit=2)] == ["d", "c"]
        assert await ledger.rows(limit=0) == []
        assert await ledger.rows(limit=-1) == []
        assert await ledger.rows(correlation_id="nobody") == []

    on(database_url, scenario)


def test_prefixes_keep_ledgers_apart(database_url: str) -> None:
    """Two ledgers with different prefixes, one in upper case, share a database and not a row."""

    async def scenario(ledger: Ledger) -> None:
        other = Ledger(database_url, table_prefix="My_Select_")
        await other.open()
        other.record(an_entry("other"))
        await other.close()
        assert await ledger.rows() == []
        name = "`My_Select_requests`" if dialect_of(database_url) == "mysql" else '"My_Select_requests"'
        assert await asyncio.to_thread(run_sql, database_url, f"SELECT correlation_id FROM {name}") == [("other",)]

    on(database_url, scenario)


def test_two_thousand_at_once_are_all_stored(database_url: str) -> None:
    """More than several batches, recorded by tasks that are cancelled right after, are all there once."""

    async def scenario(ledger: Ledger) -> None:
        async def call(number: int) -> None:
            ledger.record(an_entry(f"call-{number}"))
            try:
                await ledger.update_usage(f"call-{number}", number, 0, None)
            finally:
                ledger.record(an_entry(f"call-{number}", revision=1, end_reason="client_disconnected"))

        tasks = [asyncio.create_task(call(number)) for number in range(2000)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await ledger.flush()
        rows = await ledger.rows(limit=5000)
        assert len(rows) == 2000
        assert {row["end_reason"] for row in rows} == {"client_disconnected"}
        assert ledger.queued == ledger.lost == 0

    on(database_url, scenario)


def test_record_works_from_another_thread(database_url: str) -> None:
    """A synchronous view in a worker thread may record, and spawn an update."""

    async def scenario(ledger: Ledger) -> None:
        await asyncio.to_thread(ledger.record, an_entry("thread"))
        await asyncio.to_thread(ledger.spawn_usage_update, "thread", 5, 5, None)
        async with asyncio.timeout(20):
            while [row["input_tokens"] for row in await ledger.rows()] != [5]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    on(database_url, scenario)


def test_nothing_is_kept_before_open_and_after_close(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Then an entry is lost, counted and logged once a minute; all else is a LedgerError; closing twice is fine."""
    ledger = Ledger(database_url)
    ledger.record(an_entry())
    assert ledger.lost == 1
    assert [record.levelname for record in caplog.records] == ["CRITICAL"]

    async def main() -> None:
        await ledger.close()
        for _ in range(2):  # it can be opened again
            await ledger.open()
            assert ledger.is_open
            with pytest.raises(LedgerError, match="open already"):
                await ledger.open()
            ledger.record(an_entry())
            await ledger.close()
            await ledger.close()
            assert not ledger.is_open
        ledger.record(an_entry())
        await ledger.flush()
        with pytest.raises(LedgerError, match="not open"):
            await ledger.update_usage("x", 1, 1, None)
        with pytest.raises(LedgerError, match="not open"):
            await ledger.rows()
        with pytest.raises(LedgerError, match="not open"):
            await ledger.check()

    asyncio.run(main())
    ledger.record(an_entry())
    assert ledger.lost == 3
    assert sum(record.levelname == "CRITICAL" for record in caplog.records) == 1
    assert on(database_url, Ledger.rows) != []


def test_check_asks_the_database(database_url: str) -> None:
    """It passes while the database answers, and is a LedgerError when the table of versions has gone."""

    async def scenario(ledger: Ledger) -> None:
        await ledger.check()
        await asyncio.to_thread(run_sql, database_url, "DROP TABLE arbstr_version")
        with pytest.raises(LedgerError, match="can't answer"):
            await ledger.check()

    on(database_url, scenario)


def test_the_writer_forgets_the_context_of_its_opener(database_url: str) -> None:
    """A ledger opened inside a request doesn't carry that request's context variables."""
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request")
    seen: list[str | None] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(request.get(None))

    handler = Handler()
    logger = logging.getLogger("arbstr_asgi.ledger")

    async def main() -> None:
        request.set("the first one")
        ledger = Ledger(database_url)
        await ledger.open()
        logger.addHandler(handler)
        try:
            ledger.spawn_usage_update("nobody", 1, 1, None)
            await ledger.flush()
        finally:
            logger.removeHandler(handler)
            await ledger.close()

    asyncio.run(main())
    assert seen == [None]


def test_a_program_that_closes_nothing_still_ends_with_its_rows(database_url: str) -> None:
    """Record, return from main: the process ends by itself and the row is there, on the host's database too."""
    program = textwrap.dedent("""
        import asyncio, sys
        from datetime import UTC, datetime
        from arbstr_asgi.database.records import LedgerEntry
        from arbstr_asgi.ledger.ledger import Ledger

        async def main():
            ledger = Ledger(sys.argv[1])
            await ledger.open()
            ledger.record(LedgerEntry(correlation_id="first", timestamp=datetime.now(UTC), model="m", streaming=True))
            if sys.argv[2] == "busy":
                await ledger.flush()
                second = LedgerEntry(correlation_id="second", timestamp=datetime.now(UTC), model="m", streaming=True)
                ledger.record(second)
                await asyncio.sleep(0.051)

        asyncio.run(main())
    """)
    for way in ("idle", "busy"):
        ended = subprocess.run(
            [sys.executable, "-W", "error", "-c", program, database_url, way],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert (ended.returncode, ended.stderr) == (0, "")
    rows = on(database_url, Ledger.rows)
    assert {row["correlation_id"] for row in rows} == {"first", "second"}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite://", "name a file"),
        ("sqlite:///", "name a file"),
        ("sqlite:///:memory:", "name a file"),
        ("sqlite+aiosqlite:///:memory:", "name a file"),
        ("sqlite:///file:x?mode=memory&uri=true", "name a file"),
        ("sqlite://arbstr.db", "three slashes"),
        ("sqlite:///arbstr.db?timeout=3", "no ?options"),
        ("sqlite:///a#b.db", "%23"),
        ("postgresql+psycopg://u:secret@h/d", "postgresql+asyncpg://"),
        ("mysql+asyncmy://u:secret@h/d", "mysql+aiomysql://"),
        ("oracle://u:secret@h/d", "unknown scheme 'oracle'"),
        ("arbstr.db", "unknown scheme"),
        ("", "unknown scheme"),
        ("postgresql://u:secret@h", "names no database"),
        ("postgresql://u:secret/part@h:1/d", "percent|%40"),
        ("mysql://u:secret@h:port/d", "%40"),
        ("mysql://u:sec#ret@h/d", "%40"),
        ("mysql://u:123#sec@h/d", "%23"),
    ],
)
def test_a_wrong_url_is_refused_at_construction(url: str, words: str) -> None:
    """A ConfigError says what to write instead, and never the password."""
    with pytest.raises(ConfigError) as caught:
        Ledger(url)
    assert any(word in str(caught.value) for word in words.split("|"))
    assert "sec" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["a-b", "1a", "a b", 'a"', "a;", "ä", "a" * 32, "a\n"])
def test_a_prefix_is_part_of_an_identifier(prefix: str) -> None:
    """Anything that could be more than letters, digits and _ is a ConfigError."""
    with pytest.raises(ConfigError, match="table_prefix"):
        Ledger("sqlite:///x.db", table_prefix=prefix)


@pytest.mark.parametrize("scheme", ["sqlite", "sqlite+aiosqlite"])
def test_sqlite_has_two_spellings(scheme: str, tmp_path: Any) -> None:
    """Both open the file that they name."""
    assert on(f"{scheme}:///{tmp_path}/a%20b.db", Ledger.rows) == []
    assert (tmp_path / "a b.db").is_file()


@pytest.mark.parametrize(
    "scheme",
    ["postgresql", "postgres", "postgresql+asyncpg", "mysql", "mysql+aiomysql", "mariadb", "mariadb+aiomysql"],
)
def test_no_message_shows_the_password(scheme: str, caplog: pytest.LogCaptureFixture) -> None:
    """Every spelling is taken; neither repr, error nor log has the password in it, and a refused connection is told."""
    caplog.set_level(logging.DEBUG)
    ledger = Ledger(f"{scheme}://user:s3cr%40t@127.0.0.1:9/name")

    async def main() -> str:
        await ledger.open()
        with pytest.raises(LedgerError, match="can't answer") as caught:
            await ledger.check()
        await ledger.close()
        return str(caught.value)

    text = f"{ledger!r} {asyncio.run(main())} {caplog.text}"
    assert "s3cr" not in text
    assert "can't open the ledger at" in caplog.text
    assert "127.0.0.1" in caplog.text


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has the pip line that helps."""
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(ConfigError, match=r'pip install "arbstr-asgi\[postgres\]"'):
        Ledger("postgresql://u@h/d")


def test_a_missing_folder_is_reported(tmp_path: Any) -> None:
    """An SQLite file in a folder that isn't there is a LedgerError that names the folder; nothing is made."""
    with pytest.raises(LedgerError, match="does not exist"):
        asyncio.run(Ledger(f"sqlite:///{tmp_path}/no/arbstr.db").open())
    with pytest.raises(LedgerError, match="can't open"):
        asyncio.run(Ledger(f"sqlite:///{tmp_path}").open())
    assert list(tmp_path.iterdir()) == []


def test_sqlite_files_are_their_owner_s(tmp_path: Path) -> None:
    """The database, what SQLite has beside it and the spill have mode 0600; a file that is there keeps its own."""

    def modes() -> dict[str, str]:
        return {file.name: f"{file.stat().st_mode & 0o777:o}" for file in tmp_path.rglob("*.db*") if file.is_file()}

    before = os.umask(0o022)
    try:

        async def main(name: str) -> dict[str, str]:
            ledger = Ledger(f"sqlite:///{tmp_path / name}")
            await ledger.open()
            ledger.record(an_entry())
            await ledger.flush()
            found = modes()
            await ledger.close()
            return found

        found = asyncio.run(main("new.db"))
        assert {"new.db", "new.db-wal", "new.db-shm"} <= set(found)
        assert set(found.values()) == {"600"}
        shared = tmp_path / "shared.db"
        shared.touch(mode=0o660)
        shared.chmod(0o660)
        assert asyncio.run(main("shared.db"))["shared.db"] == "660"
    finally:
        os.umask(before)


def test_a_ledger_needs_exactly_one_database() -> None:
    """Neither url nor database, or both, is a ConfigError."""
    with pytest.raises(ConfigError):
        Ledger()
