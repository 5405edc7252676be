"""The interface of observers of calls: metrics, access log."""

from typing import Protocol

from arbstr_asgi.database.records import LedgerEntry


class CallObserver(Protocol):
    """Notified on the event loop when a call ends. Must neither raise nor block."""

    def on_finish(self, entry: LedgerEntry, seconds: float) -> None:
        """A call has ended with this row, after `seconds`."""
        ...

    def on_refused(self, status: int) -> None:
        """A request was refused with `status`, without a row."""
        ...
