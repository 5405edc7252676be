"""What every meter is."""

import logging
from collections.abc import Callable
from typing import Protocol

from arbstr_asgi.protocols.reply import ReplySummary

logger = logging.getLogger("arbstr_asgi")

BeforeDone = Callable[[ReplySummary], bytes]


class Meter(Protocol):
    """What a reply's bytes go through, so much at a time that nobody else has to wait for long."""

    summary: ReplySummary
    edits: bool
    """Whether the client's bytes may differ from the provider's."""

    @property
    def pending(self) -> bool:
        """Whether part of what came is still to be read: call `resume` until it is not, and let others run between."""
        ...

    def feed(self, chunk: bytes) -> bytes:
        """What the client gets for `chunk`, as it comes from the provider."""
        ...

    def resume(self) -> bytes:
        """Read on where something is pending: what more the client gets."""
        ...

    def finish(self) -> bytes:
        """The body has ended by itself: the rest of what the client gets."""
        ...

    def abandon(self) -> bool:
        """The body broke off: learn what is whole of what is held, and drop it. True if the client stands between
        events."""
        ...


def report_failure(error: Exception) -> None:
    """Say that the metering of a reply has failed, without the error's message, which may quote the reply."""
    logger.error("metering failed with %s; the reply passes unmetered", type(error).__name__)
