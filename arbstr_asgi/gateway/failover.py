"""Failover: sends a request to one candidate after the other, until one gives a response that the client may get."""

import asyncio
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from math import inf
from typing import NamedTuple

from arbstr_asgi.config.settings import Failover as Settings
from arbstr_asgi.errors import UpstreamError, UpstreamTimeout
from arbstr_asgi.gateway.attempt import (
    SECONDS_FOR_FIRST_EVENT,
    BufferedReply,
    FirstEventWatcher,
    PeekedReply,
    ProviderAttempt,
    ProviderResponse,
)
from arbstr_asgi.gateway.deadline import Deadline
from arbstr_asgi.gateway.record import CallRecord
from arbstr_asgi.protocols.chat import ChatRequest
from arbstr_asgi.protocols.reply import ReplySummary
from arbstr_asgi.providers import headers as h
from arbstr_asgi.providers import retry_policy
from arbstr_asgi.providers.circuit_breaker import BreakerTicket, CircuitBreaker, CircuitBreakers
from arbstr_asgi.providers.client import ProviderReply
from arbstr_asgi.providers.routing import Candidate

SECONDS_FOR_BODY = 2.0  # of a plain reply that may be an error under a good status
MAX_KEPT_BYTES = 64 * 1024  # of a reply that passes where no later one comes
SECONDS_TO_KEEP = 0.2
EVENT_STREAM = "text/event-stream"
_NOTHING = ReplySummary()


class AttemptFailure(NamedTuple):
    """Why the response of an attempt is not what the client gets, or that there is none."""

    reason: str
    error: UpstreamError | None = None
    """What the client is told where there was no reply."""
    failover: bool = True
    """Whether another candidate may be asked."""
    retryable: bool = False
    """Whether the same one may answer better in a while."""
    provider_fault: bool = True
    retry_after: float | None = None
    """The seconds for which it asks to be left alone."""
    summary: ReplySummary = _NOTHING


class Failover:
    """The attempts of one call, and the reply that one of them has got."""

    __slots__ = (
        "_attempt",
        "_breakers",
        "_buffered",
        "_deadline",
        "_record",
        "_repeats",
        "_reply",
        "_settings",
        "_ticket",
    )

    def __init__(
        self,
        attempt: ProviderAttempt,
        breakers: CircuitBreakers,
        record: CallRecord,
        settings: Settings,
        deadline: Deadline,
    ) -> None:
        """`deadline` is what the call may be left by; its limit is that of the running attempt."""
        self._attempt = attempt
        self._breakers = breakers
        self._record = record
        self._settings = settings
        self._deadline = deadline
        self._ticket: tuple[CircuitBreaker, BreakerTicket] | None = None
        self._reply: ProviderReply | None = None
        self._buffered: ProviderResponse | None = None
        self._repeats = 0

    async def send(
        self, request: ChatRequest, candidates: Sequence[Candidate], client_headers: h.Headers
    ) -> ProviderResponse:
        """The response that the client is to get, open until `close`. Raises UpstreamError where there is none.

        The last candidate is asked again after a pause; but where there is only one in all, it is asked once, and to
        ask again is its client's own affair.
        """
        left, retries = list(candidates), self._settings.retries if len(candidates) > 1 else 0
        while True:
            candidate = self._breakers.choose(left, self._deadline.now())
            alone = len(left) == 1
            response, failure = await self._send_to(request, candidate, client_headers, watch=not alone)
            if failure is None:
                assert response is not None
                self._mark_started(response)
                return response
            pause = self._pause(failure, retries) if alone else self._next(failure)
            if pause is None:
                return response or self._earlier_response(failure)
            await self._discard(response, failure)
            if alone:
                await asyncio.sleep(pause)
            else:
                left.remove(candidate)
            if self._record.outcome.client_gone:  # nobody else is asked, and billed, for nobody
                raise failure.error or UpstreamError("The client has left.", code="client_disconnected")

    async def close(self) -> None:
        """Let go of the reply that is open, if one is."""
        reply, self._reply = self._reply, None
        if reply is not None:
            await reply.aclose()

    def report(self) -> None:
        """The call has ended: tell the breaker what its response says of the provider."""
        outcome, summary = self._record.outcome, self._record.reply
        if isinstance(outcome.error, UpstreamError):
            self._report_to_breaker(CircuitBreaker.mark_failure)
        elif outcome.answered_well and summary.error is not None:
            self._report_to_breaker(
                CircuitBreaker.mark_failure
                if retry_policy.is_error_fault(summary.error)
                else CircuitBreaker.mark_ignored
            )
        elif outcome.answered_well and (outcome.complete or summary.seen_done):
            self._report_to_breaker(CircuitBreaker.mark_success)
        elif outcome.upstream_status is not None and retry_policy.is_provider_fault(
            outcome.upstream_status, ours=False
        ):
            self._report_to_breaker(CircuitBreaker.mark_failure)
        else:
            self._report_to_breaker(CircuitBreaker.mark_ignored)

    async def _send_to(
        self, request: ChatRequest, candidate: Candidate, client_headers: h.Headers, *, watch: bool
    ) -> tuple[ProviderResponse | None, AttemptFailure | None]:
        provider, breaker = candidate.provider, self._breakers.get(candidate.provider.name)
        self._ticket = breaker, breaker.acquire(self._deadline.now())
        self._deadline.start(provider.first_byte_timeout)
        try:
            response = await self._attempt.send(self._record, request, candidate, client_headers)
        except asyncio.CancelledError:
            if not self._deadline.consume():
                raise
            error: UpstreamError = UpstreamTimeout("The provider took too long.", sent=self._record.attempts.sent)
        except UpstreamError as raised:
            error = raised
        else:
            self._deadline.limit = inf
            self._reply = response.reply
            ours = provider.sends_own_credentials(client_authorizes=b"authorization" in client_headers)
            return await self._inspect(response, ours=ours, watch=watch)
        self._deadline.limit = inf
        return None, _no_response(error, retry_sent=provider.retry_sent)

    async def _inspect(
        self, response: ProviderResponse, *, ours: bool, watch: bool
    ) -> tuple[ProviderResponse, AttemptFailure | None]:
        """The response, perhaps with its beginning read, and what is wrong with it."""
        status, headers = response.reply.status, response.reply.headers
        if retry_policy.should_failover(status, ours=ours):
            return response, AttemptFailure(
                f"provider answered {status}",
                provider_fault=retry_policy.is_provider_fault(status, ours=ours),
                retryable=retry_policy.is_retryable(status),
                retry_after=retry_policy.retry_after(headers, datetime.now(UTC)),
            )
        if not (watch and 200 <= status < 300):
            return response, None
        streaming = self._record.streaming
        first, reply = FirstEventWatcher(headers, streaming=streaming), self._peeked(response.reply)
        await first.watch(reply, SECONDS_FOR_FIRST_EVENT if streaming else SECONDS_FOR_BODY)
        response = response._replace(reply=reply)
        nothing = _no_content(reply, first.summary)
        if nothing is not None:
            return response, _no_response(nothing, retry_sent=response.provider.retry_sent)
        error = first.summary.error
        if error is None or retry_policy.is_client_fault(error):
            return response, None
        return response, AttemptFailure(
            f"error in the reply: {error}",
            retryable=True,
            provider_fault=retry_policy.is_error_fault(error),
            summary=first.summary,
        )

    def _peeked(self, reply: ProviderReply) -> PeekedReply:
        """The open reply as one that can be read ahead."""
        peeked = reply if isinstance(reply, PeekedReply) else PeekedReply(reply)
        self._reply = peeked
        return peeked

    def _next(self, failure: AttemptFailure) -> float | None:
        """0 where the next candidate may be asked, at once."""
        return 0.0 if failure.failover and not self._record.outcome.client_gone else None

    def _pause(self, failure: AttemptFailure, retries: int) -> float | None:
        """The seconds until the last candidate is asked again; None: it isn't."""
        if not failure.retryable or self._repeats >= retries or self._record.outcome.client_gone:
            return None
        self._repeats += 1
        pause = _backoff(self._repeats) if failure.retry_after is None else failure.retry_after
        in_time = self._record.clock.seconds() + pause < self._settings.deadline
        return pause if in_time else None

    def _mark_started(self, response: ProviderResponse) -> None:
        if self._ticket is not None and 200 <= response.reply.status < 300:
            breaker, ticket = self._ticket
            breaker.mark_started(ticket, self._deadline.now())

    def _earlier_response(self, failure: AttemptFailure) -> ProviderResponse:
        """The reply of the last provider that gave one, where the one that was asked last gave none."""
        if self._buffered is None or not failure.failover:
            assert failure.error is not None
            raise failure.error
        self._record.attempts.mark_failed(failure.reason, maybe_billed=failure.error is not None and failure.error.sent)
        self._report_to_breaker(CircuitBreaker.mark_failure)
        self._record.provider = self._buffered.provider
        return self._buffered

    async def _discard(self, response: ProviderResponse | None, failure: AttemptFailure) -> None:
        """Note a failed attempt, and let go of its reply."""
        summary, usage = failure.summary, failure.summary.usage
        self._record.attempts.mark_failed(
            failure.reason,
            maybe_billed=failure.error is not None and failure.error.sent,
            input_tokens=None if usage is None else usage.input_tokens,
            output_tokens=None if usage is None else usage.output_tokens,
            cost_sats=self._record.price(usage, summary.model),
        )
        self._report_to_breaker(CircuitBreaker.mark_failure if failure.provider_fault else CircuitBreaker.mark_ignored)
        if response is not None:
            await self._buffer(response)
        await self.close()

    async def _buffer(self, response: ProviderResponse) -> None:
        """Keep a reply that is there and not large, for the case that no other comes."""
        reply, size = self._peeked(response.reply), 0

        def too_large(chunk: bytes) -> bool:
            nonlocal size
            size += len(chunk)
            return size > MAX_KEPT_BYTES

        await reply.peek(too_large, SECONDS_TO_KEEP)
        body = reply.body
        if body is not None:
            self._buffered = response._replace(reply=BufferedReply(reply, body))

    def _report_to_breaker(self, mark: Callable[[CircuitBreaker, BreakerTicket, float], None]) -> None:
        if self._ticket is not None:
            (breaker, ticket), self._ticket = self._ticket, None
            mark(breaker, ticket, self._deadline.now())


def _no_content(reply: PeekedReply, summary: ReplySummary) -> UpstreamError | None:
    """The error for a reply that broke off or ended before it said anything; None for any other, or not yet."""
    said = (summary.started, summary.usage, summary.finish_reason, summary.model, summary.id, summary.error)
    if any(fact for fact in said) or (summary.events and not summary.seen_done):
        return None
    is_stream, blank = reply.headers.media_type == EVENT_STREAM, not reply.beginning.strip()
    if not (is_stream or blank):
        return None
    if reply.error is not None or not (reply.body is not None or summary.seen_done):
        return reply.error
    return UpstreamError("The provider's reply was empty.", code="empty_reply")


def _no_response(error: UpstreamError, *, retry_sent: bool) -> AttemptFailure:
    repeatable = not error.sent or retry_sent
    return AttemptFailure(error.summary(), error, failover=repeatable, retryable=repeatable)


def _backoff(number: int) -> float:
    """Seconds of pause `number` (from 1): 0.5, doubled each time to at most 8, and up to 0.5 more at random."""
    return min(0.5 * 2.0 ** (number - 1), 8.0) + random.uniform(0, 0.5)  # noqa: S311 - nothing is kept secret by it
