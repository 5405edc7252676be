"""The ledger's database: connected by URL, or handed over by the host; checks and migrates its schema."""

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
    """Connects, checks the schema and disconnects; dialect and prefix are known before anything is open."""

    def __init__(self, source: DatabaseUrl | Database, dialect: str, prefix: str, *, durable: bool) -> None:
        self.dialect = dialect
        self.prefix = prefix
        self.schema = ""  # what `open` found or did: `0004 (up to date)`, `nothing -> 0004`
        self._source = source
        self._durable = durable
        self.driver: Driver = load(dialect)
        self._database: Database | None = None

    @classmethod
    def create(cls, source: str | Database, prefix: str | None, *, durable: bool = False) -> "LedgerDatabase":
        """From a URL or a database of the host; `durable` commits survive a power cut. Raises ConfigError."""
        if isinstance(source, Database):
            prefix = check_prefix("arbstr_" if prefix is None else prefix)
            return cls(source, dialect_of(source), prefix, durable=durable)
        url = DatabaseUrl.parse(source)
        return cls(url, url.dialect, check_prefix(prefix or ""), durable=durable)

    def __str__(self) -> str:
        return str(self._source) if isinstance(self._source, DatabaseUrl) else str(self._source.url.obscure_password)

    def spill_folder(self, base: str | None) -> Path:
        """The folder for rows that this database did not accept; `base` is `database.spill` of the config."""
        url = DatabaseURL(self._source.url) if isinstance(self._source, DatabaseUrl) else self._source.url
        hosts = self._source.hosts if isinstance(self._source, DatabaseUrl) else None
        return spill_folder(url, self.dialect, self.prefix, base, hosts)

    @property
    def database(self) -> Database | None:
        """The `databases.Database` of the last `open`."""
        return self._database

    @property
    def own(self) -> bool:
        """Whether we connect and disconnect the database, rather than the host."""
        return isinstance(self._source, DatabaseUrl)

    def check(self, *, must_exist: bool = False) -> None:
        """Raises LedgerError for a missing folder, a host's database that is not connected, or a pool of one.

        With `must_exist` also for an SQLite file that does not exist yet.
        """
        if isinstance(self._source, Database):
            _check_host_database(self._source, self.dialect)
            return
        problem = (
            self._source.check_options()
            or self._source.check_folder()
            or (self._source.check_file() if must_exist else None)
        )
        if problem is not None:
            raise LedgerError(f"can't open the ledger at {self}: {problem}")

    async def open(self, *, migrate: bool, read_only: bool = False) -> ConnectionTasks:
        """Connect our database or check that of the host, then check or migrate the schema. Closes it again on failure.

        With `read_only` no lasting setting of the database is changed, as on one of the host. Raises LedgerUnavailable
        where a retry may succeed, another LedgerError where an operator has to act.
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
        """Disconnect our database, for two seconds at most. Never raises."""
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
            self._source.create_file()
            self._database = self._source.connectable(self.driver.options)
            await self._database.connect()
        return self._database


def _cause(error: Exception) -> BaseException:
    """The exception of the driver, below the one that SQLAlchemy wraps it in during a migration."""
    original: BaseException | None = getattr(error, "orig", None)
    return error if original is None else original.__cause__ or original


def _check_host_database(database: Database, dialect: str) -> None:
    if not database.is_connected:
        raise LedgerError("the database that was handed over is not connected: connect it before the ledger opens")
    options = {**database.url.options, **database.options}
    size = options.get("max_size", options.get("maxsize", 10))
    if dialect != "sqlite" and int(size) == 1:
        raise LedgerError("the database that was handed over has a pool of 1 (max_size): the ledger needs one of 2")


async def migrate(url_or_database: str | Database, *, table_prefix: str | None = None) -> str:
    """Upgrade the tables and return what was done: `0004 (up to date)` or `nothing -> 0004`.

    The prefix is "" for a URL and "arbstr_" for a connected database, unless given. Raises ConfigError, LedgerError.
    """
    target = LedgerDatabase.create(url_or_database, table_prefix)
    await target.open(migrate=True)
    await target.close()
    return target.schema


def migration_sql(url: str, *, table_prefix: str | None = None) -> str:
    """The SQL script that creates the tables in an empty database; opens nothing. Raises ConfigError."""
    from arbstr_asgi.database import migrations

    return migrations.script(DatabaseUrl.parse(url).dialect, check_prefix(table_prefix or ""))
