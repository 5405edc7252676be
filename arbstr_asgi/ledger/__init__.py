"""The ledger: one row for each call, written in batches to SQLite, PostgreSQL, MariaDB or MySQL."""

from arbstr_asgi.ledger.ledger import Ledger
from arbstr_asgi.ledger.migrate import migrate, migration_sql

__all__ = ["Ledger", "migrate", "migration_sql"]
