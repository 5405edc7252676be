"""One row of the ledger as Python values."""

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
    """One request to a provider, of which a call may take several. The field names are the columns of `attempts`.

    `timestamp` is when it was sent, `model` what the provider was asked for, `status` its answer's, `latency_ms` from
    the sending to the answer or to its failing. `maybe_billed`: it was sent, and the provider has neither refused it
    nor said what it used. `revision` is 0 while it goes on, then 1, and 2 if that had to be corrected.
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
    """What is known of one call. The field names are the columns of `requests`; see the README for their meanings.

    `revision` orders the states of one call: 0 in flight, 1 finished, 2 corrected. Milliseconds are integers from the
    monotonic clock, money is Decimal, None is unknown.
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
    """One that goes on: its first state is made when that is to be written, and not where the last one is there."""

    @property
    def correlation_id(self) -> str:
        """Which call it is."""
        ...

    def entry(self) -> LedgerEntry:
        """What is known of it now."""
        ...
