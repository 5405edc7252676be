"""The access log: one line for each finished call."""

import logging

from arbstr_asgi.database.records import LedgerEntry

logger = logging.getLogger("arbstr_asgi.requests")

MAX_SHOWN = 100  # characters of a value from a client or a provider


class AccessLog:
    """Logs a line at INFO for each finished call."""

    def on_finish(self, entry: LedgerEntry, seconds: float) -> None:
        """Log the line."""
        if logger.isEnabledFor(logging.INFO):
            _log(entry)

    def on_refused(self, status: int) -> None:
        """Does nothing: servers log refused requests."""


def _log(entry: LedgerEntry) -> None:
    """Milliseconds are the duration of a stream, or the latency of a response that is none."""
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
    """As a Python literal, so that no value can start a new line or send escape sequences."""
    return repr(text if text is None else text[:MAX_SHOWN])
