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

_NO_USAGE = Usage()
_DURATIONS = ("latency_ms", "ttft_ms", "stream_duration_ms")


class CallOutcome(msgspec.Struct):
    """What happened to one call, as far as it is known."""

    status: int | None = None
    """What the client got; None: nothing yet."""
    upstream_status: int | None = None
    """What the provider answered; None: nothing yet."""
    client_gone: bool = False
    """The client hung up before the reply was complete."""
    drains: bool = False
    """The provider's reply is read on for a client that has hung up."""
    complete: bool = False
    """The provider's reply was read to its end."""
    held: bool = False
    """The end has not been sent to the client: it waits for the row to be durable."""
    end_sent: bool = False
    """The end has been handed to the server."""
    stopped: bool = False
    """The server ended the call."""
    error: ArbstrError | None = None

    def end_reason(self, reading: ReplySummary) -> EndReason:
        """Why the reply ended, by what happened and by the reply itself."""
        if self.client_gone:
            return "client_disconnected"
        normal_end: EndReason = "completed" if reading.error is None else "upstream_error"
        if reading.seen_done and self.answered_well and not self.held:  # whatever came behind [DONE]
            return normal_end
        if self.stopped or self.error is not None:
            return self._broken_off()
        if not self.answered_well:
            return "completed"  # an error of the provider's, and the client has all of it
        return normal_end if reading.finished or reading.error is not None else "incomplete"

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


class Stopwatch:
    """Counts from `start`, which is a time of the clock `now`, in seconds."""

    __slots__ = ("_now", "_start")

    def __init__(self, start: float, now: Callable[[], float]) -> None:
        self._start = start
        self._now = now

    def seconds(self) -> float:
        """Seconds since the start."""
        return self._now() - self._start

    def ms(self) -> int:
        """Milliseconds since the start."""
        return round((self._now() - self._start) * 1000)


class AttemptLog:
    """The requests to providers of one call. Milliseconds count from the call's arrival."""

    __slots__ = (
        "_arrival",
        "_began_ms",
        "_clock",
        "_finished",
        "_latency_ms",
        "_model",
        "_provider",
        "_status",
        "sent",
    )

    def __init__(self, arrival: datetime, clock: Stopwatch) -> None:
        """`arrival` is when the call came, and `clock` began."""
        self._arrival = arrival
        self._clock = clock
        self._finished: list[AttemptEntry] = []
        self._provider: str | None = None  # of the running attempt, like what follows
        self._model = ""
        self._began_ms = 0
        self._status: int | None = None
        self._latency_ms: int | None = None
        self.sent = False
        """Whether the provider may have received anything of the running attempt."""

    def __len__(self) -> int:
        return len(self._finished) + (self._provider is not None)

    @property
    def all(self) -> tuple[AttemptEntry, ...]:
        """The finished attempts and the running one, if there is one."""
        return tuple(self._finished) if self._provider is None else (*self._finished, self._running())

    @property
    def failures_by_provider(self) -> dict[str, int]:
        """The number of failed attempts by provider, in the order of their first."""
        found: dict[str, int] = {}
        for attempt in self._finished:
            found[attempt.provider] = found.get(attempt.provider, 0) + 1
        return found

    @property
    def is_running(self) -> bool:
        """Whether an attempt has not finished."""
        return self._provider is not None

    @property
    def answered_well(self) -> bool:
        """Whether the running attempt was answered 2xx."""
        return self._provider is not None and self._status is not None and 200 <= self._status < 300

    @property
    def spent_sats(self) -> Decimal | None:
        """The known cost of the finished attempts; None where none is known."""
        if not self._finished:
            return None
        known = [attempt.cost_sats for attempt in self._finished if attempt.cost_sats is not None]
        return sum(known, Decimal(0)) if known else None

    @property
    def sent_ms(self) -> int | None:
        """When the only attempt was sent, in milliseconds since the call came; None: there is not exactly one."""
        return self._began_ms if len(self) == 1 else None

    def begin(self, provider: str, model: str) -> None:
        """A request is about to be sent."""
        self.sent = False
        self._began_ms = self._clock.ms()
        self._provider, self._model, self._status, self._latency_ms = provider, model, None, None

    def mark_answered(self, status: int) -> int:
        """The running attempt's reply has begun; returns the milliseconds since the call came."""
        elapsed_ms = self._clock.ms()
        self._status, self._latency_ms = status, elapsed_ms - self._began_ms
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
        """The running attempt has failed, and another may follow."""
        self._measure()
        failed = self._running(
            maybe_billed=maybe_billed,
            error_message=reason,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cost_sats=cost_sats,
            revision=1,
        )
        self._finished.append(failed)
        self._provider = None

    def finish(
        self,
        *,
        maybe_billed: bool,
        error_message: str | None,
        input_tokens: int | None,
        output_tokens: int | None,
        cost_sats: Decimal | None,
    ) -> tuple[AttemptEntry, ...]:
        """All attempts, where the running one ends like this."""
        if self._provider is None:
            return tuple(self._finished)
        if error_message is not None:
            self._measure()
        last = self._running(
            maybe_billed=maybe_billed,
            error_message=error_message,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cost_sats=cost_sats,
            revision=1,
        )
        return (*self._finished, last) if self._finished else (last,)

    def _running(self, **facts: Any) -> AttemptEntry:
        assert self._provider is not None
        return AttemptEntry(
            number=len(self._finished) + 1,
            provider=self._provider,
            timestamp=self._arrival + timedelta(milliseconds=self._began_ms),
            model=self._model,
            status=self._status,
            latency_ms=self._latency_ms,
            **facts,
        )

    def _measure(self) -> None:
        """Note the time that the running attempt took to fail, where there was no answer."""
        if self._latency_ms is None:
            self._latency_ms = self._clock.ms() - self._began_ms


class CallRecord:
    """What is known of a call while it runs, and the states of its row."""

    __slots__ = (
        "_arrival",
        "_requested_model",
        "_tags",
        "_tenant",
        "_worker_id",
        "attempts",
        "candidates",
        "clock",
        "committed",
        "correlation_id",
        "end_user",
        "latency_ms",
        "model",
        "outcome",
        "policy",
        "provider",
        "reply",
        "streaming",
        "ttft_ms",
    )

    def __init__(
        self,
        correlation_id: str,
        arrival: datetime,
        model: str,
        caller: Caller,
        worker_id: str,
        *,
        streaming: bool,
        clock: Stopwatch,
    ) -> None:
        """`arrival` is the time of day when the request came, and `clock` began."""
        self.clock = clock
        self.correlation_id = correlation_id
        self.end_user = caller.end_user
        self.model = model
        self.streaming = streaming
        self.outcome = CallOutcome()
        self.reply = ReplySummary()
        self.provider: Provider | None = None
        self.candidates: Sequence[Provider] = ()
        self.policy: str | None = None
        self.attempts = AttemptLog(arrival, clock)
        self.committed: LedgerEntry | None = None
        """The state that was made durable before the client had the end of its reply; None: none was."""
        self.latency_ms: int | None = None
        self.ttft_ms: int | None = None
        self._requested_model = model
        self._arrival = arrival
        self._tenant = caller.tenant
        self._tags = caller.tags_json()
        self._worker_id = worker_id

    def begin(self, provider: Provider, model: str) -> None:
        """A request goes out to `provider`, for what it calls `model`."""
        self.provider, self._requested_model = provider, model
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
        return cost(usage, self.provider.rates(response_model, self.model, self._requested_model))

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
        summary = self.reply
        usage = summary.usage or _NO_USAGE
        end_reason = outcome.end_reason(summary)
        sats = None if usage is _NO_USAGE else self.attempt_sats
        error_message = outcome.error_message(summary)
        attempts = self.attempts.finish(
            maybe_billed=self.attempts.sent and outcome.maybe_billed(summary),
            error_message=error_message,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cost_sats=sats,
        )
        return self._row(
            1,
            attempts,
            stream_duration_ms=self.clock.ms() if self.streaming and self.latency_ms is not None else None,
            success=outcome.answered_well and end_reason in ("completed", "client_disconnected"),
            error_status=outcome.error_status,
            error_message=error_message,
            cost_sats=self._of_all(sats),
            dearest_cost_sats=self.dearest_cost_sats,
            response_model=summary.model,
            response_id=summary.id,
            finish_reason=summary.finish_reason,
            service_tier=summary.service_tier,
            usage_source=usage_source(summary),
            end_reason=end_reason,
            disconnect=outcome.disconnect(summary),
            ttft_ms=self.ttft_ms,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            total_tokens=usage.total_tokens,
            cached_tokens=usage.cached_tokens,
            cache_write_tokens=usage.cache_write_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            usage_json=usage.raw_json,
            provider_cost_usd=None if usage.cost_usd is None else Decimal(usage.cost_usd),
        )

    def _row(self, revision: int, attempts: tuple[AttemptEntry, ...], **facts: Any) -> LedgerEntry:
        provider = self.provider
        return LedgerEntry(
            correlation_id=self.correlation_id,
            timestamp=self._arrival,
            model=self.model,
            streaming=self.streaming,
            end_user=self.end_user,
            tenant=self._tenant,
            tags=self._tags,
            worker_id=self._worker_id,
            revision=revision,
            provider=None if provider is None else provider.name,
            tier=None if provider is None else provider.tier,
            policy=self.policy,
            latency_ms=self.latency_ms,
            attempts=len(attempts),
            provider_model=None if self._requested_model == self.model else self._requested_model,
            sent_ms=self.attempts.sent_ms,
            tries=attempts,
            **facts,
        )


def _corrected(entry: LedgerEntry) -> LedgerEntry:
    """The same as a state that replaces one which was taken for the last."""
    attempts = tuple(msgspec.structs.replace(attempt, revision=2) for attempt in entry.tries)
    return msgspec.structs.replace(entry, revision=2, tries=attempts)
