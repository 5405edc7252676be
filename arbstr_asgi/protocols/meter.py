"""What every meter is."""

import logging
from collections.abc import Callable
from typing import Protocol

from arbstr_asgi.protocols.reply import ReplySummary

logger = logging.getLogger("arbstr_asgi")

BeforeDone = Callable[[ReplySummary], bytes]


class Meter(Protocol):
    """What a reply's bytes go through."""

    summary: ReplySummary
    edits: bool
    """Whether the client's bytes may differ from the provider's."""

    def feed(self, chunk: bytes) -> bytes:
        """What the client gets for `chunk`, as it comes from the provider."""
        ...

    def finish(self) -> bytes:
        """The body has ended by itself: the rest of what the client gets."""
        ...

    def abandon(self) -> bool:
        """The body broke off: drop what is held. True if the client stands between events."""
        ...


def report_failure(error: Exception) -> None:
    """Say that the metering of a reply has failed, without the error's message, which may quote the reply."""
    logger.error("metering failed with %s; the reply passes unmetered", type(error).__name__)
