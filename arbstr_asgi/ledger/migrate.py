"""`arbstr migrate`: make or upgrade the tables now, or print the SQL that would."""

from databases import Database

from arbstr_asgi.ledger.location import DatabaseUrl, check_prefix
from arbstr_asgi.ledger.target import LedgerDatabase


async def migrate(url_or_database: str | Database, *, table_prefix: str | None = None) -> str:
    """Upgrade the tables and return what was done: `0003 (up to date)` or `nothing -> 0003`.

    The prefix is "" for a URL and "arbstr_" for a connected database, unless given. Raises ConfigError, LedgerError.
    """
    target = LedgerDatabase.create(url_or_database, table_prefix)
    await target.open(migrate=True)
    await target.close()
    return target.schema


def migration_sql(url: str, *, table_prefix: str | None = None) -> str:
    """The SQL script that makes the tables in an empty database; nothing is opened. Raises ConfigError."""
    from arbstr_asgi.ledger import migrations  # noqa: PLC0415 - Alembic takes 0.2 s

    return migrations.script(DatabaseUrl.parse(url).dialect, check_prefix(table_prefix or ""))
