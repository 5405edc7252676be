"""Migrations: foreign tables, half-done work, the host's own Alembic."""

import asyncio
import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from databases import Database
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from arbstr_asgi.database import migrations, schema
from arbstr_asgi.database.columns import ATTEMPT_COLUMNS, COLUMNS
from arbstr_asgi.database.database import migrate, migration_sql
from arbstr_asgi.database.records import LedgerEntry, derived_attempt
from arbstr_asgi.errors import ConfigError, LedgerError
from arbstr_asgi.ledger.ledger import Ledger
from tests.support.databases import DIALECTS, an_entry, dialect_of, fresh_database, run_sql, sqlite_file


@pytest.fixture(params=DIALECTS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database on each of the three, without tables."""
    with fresh_database(request.param, tmp_path) as url:
        yield url


def columns_of(url: str, table: str = "requests") -> dict[str, str]:
    """Name and type of each column, as the database tells them."""
    if dialect_of(url) == "sqlite":
        return {row[1]: row[2].lower() for row in run_sql(url, f"PRAGMA table_info({table})")}
    where = "DATABASE()" if dialect_of(url) == "mysql" else "current_schema()"
    kind = "column_type" if dialect_of(url) == "mysql" else "data_type"
    rows = run_sql(
        url,
        f"SELECT column_name, {kind} FROM information_schema.columns "
        f"WHERE table_schema = {where} AND table_name = '{table}' ORDER BY ordinal_position",
    )
    return {str(name): str(kind) for name, kind in rows}


def opened(url: str, **options: Any) -> list[dict[str, Any]]:
    """Open, record one entry, close; returns the rows."""

    async def main() -> list[dict[str, Any]]:
        ledger = Ledger(url, **options)
        await ledger.open()
        try:
            ledger.record(an_entry())
            await ledger.flush()
            return await ledger.rows()
        finally:
            await ledger.close()

    return asyncio.run(main())


def test_head_is_the_newest_script() -> None:
    """The revision that the code compares with is the one that the folder ends with."""
    config = Config()
    config.set_main_option("script_location", str(migrations.folder()))
    assert ScriptDirectory.from_config(config).get_current_head() == schema.HEAD


def test_the_table_has_the_columns_of_the_code(database_url: str) -> None:
    """In their order, with the types that keep money exact, time in milliseconds and case apart."""
    assert asyncio.run(migrate(database_url)) == "nothing -> 0004"
    assert asyncio.run(migrate(database_url)) == "0004 (up to date)"
    columns = columns_of(database_url)
    assert list(columns) == ["id", *(column.name for column in COLUMNS)]
    assert list(columns_of(database_url, "attempts")) == ["id", *(column.name for column in ATTEMPT_COLUMNS)]
    expected = {
        "sqlite": ("integer", "text", "text", "boolean"),
        "postgresql": ("bigint", "timestamp with time zone", "numeric", "boolean"),
        "mysql": ("bigint(20)", "datetime(3)", "decimal(24,9)", "tinyint(1)"),
    }[dialect_of(database_url)]
    assert tuple(columns[name] for name in ("id", "timestamp", "cost_sats", "streaming")) == expected
    if dialect_of(database_url) == "mysql":
        assert (columns["tags"], columns["complexity_score"]) == ("mediumtext", "double")
        (made,) = run_sql(database_url, "SHOW CREATE TABLE requests")
        assert "COLLATE=utf8mb4_bin" in made[1]
        assert "`correlation_id` varchar(36) CHARACTER SET ascii COLLATE ascii_bin NOT NULL" in made[1]
        assert "UNIQUE KEY `uq_requests_correlation_id` (`correlation_id`)" in made[1]
        assert "KEY `ix_requests_timestamp` (`timestamp`)" in made[1]


def test_the_sql_script_makes_the_same_tables(database_url: str) -> None:
    """What `arbstr migrate --sql` prints, run by hand, is what open() takes for up to date."""
    script = migration_sql(database_url, table_prefix="by_hand_")
    assert not re.search(r"IF NOT EXISTS", script)
    if dialect_of(database_url) == "sqlite":
        import sqlite3

        connection = sqlite3.connect(sqlite_file(database_url))
        connection.executescript(script)
        connection.close()
    else:
        lines = "\n".join(line for line in script.splitlines() if not line.startswith("--"))
        with warnings.catch_warnings(action="ignore"):  # MariaDB: "Name … ignored for PRIMARY key"
            run_sql(database_url, *(part for part in lines.split(";") if part.strip()))
    assert asyncio.run(migrate(database_url, table_prefix="by_hand_")) == "0004 (up to date)"
    assert len(opened(database_url, table_prefix="by_hand_", migrate=False)) == 1
    asyncio.run(migrate(database_url))
    assert columns_of(database_url) == columns_of(database_url, "by_hand_requests")


def test_a_missing_schema_is_reported(database_url: str) -> None:
    """With migrations off, open() is a LedgerError that names `arbstr migrate`, and makes nothing."""
    with pytest.raises(LedgerError, match="arbstr migrate"):
        opened(database_url, migrate=False)
    assert columns_of(database_url) == {}


def set_back(url: str) -> None:
    """Bring a database back to revision 0001."""
    on = " ON requests" if dialect_of(url) == "mysql" else ""
    run_sql(
        url,
        "DROP VIEW all_attempts",
        *(f"DROP INDEX ix_requests_{name}{on}" for name in ("end_user", "latency_ms", "cost_sats")),
        *(f"ALTER TABLE requests DROP COLUMN {name}" for name in ("dearest_cost_sats", "provider_model", "sent_ms")),
        *(f"DROP TABLE {name}" for name in ("rollups", "dirty_hours", "attempts")),
        "UPDATE arbstr_version SET version_num = '0001'",
    )


def test_a_schema_that_is_behind_or_ahead(database_url: str) -> None:
    """An older revision needs migrating; a newer one of the same major version is used as it is."""
    asyncio.run(migrate(database_url))
    set_back(database_url)
    with pytest.raises(LedgerError, match="revision 0001, 0004 is needed"):
        opened(database_url, migrate=False)
    assert asyncio.run(migrate(database_url)) == "0001 -> 0004"
    run_sql(database_url, "UPDATE arbstr_version SET version_num = '0007'")
    run_sql(database_url, "ALTER TABLE requests ADD COLUMN colour VARCHAR(10)")
    assert len(opened(database_url)) == 1
    for table in ("all_attempts", "dirty_hours", "rollups", "attempts", "requests"):
        run_sql(database_url, f"DROP {'VIEW' if table == 'all_attempts' else 'TABLE'} {table}")
        with pytest.raises(LedgerError, match=f"table {table} is missing"):
            opened(database_url)


def downgrade(url: str, revision: str, prefix: str) -> None:
    """As a host would that uses Alembic on our scripts."""

    def run(connection: Connection) -> None:
        config = migrations._config(dialect_of(url), prefix)
        config.attributes["connection"] = connection
        command.downgrade(config, revision)

    async def main() -> None:
        driver = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "mysql": "mysql+aiomysql"}
        engine = create_async_engine(url.replace(urlsplit(url).scheme, driver[dialect_of(url)], 1))
        async with engine.begin() as connection:
            await connection.run_sync(run)
        await engine.dispose()

    asyncio.run(main())


def test_attempts_survive_up_and_down(database_url: str) -> None:
    """Rows of before keep theirs; one step down, each only attempt that a call's row told is a row, the view gone."""
    prefix = "my_"
    at = datetime(2026, 1, 2, 3, 4, 5, 999_000, tzinfo=UTC)
    facts: dict[str, Any] = {"timestamp": at, "end_reason": "completed", "usage_source": "provider", "provider": "p"}
    told = an_entry("told", **facts, latency_ms=1002, sent_ms=2, provider_model="big", cost_sats=Decimal("0.1"))
    attempt = derived_attempt(told)
    assert attempt is not None
    states = [
        msgspec.structs.replace(told, tries=(attempt,)),
        an_entry("kept", **facts, tries=(attempt, msgspec.structs.replace(attempt, number=2))),
    ]

    async def attempts(*entries: LedgerEntry) -> list[dict[str, Any]]:
        ledger = Ledger(database_url, table_prefix=prefix)
        await ledger.open()
        for entry in entries:
            ledger.record(entry)
        await ledger.flush()
        found = [row for entry in states for row in await ledger.attempts(entry.correlation_id)]
        await ledger.close()
        return found

    before = asyncio.run(attempts(*states))
    assert [row["number"] for row in before] == [1, 1, 2]
    assert run_sql(database_url, "SELECT count(*) FROM my_attempts") == [(2,)]
    downgrade(database_url, "0003", prefix)
    assert run_sql(database_url, "SELECT count(*) FROM my_attempts") == [(3,)]
    assert columns_of(database_url, "my_all_attempts") == {}
    assert list(columns_of(database_url, "my_requests"))[-1] == "dearest_cost_sats"
    assert asyncio.run(migrate(database_url, table_prefix=prefix)) == "0003 -> 0004"
    assert asyncio.run(attempts()) == before
    downgrade(database_url, "base", prefix)
    assert columns_of(database_url, "my_requests") == {}


@pytest.mark.parametrize("table", ["requests", "attempts", "rollups", "dirty_hours", "all_attempts"])
@pytest.mark.parametrize("versioned", [False, True])
def test_a_foreign_table_is_never_touched(database_url: str, versioned: bool, table: str) -> None:
    """A table of our name without our version, also beside an empty version table, is an error and stays as it is."""
    run_sql(
        database_url, f"CREATE TABLE {table} (id INTEGER, secret VARCHAR(10))", f"INSERT INTO {table} VALUES (1, 'x')"
    )
    if versioned:
        run_sql(database_url, "CREATE TABLE arbstr_version (version_num VARCHAR(32) NOT NULL)")
    for options in ({}, {"migrate": False}):
        with pytest.raises(LedgerError, match="not the ledger's"):
            opened(database_url, **options)
    with pytest.raises(LedgerError, match="not the ledger's"):
        asyncio.run(migrate(database_url))
    assert run_sql(database_url, f"SELECT * FROM {table}") == [(1, "x")]
    assert list(columns_of(database_url, table)) == ["id", "secret"]
    assert len(opened(database_url, table_prefix="ours_")) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE.*requests",
        "CREATE INDEX.*requests",
        "CREATE TABLE.*attempts",
        "ADD COLUMN.*dearest",
        "CREATE TABLE.*rollups",
        "CREATE TABLE.*dirty_hours",
        "CREATE INDEX.*ix_requests_latency_ms",
        "INSERT INTO.*sealed",
        "ADD COLUMN.*provider_model",
        "CREATE.*VIEW",
    ],
)
def test_a_crash_half_way_is_repaired(database_url: str, statement: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies behind CREATE TABLE or CREATE INDEX leaves a database that the next start finishes."""
    from alembic.ddl.impl import DefaultImpl

    execute = DefaultImpl._exec

    def dying(self: Any, construct: Any, *arguments: Any, **keywords: Any) -> Any:
        result = execute(self, construct, *arguments, **keywords)
        if re.search(statement, str(construct)):
            raise RuntimeError("killed")
        return result

    with monkeypatch.context() as patch:
        patch.setattr(DefaultImpl, "_exec", dying)
        with pytest.raises(LedgerError, match="killed"):
            opened(database_url)
    left = columns_of(database_url)
    assert bool(left) is (dialect_of(database_url) == "mysql")  # the others roll DDL back
    with pytest.raises(LedgerError, match="arbstr migrate"):
        opened(database_url, migrate=False)
    assert len(opened(database_url)) == 1
    assert run_sql(database_url, "SELECT version_num FROM arbstr_version") == [("0004",)]


@contextmanager
def hosts_own_alembic(url: str, folder: Path) -> Iterator[list[tuple[Any, ...]]]:
    """A host with a table and an `alembic_version` of its own; both must be the same afterwards."""
    run_sql(
        url,
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)",
        "INSERT INTO alembic_version VALUES ('h057')",
        "CREATE TABLE users (name VARCHAR(10))",
        "INSERT INTO users VALUES ('ann')",
    )
    yield []
    assert run_sql(url, "SELECT version_num FROM alembic_version") == [("h057",)]
    assert run_sql(url, "SELECT name FROM users") == [("ann",)]
    assert folder.is_dir()


def handed_over(url: str, **options: Any) -> Database:
    """A host's database, in the host's spelling of the URL."""
    sizes = {} if dialect_of(url) == "sqlite" else {"min_size": 1, "max_size": 2}
    return Database(url, **{**sizes, **options})


def test_a_busy_hosts_database_is_shared(database_url: str, tmp_path: Path) -> None:
    """A pool of 2, one always in the host's hands, and an Alembic of its own: all rows stored, nothing disturbed."""

    async def main() -> None:
        database = handed_over(database_url)
        await database.connect()
        stop = asyncio.Event()
        turns = 0

        async def busy() -> None:
            nonlocal turns
            while not stop.is_set():
                async with database.transaction():
                    assert len(await database.fetch_all("SELECT name FROM users")) == 1
                    await asyncio.sleep(0.02)
                turns += 1

        host = asyncio.create_task(busy())
        ledger = Ledger(database=database)
        with pytest.raises(LedgerError, match="arbstr_requests is missing: run `arbstr migrate`"):
            await ledger.open()
        assert await migrate(database) == "nothing -> 0004"
        await ledger.open()
        for number in range(300):
            ledger.record(an_entry(f"call-{number}"))
            await asyncio.sleep(0.001)
        assert await ledger.update_usage("call-299", 1, 2, None) == 1
        assert len(await ledger.rows(limit=1000)) == 300
        await ledger.check()
        stop.set()
        await host
        if dialect_of(database_url) != "sqlite":  # an idle ledger leaves both connections to the host
            both = asyncio.Barrier(2)

            async def greedy() -> None:
                async with database.connection():
                    await both.wait()

            async with asyncio.timeout(5):
                await asyncio.gather(greedy(), greedy())
        await ledger.close()
        assert database.is_connected
        assert turns > 5
        async with asyncio.timeout(5):
            await database.disconnect()

    with hosts_own_alembic(database_url, tmp_path):
        asyncio.run(main())
    if dialect_of(database_url) == "sqlite":
        assert run_sql(database_url, "PRAGMA journal_mode") == [("delete",)]  # the host's file keeps its own


def test_a_host_database_must_be_usable(database_url: str) -> None:
    """Not connected, or a pool of 1 on a server: a LedgerError says so."""
    if dialect_of(database_url) != "sqlite":
        for options in ({"max_size": 1}, {"min_size": 1, "max_size": 1}):

            async def small(options: dict[str, int] = options) -> None:
                async with handed_over(database_url, **options) as database:
                    await Ledger(database=database, migrate=True).open()

            with pytest.raises(LedgerError, match="pool of 1"):
                asyncio.run(small())
    with pytest.raises(LedgerError, match="not connected"):
        asyncio.run(Ledger(database=handed_over(database_url)).open())


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///x?mode=memory"])
def test_a_handed_over_memory_is_refused(url: str) -> None:
    """SQLite in memory is another empty database on every connection: ConfigError."""
    with pytest.raises(ConfigError, match="memory"):
        Ledger(database=Database(url))


def test_both_a_url_and_a_database_are_too_much() -> None:
    """One place, not two."""
    with pytest.raises(ConfigError, match="either"):
        Ledger("sqlite:///x.db", database=Database("sqlite:///y.db"))


def test_a_rolled_back_host_keeps_nothing_of_ours(database_url: str) -> None:
    """In a host's test suite with force_rollback our batches are savepoints: readable now, gone afterwards."""

    async def main() -> None:
        await migrate(database_url, table_prefix="arbstr_")
        database = handed_over(database_url, force_rollback=True)
        await database.connect()
        ledger = Ledger(database=database)
        await ledger.open()
        for number in range(3):
            ledger.record(an_entry(f"call-{number}"))
            await ledger.flush()
        assert len(await ledger.rows()) == 3
        await ledger.close()
        await database.disconnect()

    asyncio.run(main())
    assert run_sql(database_url, "SELECT count(*) FROM arbstr_requests") == [(0,)]


def test_alembic_leaves_the_hosts_logging_alone(tmp_path: Path) -> None:
    """Levels, handlers and disabled flags of all loggers are the same after a migration."""

    def state() -> list[tuple[Any, ...]]:
        loggers = [logging.getLogger(), *(logging.getLogger(name) for name in ("alembic", "host", "uvicorn.error"))]
        return [(logger.level, tuple(logger.handlers), logger.disabled, logger.propagate) for logger in loggers]

    before = state()
    asyncio.run(migrate(f"sqlite:///{tmp_path}/arbstr.db"))
    assert state() == before


def test_alembic_is_imported_only_when_behind(tmp_path: Path) -> None:
    """A start on an up-to-date database, with a spill that was used before, doesn't pay for it."""
    url = f"sqlite:///{tmp_path}/arbstr.db"
    opened(url)
    program = (
        "import asyncio, sys\n"
        "from arbstr_asgi.ledger.ledger import Ledger\n"
        "async def main():\n"
        "    ledger = Ledger(sys.argv[1]); await ledger.open(); await ledger.close()\n"
        "asyncio.run(main())\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'alembic'])\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ended = subprocess.run(
        [sys.executable, "-c", program, url], env=environment, capture_output=True, text=True, timeout=20, check=True
    )
    assert ended.stdout == "[]\n"


def test_two_ledgers_migrate_in_one_loop(tmp_path: Path) -> None:
    """Alembic keeps its context in globals; two opens at the same time don't get into each other's."""

    async def main() -> None:
        ledgers = [Ledger(f"sqlite:///{tmp_path}/{name}.db") for name in "abc"]
        await asyncio.gather(*(ledger.open() for ledger in ledgers))
        await asyncio.gather(*(ledger.close() for ledger in ledgers))

    asyncio.run(main())
    for name in "abc":
        assert run_sql(f"sqlite:///{tmp_path}/{name}.db", "SELECT version_num FROM arbstr_version") == [("0004",)]


def test_urls_under_test_are_ours() -> None:
    """The helpers split a URL as the ledger does."""
    assert dialect_of("sqlite+aiosqlite:///x.db") == "sqlite"
    assert urlsplit("postgresql://u@h/d").path == "/d"
