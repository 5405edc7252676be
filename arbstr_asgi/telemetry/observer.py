"""What is told of the calls of a gateway."""

from typing import Protocol

from arbstr_asgi.database.records import LedgerEntry


class CallObserver(Protocol):
    """Is told of calls when they end, on the event loop. It must neither raise nor wait."""

    def on_finish(self, entry: LedgerEntry, seconds: float) -> None:
        """A call has ended with this row, after so many seconds."""
        ...

    def on_refused(self, status: int) -> None:
        """A request was refused with `status` before it was a call; it has no row."""
        ...
