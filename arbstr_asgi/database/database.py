"""The database that the rows go to: ours, by its URL, or one that the host has connected; and its migration."""

import asyncio
import logging
from pathlib import Path

from databases import Database, DatabaseURL

from arbstr_asgi.database import schema
from arbstr_asgi.database.connections import ConnectionTasks
from arbstr_asgi.database.drivers.base import Driver, describe_error, load
from arbstr_asgi.database.url import DatabaseUrl, check_prefix, dialect_of, spill_folder
from arbstr_asgi.errors import LedgerError, LedgerUnavailable

logger = logging.getLogger("arbstr_asgi.ledger")
_DISCONNECT_TIMEOUT = 2.0  # seconds


class LedgerDatabase:
    """Opens and closes; knows the dialect and the prefix before anything is open."""

    def __init__(self, source: DatabaseUrl | Database, dialect: str, prefix: str, *, durable: bool) -> None:
        self.dialect = dialect
        self.prefix = prefix
        self.schema = ""  # what `open` found or did: `0003 (up to date)`, `nothing -> 0003`
        self._source = source
        self._durable = durable
        self.driver: Driver = load(dialect)
        self._database: Database | None = None

    @classmethod
    def create(cls, source: str | Database, prefix: str | None, *, durable: bool = False) -> "LedgerDatabase":
        """Check a URL, or a database of the host's; `durable` commits survive a power cut. Raises ConfigError."""
        if isinstance(source, Database):
            prefix = check_prefix("arbstr_" if prefix is None else prefix)
            return cls(source, dialect_of(source), prefix, durable=durable)
        url = DatabaseUrl.parse(source)
        return cls(url, url.dialect, check_prefix(prefix or ""), durable=durable)

    def __str__(self) -> str:
        return str(self._source) if isinstance(self._source, DatabaseUrl) else str(self._source.url.obscure_password)

    def spill_folder(self, base: str | None) -> Path:
        """Where rows wait on disk while this database can't take them."""
        url = DatabaseURL(self._source.url) if isinstance(self._source, DatabaseUrl) else self._source.url
        return spill_folder(url, self.dialect, self.prefix, base)

    @property
    def database(self) -> Database | None:
        """The database as it was last connected."""
        return self._database

    @property
    def own(self) -> bool:
        """Whether it is ours to connect, to set up and to disconnect."""
        return isinstance(self._source, DatabaseUrl)

    def check(self, *, must_exist: bool = False) -> None:
        """Raises LedgerError for a place that can't be one: a missing folder, an unconnected or too small database.

        With `there` also for an SQLite file that would have to be made.
        """
        if isinstance(self._source, Database):
            _check_host_database(self._source, self.dialect)
            return
        problem = self._source.check_folder() or (self._source.check_file() if must_exist else None)
        if problem is not None:
            raise LedgerError(f"can't open the ledger at {self}: {problem}")

    async def open(self, *, migrate: bool, read_only: bool = False) -> ConnectionTasks:
        """Connect ours or check the host's, then see to the schema. Leaves nothing open when it fails.

        On a `visit` nothing lasting is set on a database, as if it were the host's.
        Raises LedgerUnavailable where trying again may help, another LedgerError where somebody must do something.
        """
        try:
            connections = ConnectionTasks(
                await self._connect(), self.driver, own=self.own and not read_only, durable=self._durable
            )
            self.schema = await schema.ensure(connections, self.prefix, migrate=migrate)
        except LedgerError:
            await self.close()
            raise
        except Exception as error:
            await self.close()
            kind = LedgerUnavailable if self.driver.is_transient(_cause(error)) else LedgerError
            raise kind(f"can't open the ledger at {self}: {describe_error(error, self._database)}") from error
        except asyncio.CancelledError:
            await self.close()
            raise
        return connections

    async def close(self) -> None:
        """Disconnect ours; a server that doesn't answer is left behind. Never raises."""
        if not self.own or self._database is None:
            return
        try:
            async with asyncio.timeout(_DISCONNECT_TIMEOUT):
                await self._database.disconnect()
        except Exception as error:  # noqa: BLE001 - there is nothing more to be done about it
            logger.warning("ledger: disconnecting failed: %s", describe_error(error, self._database))

    async def _connect(self) -> Database:
        self.check()
        if isinstance(self._source, Database):
            self._database = self._source
        else:
            self._database = self._source.connectable(self.driver.options)
            await self._database.connect()
        return self._database


def _cause(error: Exception) -> BaseException:
    """What the driver raised, below what SQLAlchemy makes of it during a migration."""
    original = getattr(error, "orig", None) or error
    return original.__cause__ or original


def _check_host_database(database: Database, dialect: str) -> None:
    if not database.is_connected:
        raise LedgerError("the database that was handed over is not connected: connect it before the ledger opens")
    options = {**database.url.options, **database.options}
    size = options.get("max_size", options.get("maxsize", 10))
    if dialect != "sqlite" and int(size) == 1:
        raise LedgerError("the database that was handed over has a pool of 1 (max_size): the ledger needs one of 2")


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
    from arbstr_asgi.database import migrations

    return migrations.script(DatabaseUrl.parse(url).dialect, check_prefix(table_prefix or ""))
