"""The ledger as the gateway sees it."""

import logging
from decimal import Decimal
from typing import Any

from databases import Database

from arbstr_asgi.entry import Entry
from arbstr_asgi.errors import ConfigError, LedgerError
from arbstr_asgi.ledger.backlog import Mark, Settle, Update, promise
from arbstr_asgi.ledger.faults import described
from arbstr_asgi.ledger.losses import Losses
from arbstr_asgi.ledger.reader import Reader
from arbstr_asgi.ledger.statements import statements
from arbstr_asgi.ledger.target import Target
from arbstr_asgi.ledger.writer import MAX_QUEUED, Writer

logger = logging.getLogger("arbstr_asgi.ledger")

_CLOSED = "the ledger is not open"


class Ledger:
    """Records one row for each call; give it a `url`, or a connected `database` of the host's.

    The table prefix is "" on a database of our own and "arbstr_" on the host's; `migrate` (at start) is on for our own
    and off for the host's. Raises ConfigError for what can't work; nothing is read or opened before `open()`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        database: Database | None = None,
        table_prefix: str | None = None,
        migrate: bool | None = None,
    ) -> None:
        place = url if database is None else database
        if place is None or (url is not None and database is not None):
            raise ConfigError("database: give either a url or a connected database")
        self._target = Target.of(place, table_prefix)
        self._migrate = self._target.own if migrate is None else migrate
        self._statements = statements(self._target.dialect, self._target.prefix)
        self._losses = Losses()
        self._reader: Reader | None = None
        self._writer: Writer | None = None
        self._opening = False

    def __repr__(self) -> str:
        return f"<Ledger {self._target} {'open' if self.is_open else 'closed'}>"

    @property
    def is_open(self) -> bool:
        """Whether `record` keeps what it is given."""
        return self._writer is not None and self._writer.accepting

    @property
    def queued(self) -> int:
        """Entries that are recorded and not committed yet."""
        return 0 if self._writer is None else self._writer.queued

    @property
    def lost(self) -> int:
        """Entries that could not be kept, since this object was made."""
        return self._losses.count

    async def open(self) -> None:
        """Connect, migrate or check the schema, start writing. Raises LedgerError, and leaves nothing open then."""
        if self.is_open or self._opening:
            raise LedgerError("the ledger is open already")
        self._opening = True
        try:
            sessions = await self._target.open(migrate=self._migrate)
            self._reader = Reader(sessions, self._statements)
            self._writer = Writer(sessions, self._statements, self._losses, self._target.close)
        finally:
            self._opening = False

    async def close(self, timeout: float = 10.0) -> None:
        """Write everything recorded and every spawned update, for at most `timeout` seconds, then disconnect ours.

        What could not be written is counted in `lost` and logged as CRITICAL. A second call does nothing.
        """
        if self._writer is not None:
            await self._writer.stop(timeout)

    def record(self, entry: Entry) -> None:
        """Queue one state of a call; the highest revision stays. Never raises, never waits, from any thread."""
        try:
            writer = self._writer
            if writer is None or not writer.accepting:
                self._losses.add(1, "the ledger is not open")
            elif writer.queued >= MAX_QUEUED:
                self._losses.add(1, f"{MAX_QUEUED} wait already")
            else:
                writer.add(entry)
        except Exception as error:  # noqa: BLE001 - accounting must never break the call that it accounts for
            self._losses.add(1, type(error).__name__)

    async def flush(self) -> None:
        """Return when everything recorded so far is committed. Raises LedgerError if it is closed before."""
        if self._writer is not None and self._writer.accepting:
            settle, future = promise()
            self._writer.add(Mark(settle), urgent=True)
            await future

    async def update_usage(
        self, correlation_id: str, input_tokens: int | None, output_tokens: int | None, cost_sats: Decimal | None
    ) -> int:
        """Write exactly these three columns of one row; None writes NULL.

        Returns the number of rows matched, after the commit: 1, or 0 for an unknown id. Stays behind what was recorded
        before. Raises LedgerError when the ledger is not open, or is closed before the commit.
        """
        settle, future = promise()
        self._update(Update.of(correlation_id, input_tokens, output_tokens, cost_sats, settle), urgent=True)
        return await future

    def spawn_usage_update(
        self, correlation_id: str, input_tokens: int | None, output_tokens: int | None, cost_sats: Decimal | None
    ) -> None:
        """The same without waiting; never raises. Logs WARNING on zero rows and on failure, DEBUG on success.

        Finished before `close()` is.
        """
        try:
            self._update(
                Update.of(correlation_id, input_tokens, output_tokens, cost_sats, _report(correlation_id)), urgent=False
            )
        except Exception as error:  # noqa: BLE001 - fire and forget
            logger.warning("ledger: usage of %s not updated: %s", correlation_id, described(error))

    async def rows(self, *, limit: int = 100, correlation_id: str | None = None) -> list[dict[str, Any]]:
        """The newest committed rows first, or those of one call; the values are equal on every database.

        `timestamp` is aware UTC, money Decimal with nine decimals. Raises LedgerError.
        """
        return await self._open_reader().rows(limit, correlation_id)

    async def check(self) -> None:
        """Raise LedgerError unless the database answers a cheap query in two seconds."""
        await self._open_reader().check()

    def _open_reader(self) -> Reader:
        if self._reader is None or not self.is_open:
            raise LedgerError(_CLOSED)
        return self._reader

    def _update(self, update: Update, *, urgent: bool) -> None:
        if self._writer is None or not self._writer.accepting:
            raise LedgerError(_CLOSED)
        self._writer.add(update, urgent=urgent)


def _report(correlation_id: str) -> Settle:
    def settle(outcome: int | LedgerError) -> None:
        if isinstance(outcome, LedgerError):
            logger.warning("ledger: usage of %s not updated: %s", correlation_id, outcome)
        elif outcome == 0:
            logger.warning("ledger: usage of %s not updated: no such row", correlation_id)
        else:
            logger.debug("ledger: usage of %s updated", correlation_id)

    return settle
