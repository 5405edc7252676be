"""The interface of meters, which read usage from a response while its bytes pass."""

import logging
from collections.abc import Callable
from typing import Protocol

from arbstr_asgi.protocols.reply import ReplySummary

logger = logging.getLogger("arbstr_asgi")

BeforeDone = Callable[[ReplySummary], bytes]


class Meter(Protocol):
    """Receives the bytes of a response, returns those for the client, and fills in `summary`.

    The time of each call is bounded, so that a large chunk does not block the event loop.
    """

    summary: ReplySummary
    edits: bool
    """Whether the client's bytes may differ from the provider's."""

    @property
    def pending(self) -> bool:
        """Whether received bytes are not parsed yet: call `resume` until False, and yield to the event loop between."""
        ...

    def feed(self, chunk: bytes) -> bytes:
        """The bytes for the client after this chunk from the provider."""
        ...

    def resume(self) -> bytes:
        """Parse the next slice of the pending bytes; returns the further bytes for the client."""
        ...

    def finish(self) -> bytes:
        """The body is complete: the remaining bytes for the client."""
        ...

    def abandon(self) -> bool:
        """The body broke off: parse the last event if only its blank line is missing, and drop buffered bytes.

        True if the client is between two events.
        """
        ...


def report_failure(error: Exception) -> None:
    """Log that metering a response has failed, without the error's message, which may quote the response."""
    logger.error("metering failed with %s; the reply passes unmetered", type(error).__name__)
