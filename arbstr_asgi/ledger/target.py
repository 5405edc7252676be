"""The database that the rows go to: ours, by its URL, or one that the host has connected."""

import asyncio
import logging

from databases import Database

from arbstr_asgi.errors import LedgerError
from arbstr_asgi.ledger import schema
from arbstr_asgi.ledger.driver import Driver, load
from arbstr_asgi.ledger.faults import described
from arbstr_asgi.ledger.location import Location, check_prefix, dialect_of
from arbstr_asgi.ledger.sessions import Sessions

logger = logging.getLogger("arbstr_asgi.ledger")

_DISCONNECT_TIMEOUT = 2.0  # seconds


class Target:
    """Opens and closes; knows the dialect and the prefix before anything is open."""

    def __init__(self, place: Location | Database, dialect: str, prefix: str) -> None:
        self.dialect = dialect
        self.prefix = prefix
        self.schema = ""  # what `open` found or did: `0001 (up to date)`, `nothing -> 0001`
        self._place = place
        self._driver: Driver = load(dialect)
        self._database: Database | None = None

    @classmethod
    def of(cls, place: str | Database, prefix: str | None) -> "Target":
        """Check a URL, or a database of the host's. Raises ConfigError."""
        if isinstance(place, Database):
            return cls(place, dialect_of(place), check_prefix("arbstr_" if prefix is None else prefix))
        location = Location.parse(place)
        return cls(location, location.dialect, check_prefix(prefix or ""))

    def __str__(self) -> str:
        return str(self._place) if isinstance(self._place, Location) else str(self._place.url.obscure_password)

    @property
    def own(self) -> bool:
        """Whether it is ours to connect, to set up and to disconnect."""
        return isinstance(self._place, Location)

    async def open(self, *, migrate: bool) -> Sessions:
        """Connect ours or check the host's, then see to the schema. Raises LedgerError and leaves nothing open."""
        try:
            sessions = Sessions(await self._connect(), self._driver, own=self.own)
            self.schema = await schema.ensure(sessions, self.prefix, migrate=migrate)
        except LedgerError:
            await self.close()
            raise
        except Exception as error:
            await self.close()
            raise LedgerError(f"can't open the ledger at {self}: {described(error, self._database)}") from error
        except asyncio.CancelledError:
            await self.close()
            raise
        return sessions

    async def close(self) -> None:
        """Disconnect ours; a server that doesn't answer is left behind. Never raises."""
        if not self.own or self._database is None:
            return
        try:
            async with asyncio.timeout(_DISCONNECT_TIMEOUT):
                await self._database.disconnect()
        except Exception as error:  # noqa: BLE001 - there is nothing more to be done about it
            logger.warning("ledger: disconnecting failed: %s", described(error, self._database))

    async def _connect(self) -> Database:
        if isinstance(self._place, Database):
            self._database = self._place
            _check_handed_over(self._place, self.dialect)
            return self._place
        problem = self._place.check_folder()
        if problem is not None:
            raise LedgerError(f"can't open the ledger at {self}: {problem}")
        self._database = self._place.connectable()
        await self._database.connect()
        return self._database


def _check_handed_over(database: Database, dialect: str) -> None:
    if not database.is_connected:
        raise LedgerError("the database that was handed over is not connected: connect it before the ledger opens")
    options = {**database.url.options, **database.options}
    size = options.get("max_size", options.get("maxsize", 10))
    if dialect != "sqlite" and int(size) == 1:
        raise LedgerError("the database that was handed over has a pool of 1 (max_size): the ledger needs one of 2")
