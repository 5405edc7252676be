"""Retry policy by HTTP status: whether to fail over, to retry, and to count a failure against the provider."""

from datetime import datetime
from email.utils import parsedate_to_datetime
from math import isnan

from arbstr_asgi.providers.headers import Headers

BUSY = (408, 429)  # no sign of a fault
ACCOUNT = (401, 402, 403)  # about who asks: its key, its balance, its rights
_MAX_RETRY_AFTER = 24 * 3600.0


def should_failover(status: int, *, ours: bool) -> bool:
    """Whether to try another provider. `ours`: the credentials sent were those of the server, not the client."""
    return status in BUSY or _is_unusable(status) or (ours and status in ACCOUNT)


def is_provider_fault(status: int, *, ours: bool) -> bool:
    """Whether the status counts against the provider; a client's own 4xx does not."""
    return should_failover(status, ours=ours) and status not in BUSY


def is_retryable(status: int) -> bool:
    """Whether the same provider may succeed later."""
    return status in BUSY or 500 <= status < 600


def is_client_fault(words: str) -> bool:
    """Whether an error inside a response (type and code, see `error_words`) blames the request."""
    code = _code(words)
    if code is None:
        return words.startswith("invalid_request_error")
    return 400 <= code < 500 and code not in (*BUSY, *ACCOUNT)


def is_error_fault(words: str) -> bool:
    """Whether an error inside a response counts against the provider."""
    return not is_client_fault(words) and _code(words) not in BUSY


def _code(words: str) -> int | None:
    last = words.rpartition(": ")[2]
    return int(last) if last.isdecimal() else None


def retry_after(headers: Headers, now: datetime) -> float | None:
    """The pause in seconds that a response asks for; None where it does not.

    By `retry-after-ms` (OpenAI) or `retry-after` (RFC 9110), at most a day.
    """
    for name, unit in ((b"retry-after-ms", 1000), (b"retry-after", 1)):
        value = (headers.get(name) or "").strip()
        try:
            seconds = float(value) / unit
        except ValueError:
            continue
        return None if isnan(seconds) else min(max(seconds, 0.0), _MAX_RETRY_AFTER)
    return _seconds_until(headers.get(b"retry-after"), now)


def _seconds_until(value: str | None, now: datetime) -> float | None:
    try:
        at = parsedate_to_datetime(value or "")
        return min(max((at - now).total_seconds(), 0.0), _MAX_RETRY_AFTER)
    except (ValueError, TypeError, OverflowError):  # TypeError: a date without a zone
        return None


def _is_unusable(status: int) -> bool:
    return status >= 500 or status < 200 or 300 <= status < 400
