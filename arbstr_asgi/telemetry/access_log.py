"""One line for each finished call."""

import logging
from collections.abc import Callable
from typing import TypeVar

from arbstr_asgi.database.records import LedgerEntry

logger = logging.getLogger("arbstr_asgi.requests")

MAX_SHOWN = 100  # characters of what a client or a provider has said

_Written = TypeVar("_Written")


def logging_finished(write: Callable[[LedgerEntry], _Written]) -> Callable[[LedgerEntry], _Written]:
    """`write`, and a line at INFO for each finished call; a second one if a call that was committed ends otherwise."""

    def written(entry: LedgerEntry) -> _Written:
        result = write(entry)
        if entry.revision >= 1 and logger.isEnabledFor(logging.INFO):
            _log(entry)
        return result

    return written


def _log(entry: LedgerEntry) -> None:
    """Milliseconds are those to the end of a stream, or to the answer where there was none."""
    status = entry.error_status or ("ok" if entry.success else "-")
    ms = entry.latency_ms if entry.stream_duration_ms is None else entry.stream_duration_ms
    cost = None if entry.cost_sats is None else f"{entry.cost_sats:f}"
    logger.info(
        "%s user=%s model=%s provider=%s status=%s end=%s in=%s out=%s cost_sats=%s ms=%s",
        entry.correlation_id,
        _quoted(entry.end_user),
        _quoted(entry.model),
        _quoted(entry.provider),
        status,
        entry.end_reason,
        entry.input_tokens,
        entry.output_tokens,
        cost,
        ms,
    )


def _quoted(text: str | None) -> str:
    """As Python writes it, so that nobody can begin a line or paint a terminal."""
    return repr(text if text is None else text[:MAX_SHOWN])
