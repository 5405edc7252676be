"""The rows of the ledger as Python values: one LedgerEntry per call, one AttemptEntry per request to a provider."""

from datetime import datetime
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


class AttemptEntry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request to a provider; a call has several after a failover. The field names are the columns of `attempts`.

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
    """The state of one call. The field names are the columns of `requests`; the README documents each.

    `revision` orders the states of a call: 0 in flight, 1 finished, 2 corrected. Durations are integer milliseconds on
    the monotonic clock, money is Decimal, None is unknown. `tries` are the attempts so far, each a row of `attempts`.
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
    tries: tuple[AttemptEntry, ...] = ()
    """The attempts so far, of which each is a row of its own."""


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
