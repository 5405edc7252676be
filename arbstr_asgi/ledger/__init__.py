"""The ledger: one row for each call, written in batches to SQLite, PostgreSQL, MariaDB or MySQL."""

from arbstr_asgi.ledger.ledger import Ledger
from arbstr_asgi.ledger.migrate import migrate, migration_sql
from arbstr_asgi.ledger.snapshot import QueueLimits, Snapshot
from arbstr_asgi.ledger.visit import open_reader

__all__ = ["QueueLimits", "Ledger", "Snapshot", "migrate", "migration_sql", "open_reader"]
