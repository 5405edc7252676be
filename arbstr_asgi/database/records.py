"""The rows of the ledger as Python values: one LedgerEntry per call, one AttemptEntry per request to a provider."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Literal, Protocol

import msgspec

EndReason = Literal[
    "in_flight",
    "completed",
    "client_disconnected",
    "upstream_error",
    "timeout",
    "incomplete",
    "shutdown",
    "abandoned",
]
IN_FLIGHT = ("in_flight", "abandoned")  # a finished state replaces any of these, whatever its revision
Disconnect = Literal["drained", "drain_cut", "cancelled"]
UsageSource = Literal["provider", "provider_partial", "estimated", "none"]
_LONGEST_MS = 2**31  # beyond it no arithmetic is tried


class AttemptEntry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request to a provider; a call has several after a failover. The field names are the columns of `attempts`.

    The only attempt of a call has a row there only if it says more than the call's own row (see `derived_attempt`).

    `timestamp` is when the request was sent, `model` the model name sent, `status` the HTTP status of the response,
    `latency_ms` the time from sending to the response or the failure. `maybe_billed`: the request was sent, and the
    provider neither rejected it nor reported its usage. `revision` is 0 while the attempt runs, then 1, and 2 after a
    correction.
    """

    number: int
    provider: str
    timestamp: datetime
    model: str
    status: int | None = None
    latency_ms: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_sats: Decimal | None = None
    maybe_billed: bool = False
    error_message: str | None = None
    revision: int = 0


class LedgerEntry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The state of one call. The field names are the columns of `requests`; docs/guide/row.md documents each.

    `revision` orders the states of a call: 0 in flight, 1 finished, 2 corrected. Durations are integer milliseconds on
    the monotonic clock, money is Decimal, None is unknown. `tries` are the attempts so far. `provider_model` is the
    model name sent, where that is not `model`; `sent_ms` when a call's only attempt was sent, from arrival.
    """

    correlation_id: str
    timestamp: datetime
    model: str
    streaming: bool
    revision: int = 0
    provider: str | None = None
    policy: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_sats: Decimal | None = None
    provider_cost_sats: Decimal | None = None
    latency_ms: int | None = None
    stream_duration_ms: int | None = None
    success: bool = False
    error_status: int | None = None
    error_message: str | None = None
    complexity_score: float | None = None
    tier: str | None = None
    end_user: str | None = None
    tenant: str | None = None
    tags: str | None = None
    response_model: str | None = None
    response_id: str | None = None
    finish_reason: str | None = None
    service_tier: str | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    usage_json: str | None = None
    usage_source: UsageSource = "none"
    end_reason: EndReason = "in_flight"
    disconnect: Disconnect | None = None
    provider_cost_usd: Decimal | None = None
    ttft_ms: int | None = None
    attempts: int = 0
    worker_id: str | None = None
    dearest_cost_sats: Decimal | None = None
    provider_model: str | None = None
    sent_ms: int | None = None
    tries: tuple[AttemptEntry, ...] = ()
    """The attempts so far."""


def derived_attempt(entry: LedgerEntry) -> AttemptEntry | None:
    """The only attempt of a call with `sent_ms`, as its row tells it; None where the row can not tell it.

    The view `all_attempts` says the same in SQL. It is that of a call whose provider has answered, with 200 unless the
    client got its error status. Attempts have no estimates. That of a corrected call is always a row, since an earlier
    state may have written one.
    """
    sent_ms, latency_ms, status = entry.sent_ms, entry.latency_ms, entry.error_status
    reason, estimated = entry.end_reason, entry.usage_source == "estimated"
    if (
        entry.revision - estimated > 1
        or entry.provider is None
        or type(sent_ms) is not int
        or type(latency_ms) is not int
    ):
        return None
    if not 0 <= sent_ms <= latency_ms <= _LONGEST_MS or entry.timestamp.tzinfo is not UTC:
        return None
    if status is None:
        status = 200
    elif type(status) is not int or not 100 <= status <= 999:
        return None
    try:
        timestamp = entry.timestamp + timedelta(milliseconds=sent_ms)
    except OverflowError:
        return None
    uncounted = (estimated or entry.usage_source == "none") and entry.error_status is None
    return AttemptEntry(
        number=1,
        provider=entry.provider,
        timestamp=timestamp,
        model=entry.model if entry.provider_model is None else entry.provider_model,
        status=status,
        latency_ms=latency_ms - sent_ms,
        input_tokens=None if estimated else entry.input_tokens,
        output_tokens=None if estimated else entry.output_tokens,
        cost_sats=None if estimated else entry.cost_sats,
        maybe_billed=reason == "abandoned" or (reason != "in_flight" and uncounted),
        error_message=entry.error_message,
        revision=entry.revision - estimated,
    )


class PendingEntry(Protocol):
    """A running call whose first row is built only when the writer takes it from the queue.

    No first row is written for a call that has finished by then.
    """

    @property
    def correlation_id(self) -> str:
        """The call's id."""
        ...

    def entry(self) -> LedgerEntry:
        """The current state of the call."""
        ...
