"""Databases for the tests: an SQLite file, and PostgreSQL and MariaDB where a server answers.

A test's database has the ledger's tables and no rows: it is copied from one that was migrated once in this process.
`fresh_database` has no tables either.

Servers: `ARBSTR_TEST_POSTGRES_URL` and `ARBSTR_TEST_MYSQL_URL`, or the usual local address. Without one the test is
skipped and says so; with `CI=true` it fails.
"""

import asyncio
import functools
import os
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import pytest

from arbstr_asgi.database.database import migrate, migration_sql
from arbstr_asgi.database.records import LedgerEntry

DIALECTS = ("sqlite", "postgresql", "mysql")
_SERVERS = {
    "postgresql": ("ARBSTR_TEST_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/postgres"),
    "mysql": ("ARBSTR_TEST_MYSQL_URL", "mysql://root@127.0.0.1:3306/test"),
}


def server(dialect: str) -> SplitResult:
    """Where the server is, whether it answers or not."""
    variable, usual = _SERVERS[dialect]
    return urlsplit(os.environ.get(variable) or usual)


def administer(dialect: str, *statements: str, database: str | None = None) -> list[tuple[Any, ...]]:
    """Run statements on the server; returns the rows of the last one."""
    return administer_at(server(dialect), *statements, database=database)


def administer_at(at: SplitResult, *statements: str, database: str | None = None) -> list[tuple[Any, ...]]:
    """The same on a server of the test's own."""
    return asyncio.run(_administer(at, statements, database))


@functools.cache
def _unreachable(dialect: str) -> str | None:
    try:
        administer(dialect, "SELECT 1")
    except Exception as error:
        return f"no {dialect} at {server(dialect).hostname}: {type(error).__name__}: {error}"
    return None


def reachable(dialect: str) -> bool:
    """Whether there is such a server."""
    return dialect == "sqlite" or _unreachable(dialect) is None


def require(dialect: str) -> None:
    """Skip the test, or fail it in CI, when there is no such server."""
    problem = None if dialect == "sqlite" else _unreachable(dialect)
    if problem and os.environ.get("CI") == "true":
        pytest.fail(problem)
    if problem:
        pytest.skip(problem)


@functools.cache
def _migrated_bytes() -> bytes:
    """An SQLite file with the ledger's tables."""
    connection = sqlite3.connect(":memory:")
    try:
        connection.executescript(migration_sql("sqlite:///x.db"))
        return connection.serialize()
    finally:
        connection.close()


def migrated_file(path: Path) -> str:
    """The path of an SQLite file with the ledger's tables: made now, unless something is there or its folder is not."""
    if path.parent.is_dir() and not path.exists():
        path.write_bytes(_migrated_bytes())
    return str(path)


@contextmanager
def fresh_database(dialect: str, folder: Path, template: str | None = None) -> Iterator[str]:
    """The URL of an empty database, or of a copy of the server's database `template`, that is gone afterwards."""
    require(dialect)
    name = f"arbstr_{uuid.uuid4().hex}"
    if dialect == "sqlite":
        yield f"sqlite+aiosqlite:///{folder / name}.db"
        return
    if dialect == "postgresql":
        copy = f" TEMPLATE {template}" if template else ""
        # No test cuts the server's power: none needs to wait for its disk.
        statements = [f"CREATE DATABASE {name}{copy}", f"ALTER DATABASE {name} SET synchronous_commit = off"]
    else:
        statements = [f"CREATE DATABASE {name}", *(_mysql_copies(template, name) if template else [])]
    administer(dialect, *statements)
    try:
        yield server(dialect)._replace(path=f"/{name}").geturl()
    finally:
        administer(dialect, f"DROP DATABASE {name}" + (" WITH (FORCE)" if dialect == "postgresql" else ""))


def _mysql_copies(template: str, name: str) -> list[str]:
    """The statements that copy all tables with their rows, then the views."""
    kinds = administer("mysql", "SHOW FULL TABLES", database=template)
    statements: list[str] = []
    for table, kind in sorted(kinds, key=lambda found: found[1] == "VIEW"):
        if kind == "VIEW":
            ((_, create, *_),) = administer("mysql", f"SHOW CREATE VIEW {template}.{table}")
            statements.append(create.replace(template, name))
        else:
            statements.append(f"CREATE TABLE {name}.{table} LIKE {template}.{table}")
            statements.append(f"INSERT INTO {name}.{table} SELECT * FROM {template}.{table}")
    return statements


@pytest.fixture(scope="session")
def migrated_templates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """The name of a server's database with the ledger's tables, made where it is first asked for."""
    with ExitStack() as stack:

        @functools.cache
        def template(dialect: str) -> str:
            url = stack.enter_context(fresh_database(dialect, tmp_path_factory.getbasetemp()))
            asyncio.run(migrate(url))
            return urlsplit(url).path[1:]

        yield template


@contextmanager
def migrated_database(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    """The URL of a database without rows, of the dialect that is the parameter of the fixture that requests it."""
    template = None if request.param == "sqlite" else request.getfixturevalue("migrated_templates")(request.param)
    with fresh_database(request.param, folder, template) as url:
        if request.param == "sqlite":
            migrated_file(Path(sqlite_file(url)))
        yield url


@pytest.fixture(params=DIALECTS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without rows on each of the three."""
    with migrated_database(request, tmp_path) as url:
        yield url


@pytest.fixture(params=DIALECTS[1:])
def server_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without rows on each of the two that are servers."""
    with migrated_database(request, tmp_path) as url:
        yield url


def dialect_of(url: str) -> str:
    """`sqlite`, `postgresql` or `mysql`."""
    return urlsplit(url).scheme.partition("+")[0]


def run_sql(url: str, *statements: str) -> list[tuple[Any, ...]]:
    """Run statements in a test's database, past the ledger; returns the rows of the last one."""
    dialect = dialect_of(url)
    if dialect != "sqlite":
        return administer(dialect, *statements, database=urlsplit(url).path[1:])
    connection = sqlite3.connect(sqlite_file(url), isolation_level=None)
    try:
        rows: list[tuple[Any, ...]] = []
        for statement in statements:
            rows = connection.execute(statement).fetchall()
        return rows
    finally:
        connection.close()


def sqlite_file(url: str) -> str:
    """The file of an SQLite URL."""
    return unquote(urlsplit(url).path[1:])


def an_entry(correlation_id: str | None = None, **fields: Any) -> LedgerEntry:
    """A plain entry with a call of its own."""
    fields = {"timestamp": datetime.now(UTC), "model": "gpt-4o", "streaming": True, **fields}
    return LedgerEntry(correlation_id=correlation_id or str(uuid.uuid4()), **fields)


async def _administer(at: SplitResult, statements: tuple[str, ...], database: str | None) -> list[tuple[Any, ...]]:
    user, password = unquote(at.username or ""), unquote(at.password or "")
    rows: list[tuple[Any, ...]] = []
    if dialect_of(at.geturl()) == "postgresql":
        import asyncpg

        name = database or at.path[1:]
        pg = await asyncpg.connect(
            host=at.hostname, port=at.port, user=user or None, password=password or None, database=name, timeout=5
        )
        try:
            for statement in statements:
                rows = [tuple(row) for row in await pg.fetch(statement)]
        finally:
            await pg.close()
        return rows
    import aiomysql

    my = await aiomysql.connect(
        host=at.hostname, port=at.port or 3306, user=user, password=password, db=database, connect_timeout=5
    )
    try:
        async with my.cursor() as cursor:
            for statement in statements:
                await cursor.execute(statement)
                rows = list(await cursor.fetchall())
        await my.commit()
    finally:
        my.close()
    return rows
