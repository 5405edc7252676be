"""What is known of one call, and the ledger's entries made of it."""

from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec

from arbstr_asgi.callers import Caller
from arbstr_asgi.config.provider import Provider
from arbstr_asgi.entry import AttemptEntry, LedgerEntry
from arbstr_asgi.metering import ReplySummary
from arbstr_asgi.outcome import CallOutcome, usage_source
from arbstr_asgi.pricing import cost
from arbstr_asgi.tries import AttemptLog, corrected
from arbstr_asgi.usage import Usage

_COUNTS = (
    "input_tokens",
    "output_tokens",
    "total_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
)
_DURATIONS = ("latency_ms", "ttft_ms", "stream_duration_ms")


class CallRecord:
    """Collects the facts of a call while it goes on. Milliseconds count from its arrival, as `elapsed_ms` says them."""

    def __init__(
        self,
        correlation_id: str,
        arrival: datetime,
        model: str,
        caller: Caller,
        worker_id: str,
        *,
        streaming: bool,
        elapsed_ms: Callable[[], int],
    ) -> None:
        self.correlation_id = correlation_id
        self.end_user = caller.end_user
        self.model = model
        self.streaming = streaming
        self.elapsed_ms = elapsed_ms
        self.outcome = CallOutcome()
        self.reply = ReplySummary()
        self.provider: Provider | None = None
        self.candidates: Sequence[Provider] = ()
        self.policy: str | None = None
        self.attempts = AttemptLog(arrival, elapsed_ms)
        self.committed: LedgerEntry | None = None
        self.latency_ms: int | None = None
        self.ttft_ms: int | None = None
        self._asked_for = model
        self._entry = LedgerEntry(
            correlation_id=correlation_id,
            timestamp=arrival,
            model=model,
            streaming=streaming,
            end_user=caller.end_user,
            tenant=caller.tenant,
            tags=caller.tags_json(),
            worker_id=worker_id,
        )

    def begin(self, provider: Provider, model: str) -> None:
        """A request goes out to `provider`, for what it calls `model`."""
        self.provider, self._asked_for = provider, model
        self.attempts.begin(provider.name, model)

    @property
    def attempt_sats(self) -> Decimal | None:
        """What the attempt that goes on has cost, as far as its usage is known."""
        return self.price(self.reply.usage, self.reply.model)

    @property
    def cost_sats(self) -> Decimal | None:
        """What the call has cost with all its attempts, as far as the usage of its answer is known."""
        return self._of_all(self.attempt_sats)

    def _of_all(self, sats: Decimal | None) -> Decimal | None:
        """The cost of all attempts, where that of the one that goes on is `sats`."""
        spent = self.attempts.spent_sats
        if len(self.attempts) and not self.attempts.is_running:  # the answer is that of one which has ended
            return spent
        return sats if sats is None or spent is None else sats + spent

    def total_sats(self, usage: Usage) -> Decimal | None:
        """What the call has cost with all its attempts, were this the usage of its answer."""
        sats = self.price(usage, self.reply.model)
        return None if sats is None else sats + (self.attempts.spent_sats or 0)

    def price(self, usage: Usage | None, response_model: str | None) -> Decimal | None:
        """What so much usage costs at the provider that is asked, by the model that it says has answered."""
        if self.provider is None:
            return None
        return cost(usage, self.provider.rates(response_model, self.model, self._asked_for))

    @property
    def dearest_cost_sats(self) -> Decimal | None:
        """What the same usage would have cost at the dearest candidate, of at least two whose cost is known."""
        if len(self.candidates) < 2:
            return None
        usage, model = self.reply.usage, self.model
        found = [cost(usage, one.rates(model, one.aliases.get(model))) for one in self.candidates]
        known = [sats for sats in found if sats is not None]
        return max(known) if len(known) > 1 else None

    def entry(self) -> LedgerEntry:
        """The first state of the row: the provider has answered, and how that ends is not known."""
        return self._row(0, self.attempts.all)

    def commit(self, status: int | None) -> LedgerEntry:
        """The last state of the row if the client, whose status is `status`, gets what it is about to be sent."""
        self.committed = self._finished(msgspec.structs.replace(self.outcome, status=status, whole=True, held=False))
        return self.committed

    def finish(self) -> LedgerEntry | None:
        """The last state of the row; None where the committed one, but for its durations, says the same."""
        entry, committed = self._finished(self.outcome), self.committed
        if committed is None:
            return entry
        timeless = {name: getattr(committed, name) for name in (*_DURATIONS, "revision")}
        return None if msgspec.structs.replace(entry, **timeless) == committed else _corrected(entry)

    def _finished(self, outcome: CallOutcome) -> LedgerEntry:
        reading = self.reply
        end_reason = outcome.end_reason(reading)
        counts, sats = self._counts(), self.attempt_sats
        error_message = outcome.error_message(reading)
        tries = self.attempts.finish(
            maybe_billed=self.attempts.sent and outcome.maybe_billed(reading),
            error_message=error_message,
            input_tokens=counts.get("input_tokens"),
            output_tokens=counts.get("output_tokens"),
            cost_sats=sats,
        )
        return self._row(
            1,
            tries,
            stream_duration_ms=self.elapsed_ms() if self.streaming and self.latency_ms is not None else None,
            success=outcome.answered_well and end_reason in ("completed", "client_disconnected"),
            error_status=outcome.error_status,
            error_message=error_message,
            cost_sats=self._of_all(sats),
            dearest_cost_sats=self.dearest_cost_sats,
            response_model=reading.model,
            response_id=reading.id,
            finish_reason=reading.finish_reason,
            service_tier=reading.service_tier,
            usage_source=usage_source(reading),
            end_reason=end_reason,
            disconnect=outcome.disconnect(reading),
            ttft_ms=self.ttft_ms,
            **counts,
        )

    def _counts(self) -> dict[str, Any]:
        usage = self.reply.usage
        if usage is None:
            return {}
        facts = {name: getattr(usage, name) for name in _COUNTS}
        facts["usage_json"] = usage.raw_json
        facts["provider_cost_usd"] = None if usage.cost_usd is None else Decimal(usage.cost_usd)
        return facts

    def _row(self, revision: int, tries: tuple[AttemptEntry, ...], **facts: Any) -> LedgerEntry:
        return msgspec.structs.replace(
            self._entry,
            revision=revision,
            provider=self.provider.name if self.provider else None,
            tier=self.provider.tier if self.provider else None,
            policy=self.policy,
            latency_ms=self.latency_ms,
            attempts=len(tries),
            tries=tries,
            **facts,
        )


def _corrected(entry: LedgerEntry) -> LedgerEntry:
    return msgspec.structs.replace(entry, revision=2, tries=corrected(entry.tries))
