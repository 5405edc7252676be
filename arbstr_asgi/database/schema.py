"""Checks the revision of the tables, and migrates them."""

from typing import Any

from arbstr_asgi.database.columns import ATTEMPT_COLUMNS, FIRST_COLUMNS, ROLLUP_COLUMNS
from arbstr_asgi.database.connections import ConnectionTasks
from arbstr_asgi.database.drivers.base import Driver
from arbstr_asgi.database.statements import Statements, statements
from arbstr_asgi.errors import LedgerError

HEAD = "0004"  # the newest revision in migrations/versions, known without importing Alembic

_MIGRATION_TIMEOUT = 120.0  # seconds


async def ensure(connections: ConnectionTasks, prefix: str, *, migrate: bool) -> str:
    """Bring the tables up to date. Raises LedgerError where they are not and `migrate` is off.

    Returns what was done: `0004 (up to date)` or `nothing -> 0004`. A newer schema is accepted: within a major version
    it only has more columns.
    """
    sql = statements(connections.driver.dialect, prefix)
    revision = await connections.run(lambda raw: current_revision(connections.driver, raw, sql))
    if revision is not None and revision >= HEAD:
        return f"{revision} (up to date)"
    if not migrate:
        what = "is missing" if revision is None else f"is at revision {revision}, {HEAD} is needed"
        raise LedgerError(f"the ledger's table {sql.names.requests} {what}: run `arbstr migrate`, or set migrate=True")

    async def upgrade(raw: Any) -> str | None:
        async def outdated() -> str | None:  # under the lock: another process may have migrated
            revision = await current_revision(connections.driver, raw, sql)
            return revision or "nothing" if revision is None or revision < HEAD else None

        from arbstr_asgi.database import migrations

        return await migrations.upgrade(connections.driver, raw, prefix, outdated)

    before = await connections.run(upgrade, timeout=_MIGRATION_TIMEOUT)
    return f"{HEAD} (up to date)" if before is None else f"{before} -> {HEAD}"


async def current_revision(driver: Driver, raw: Any, sql: Statements) -> str | None:
    """None: not migrated. Raises LedgerError for a foreign table with one of our names, or a missing table."""
    # Tables first, then the version: another process may be migrating, and the version never appears later.
    present = [await driver.has_table(raw, name) for name, _, _ in _tables(sql)]
    versioned = await driver.has_table(raw, sql.names.version)
    versions = await driver.fetch(raw, sql.version) if versioned else []
    version = str(versions[0][0]) if versions else None
    for (name, since, columns), result in zip(_tables(sql), present, strict=True):
        expected = version is not None and version >= since
        if result and not expected and not (versioned and await _is_unfinished_migration(driver, raw, name, columns)):
            raise LedgerError(
                f"there is a table {name} that is not the ledger's (no version in {sql.names.version} that has it); "
                "it was not touched. Set table_prefix, or rename it"
            )
        if expected and not result and not await driver.has_table(raw, name):
            raise LedgerError(f"{sql.names.version} says {version}, but the table {name} is missing")
    return version


def _tables(sql: Statements) -> list[tuple[str, str, set[str]]]:
    """Our tables and the view: name, the revision that created it, and its columns in that revision."""
    return [
        (sql.names.requests, "0001", {"id", *(column.name for column in FIRST_COLUMNS)}),
        (sql.names.attempts, "0002", {"id", *(column.name for column in ATTEMPT_COLUMNS)}),
        (sql.names.rollups, "0003", {*ROLLUP_COLUMNS}),
        (sql.names.dirty_hours, "0003", {"hour", "writer", "mark"}),
        (sql.names.all_attempts, "0004", {column.name for column in ATTEMPT_COLUMNS}),
    ]


async def _is_unfinished_migration(driver: Driver, raw: Any, table: str, columns: set[str]) -> bool:
    """Whether a migration was killed between CREATE TABLE and the INSERT of its version; it can then be resumed.

    Only on MySQL, where DDL commits implicitly. The table is ours if the version table exists without this revision,
    and the columns are exactly those of the revision.
    """
    if driver.dialect != "mysql":
        return False
    sql = "SELECT column_name FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = %s"
    result = {str(row[0]) for row in await driver.fetch(raw, sql, (table,))}
    return result == columns
