"""What is known of one call: its outcome, its attempts, and the ledger entries made of them."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec

from arbstr_asgi.config.provider import Provider
from arbstr_asgi.database.records import AttemptEntry, Disconnect, EndReason, LedgerEntry, UsageSource
from arbstr_asgi.errors import ArbstrError, ServerError, UpstreamError, UpstreamTimeout
from arbstr_asgi.gateway.auth import Caller
from arbstr_asgi.protocols.reply import ReplySummary
from arbstr_asgi.protocols.usage import Usage
from arbstr_asgi.providers.pricing import cost

_COUNTS = (
    "input_tokens",
    "output_tokens",
    "total_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
)
_DURATIONS = ("latency_ms", "ttft_ms", "stream_duration_ms")


class CallOutcome(msgspec.Struct):
    """What happened to one call, as far as it is known.

    `status` is what the client got (None: nothing yet), `upstream_status` what the provider said. `left` means that
    the client hung up before the reply was complete, `drains` that the provider was read on all the same, `whole` that
    its reply was read to its end, `held` that the client has not been sent the end, which waits for its row, `stopped`
    that the server ended the call.
    """

    status: int | None = None
    upstream_status: int | None = None
    client_gone: bool = False
    drains: bool = False
    complete: bool = False
    held: bool = False
    stopped: bool = False
    error: ArbstrError | None = None

    def end_reason(self, reading: ReplySummary) -> EndReason:
        """Why the reply ended, by what happened and by what it said itself."""
        if self.client_gone:
            return "client_disconnected"
        said: EndReason = "completed" if reading.error is None else "upstream_error"
        if reading.seen_done and self.answered_well and not self.held:  # whatever came behind [DONE]
            return said
        if self.stopped or self.error is not None:
            return self._broken_off()
        if not self.answered_well:
            return "completed"  # an error of the provider's, and the client has all of it
        return said if reading.finished or reading.error is not None else "incomplete"

    def _broken_off(self) -> EndReason:
        if self.stopped:
            return "shutdown"
        if isinstance(self.error, UpstreamTimeout):
            return "timeout"
        if isinstance(self.error, UpstreamError):
            return "upstream_error"
        return "incomplete" if isinstance(self.error, ServerError) else "completed"  # our refusal is whole

    def disconnect(self, reading: ReplySummary) -> Disconnect | None:
        """What became of the provider's reply after the client had left; None: it did not leave early."""
        if not self.client_gone:
            return None
        if self.complete or reading.seen_done:
            return "drained"
        return "drain_cut" if self.drains else "cancelled"

    def maybe_billed(self, reading: ReplySummary) -> bool:
        """Whether the provider may charge for what it did not count: it had the request, and did not refuse it."""
        unsent = isinstance(self.error, UpstreamError) and not self.error.sent
        refused = self.upstream_status is not None and not self.answered_well
        return reading.usage is None and not unsent and not refused

    @property
    def answered_well(self) -> bool:
        """Whether the provider answered 2xx."""
        return self.upstream_status is not None and 200 <= self.upstream_status < 300

    @property
    def error_status(self) -> int | None:
        """The status that the client got, where it was an error."""
        return self.status if self.status is not None and self.status >= 300 else None

    def error_message(self, reading: ReplySummary) -> str | None:
        """What went wrong, in our words only."""
        if self.error is not None:
            return self.error.summary()
        if self.upstream_status is not None and not self.answered_well:
            return f"provider answered {self.upstream_status}" + (f": {reading.error}" if reading.error else "")
        return f"error in the reply: {reading.error}" if reading.error else None


def usage_source(reading: ReplySummary) -> UsageSource:
    """Where the token counts come from, and whether they are the last word."""
    if reading.usage is None:
        return "none"
    return "provider" if reading.usage_is_final else "provider_partial"


class AttemptLog:
    """What has been asked of which provider. `arrival` is when the call came, `elapsed_ms` counts from there."""

    def __init__(self, arrival: datetime, elapsed_ms: Callable[[], int]) -> None:
        self._arrival = arrival
        self._elapsed_ms = elapsed_ms
        self._finished: list[AttemptEntry] = []
        self._running: AttemptEntry | None = None
        self._began_ms = 0
        self.sent = False
        """Whether the provider may have anything of the one that goes on."""

    def __len__(self) -> int:
        return len(self._finished) + (self._running is not None)

    @property
    def all(self) -> tuple[AttemptEntry, ...]:
        """Those that have ended and the one that goes on, if one does."""
        return (*self._finished, *(() if self._running is None else (self._running,)))

    @property
    def failures_by_provider(self) -> dict[str, int]:
        """How many have failed before the one that goes on, by provider, in the order of their first."""
        found: dict[str, int] = {}
        for attempt in self._finished:
            found[attempt.provider] = found.get(attempt.provider, 0) + 1
        return found

    @property
    def is_running(self) -> bool:
        """Whether one has not ended."""
        return self._running is not None

    @property
    def answered_well(self) -> bool:
        """Whether the one that goes on has a 2xx."""
        status = None if self._running is None else self._running.status
        return status is not None and 200 <= status < 300

    @property
    def spent_sats(self) -> Decimal | None:
        """What those that have ended are known to have cost; None where nothing is known."""
        known = [attempt.cost_sats for attempt in self._finished if attempt.cost_sats is not None]
        return sum(known, Decimal(0)) if known else None

    def begin(self, provider: str, model: str) -> None:
        """A request is about to go out."""
        self.sent = False
        self._began_ms = self._elapsed_ms()
        sent = self._arrival + timedelta(milliseconds=self._began_ms)
        self._running = AttemptEntry(number=len(self) + 1, provider=provider, timestamp=sent, model=model)

    def mark_answered(self, status: int) -> int:
        """Its answer has begun; returns the milliseconds since the call came."""
        assert self._running is not None
        elapsed_ms = self._elapsed_ms()
        latency_ms = elapsed_ms - self._began_ms
        self._running = msgspec.structs.replace(self._running, status=status, latency_ms=latency_ms)
        return elapsed_ms

    def mark_failed(
        self,
        reason: str,
        *,
        maybe_billed: bool,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        cost_sats: Decimal | None = None,
    ) -> None:
        """It has failed, and another may follow."""
        assert self._running is not None
        failed = msgspec.structs.replace(
            self._timed(self._running),
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cost_sats=cost_sats,
            maybe_billed=maybe_billed,
            error_message=reason,
            revision=1,
        )
        self._finished.append(failed)
        self._running = None

    def finish(
        self,
        *,
        maybe_billed: bool,
        error_message: str | None,
        input_tokens: int | None,
        output_tokens: int | None,
        cost_sats: Decimal | None,
    ) -> tuple[AttemptEntry, ...]:
        """All of them, were the one that goes on to end like this."""
        if self._running is None:
            return tuple(self._finished)
        if error_message is not None:
            self._running = self._timed(self._running)
        last = msgspec.structs.replace(
            self._running,
            maybe_billed=maybe_billed,
            error_message=error_message,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cost_sats=cost_sats,
            revision=1,
        )
        return (*self._finished, last)

    def _timed(self, attempt: AttemptEntry) -> AttemptEntry:
        """With the time that it took to fail, where there was no answer."""
        if attempt.latency_ms is not None:
            return attempt
        return msgspec.structs.replace(attempt, latency_ms=self._elapsed_ms() - self._began_ms)


def corrected(tries: tuple[AttemptEntry, ...]) -> tuple[AttemptEntry, ...]:
    """The same as a state that replaces one that was taken for the last."""
    return tuple(msgspec.structs.replace(attempt, revision=2) for attempt in tries)


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
        self.committed = self._finished(msgspec.structs.replace(self.outcome, status=status, complete=True, held=False))
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
