"""The database of one line of the matrix: its URL for the server, its rows for us, and what can be done to it."""

import sqlite3
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.faults.instances import Instance

USER, PASSWORD = "meter", "first"
COLUMNS = ("correlation_id", "end_reason", "input_tokens", "output_tokens", "worker_id")
_SELECT = f"SELECT {', '.join(COLUMNS)} FROM requests"

Rows = dict[str, Mapping[str, Any]]


class File:
    """An SQLite file; `down` locks it."""

    dialect = "sqlite"

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ledger.db"
        self.url = f"sqlite+aiosqlite:///{self.path}"
        self._holder: sqlite3.Connection | None = None

    def rows(self) -> Rows:
        """All rows by the ids of their calls; none where there is no table yet."""
        with closing(sqlite3.connect(self.path, timeout=20)) as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'requests'").fetchall():
                return {}
            return _by_call(connection.execute(_SELECT).fetchall())

    def down(self) -> None:
        """Lock the file for everybody else; wait for it until then."""
        self._holder = sqlite3.connect(self.path, isolation_level=None, timeout=20, check_same_thread=False)
        self._holder.execute("PRAGMA journal_mode = WAL")
        self._holder.execute("BEGIN EXCLUSIVE")

    def up(self) -> None:
        """Let go of it."""
        if self._holder is not None:
            self._holder.close()
            self._holder = None


class Base:
    """A database on a server of our own, with a user of its own."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.dialect = instance.dialect
        self.name = f"arbstr_{uuid4().hex[:12]}"
        self.user = f"{USER}_{uuid4().hex[:8]}"
        instance.start()
        if self.dialect == "postgresql":
            instance.sql(
                f"CREATE ROLE {self.user} LOGIN PASSWORD '{PASSWORD}'", f"CREATE DATABASE {self.name} OWNER {self.user}"
            )
        else:
            instance.sql(
                f"CREATE DATABASE {self.name}",
                f"CREATE USER {self.user}@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'",
                f"GRANT ALL ON {self.name}.* TO {self.user}@'127.0.0.1'",
            )
        self._ours = (
            "table_catalog = current_database()" if self.dialect == "postgresql" else "table_schema = DATABASE()"
        )
        place = instance.at.partition("@")[2].partition("/")[0]
        self.url = f"{self.dialect}://{self.user}:{PASSWORD}@{place}/{self.name}"

    def rows(self) -> Rows:
        """All rows by the ids of their calls; none where there is no table yet."""
        ours = "table_catalog = current_database()" if self.dialect == "postgresql" else "table_schema = DATABASE()"
        named = f"SELECT count(*) FROM information_schema.tables WHERE table_name = 'requests' AND {ours}"
        if not self.instance.sql(named, database=self.name)[0][0]:
            return {}
        return _by_call(self.instance.sql(_SELECT, database=self.name))

    def down(self) -> None:
        """Stop the server."""
        self.instance.stop()

    def up(self) -> None:
        """Have the server run."""
        self.instance.thaw()
        self.instance.start()

    def kill_connections(self) -> int:
        """Have the server end the connections to this database; returns how many."""
        if self.dialect == "postgresql":
            sql = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{self.user}'"
            return len(self.instance.sql(sql))
        sql = f"SELECT id FROM information_schema.processlist WHERE user = '{self.user}'"
        ids = self.instance.sql(sql)
        for (thread,) in ids:
            with suppress(Exception):  # it may have gone by itself
                self.instance.sql(f"KILL {thread}")
        return len(ids)

    def allow_writing(self, allowed: bool) -> None:
        """Take the right to write away, or give it back."""
        if self.dialect == "postgresql":
            verb, to = ("GRANT", "TO") if allowed else ("REVOKE", "FROM")
            self.instance.sql(f"{verb} INSERT, UPDATE ON requests {to} {self.user}", database=self.name)
        else:
            verb, to = ("GRANT", "TO") if allowed else ("REVOKE", "FROM")
            self.instance.sql(f"{verb} INSERT, UPDATE ON {self.name}.* {to} {self.user}@'127.0.0.1'")
            self.kill_connections()  # they remember what was allowed

    def change_password(self, password: str) -> None:
        """Let the user's next connection need this password, and let there be no other."""
        if self.dialect == "postgresql":
            self.instance.sql(f"ALTER ROLE {self.user} PASSWORD '{password}'")
        else:
            self.instance.sql(f"ALTER USER {self.user}@'127.0.0.1' IDENTIFIED BY '{password}'")
        self.kill_connections()


def _by_call(found: list[tuple[Any, ...]]) -> Rows:
    rows = {str(row[0]): dict(zip(COLUMNS, row, strict=True)) for row in found}
    assert len(rows) == len(found)
    return rows
