"""Asks one candidate after the other, until one answers of whose answer the client may have the first byte."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from math import inf
from typing import NamedTuple

from tenacity import AsyncRetrying, RetryCallState, wait_exponential, wait_random

from arbstr_asgi import headers as h
from arbstr_asgi import verdict
from arbstr_asgi.account import Account
from arbstr_asgi.asking import Answer, Asking
from arbstr_asgi.breaker import Breaker, Breakers, Permit
from arbstr_asgi.chat import ChatRequest
from arbstr_asgi.closing import Closing
from arbstr_asgi.config.settings import Failover as Settings
from arbstr_asgi.errors import UpstreamError, UpstreamTimeout
from arbstr_asgi.first_event import FirstEvent
from arbstr_asgi.interrupt import Interrupt
from arbstr_asgi.lookahead import Lookahead
from arbstr_asgi.metering import Reading
from arbstr_asgi.routing import Candidate

SECONDS_FOR_FIRST_EVENT = 0.5
MAX_KEPT_BYTES = 64 * 1024  # of a reply that passes where no later one comes
SECONDS_TO_KEEP = 0.2
_PAUSES = wait_exponential(multiplier=0.5, max=8.0) + wait_random(0, 0.5)  # seconds
_NOTHING = Reading()


class Failure(NamedTuple):
    """Why an attempt is not the answer."""

    reason: str
    error: UpstreamError | None = None
    """What the client is told where there was no reply."""
    sends_on: bool = True
    """Whether another candidate may be asked."""
    may_pass: bool = False
    """Whether the same one may answer better in a while."""
    sick: bool = True
    wait: float | None = None
    """The seconds for which it asks to be left alone."""
    reading: Reading = _NOTHING


class Failover:
    """The attempts of one request."""

    def __init__(
        self, asking: Asking, breakers: Breakers, account: Account, settings: Settings, interrupt: Interrupt
    ) -> None:
        """`interrupt` is what the call may be left by; its deadline is that of the attempt that goes on."""
        self._asking = asking
        self._breakers = breakers
        self._account = account
        self._settings = settings
        self._interrupt = interrupt
        self._running: tuple[Breaker, Permit] | None = None
        self._kept: Answer | None = None
        self._repeats = 0

    async def ask(
        self, closing: Closing, request: ChatRequest, found: Sequence[Candidate], client_headers: h.Headers
    ) -> Answer:
        """The answer, which stays open until `closing` is closed. Raises UpstreamError where there is none.

        The last candidate is asked again after a pause; but where there is only one in all, it is asked once, and to
        ask again is its client's own affair.
        """
        left, retries = list(found), self._settings.retries if len(found) > 1 else 0
        while True:
            candidate = self._breakers.choose(left, self._interrupt.now())
            alone = len(left) == 1
            answer, failure = await self._attempt(closing, request, candidate, client_headers, watch=not alone)
            if failure is None:
                assert answer is not None
                self._answered(answer)
                return answer
            pause = self._pause(failure, retries) if alone else self._next(failure)
            if pause is None:
                return answer or self._of_an_earlier_one(failure)
            await self._put_aside(closing, answer, failure)
            if alone:
                await asyncio.sleep(pause)
            else:
                left.remove(candidate)
            if self._account.outcome.left:  # nobody else is asked, and billed, for nobody
                raise failure.error or UpstreamError("The client has left.", code="client_disconnected")

    def settle(self) -> None:
        """The call has ended: tell the breaker what its answer says of the provider."""
        outcome, reading = self._account.outcome, self._account.reading
        if isinstance(outcome.error, UpstreamError):
            self._report(Breaker.failed)
        elif outcome.answered_well and reading.error is not None:
            self._report(Breaker.failed if verdict.is_sickness(reading.error) else Breaker.abandoned)
        elif outcome.answered_well and (outcome.whole or reading.done):
            self._report(Breaker.succeeded)
        elif outcome.upstream_status is not None and verdict.is_sick(outcome.upstream_status, ours=False):
            self._report(Breaker.failed)
        else:
            self._report(Breaker.abandoned)

    async def _attempt(
        self,
        closing: Closing,
        request: ChatRequest,
        candidate: Candidate,
        client_headers: h.Headers,
        *,
        watch: bool,
    ) -> tuple[Answer | None, Failure | None]:
        provider, breaker = candidate.provider, self._breakers.of(candidate.provider.name)
        self._running = breaker, breaker.admit(self._interrupt.now())
        self._interrupt.deadline(provider.first_byte_timeout)
        try:
            answer = await self._asking.ask(closing, self._account, request, candidate, client_headers)
        except asyncio.CancelledError:
            if not self._interrupt.expired():
                raise
            error: UpstreamError = UpstreamTimeout("The provider took too long.", sent=self._account.tries.sent)
        except UpstreamError as raised:
            error = raised
        else:
            self._interrupt.limit = inf
            ours = provider.sends_own_credentials(client_authorizes=b"authorization" in client_headers)
            return await self._judge(closing, answer, ours=ours, watch=watch)
        self._interrupt.limit = inf
        return None, _unanswered(error, retry_sent=provider.retry_sent)

    async def _judge(
        self, closing: Closing, answer: Answer, *, ours: bool, watch: bool
    ) -> tuple[Answer, Failure | None]:
        """The answer, perhaps with its beginning read, and what is wrong with it."""
        status, headers = answer.reply.status, answer.reply.headers
        if verdict.sends_on(status, ours=ours):
            wait = verdict.retry_after(headers, datetime.now(UTC))
            sick, may_pass = verdict.is_sick(status, ours=ours), verdict.may_pass(status)
            return answer, Failure(f"provider answered {status}", sick=sick, may_pass=may_pass, wait=wait)
        if not (watch and self._account.streaming and 200 <= status < 300 and headers.is_plain):
            return answer, None
        first, ahead = FirstEvent(headers), Lookahead(answer.reply)
        closing.add(ahead.close)
        await ahead.read(first.complete, SECONDS_FOR_FIRST_EVENT)
        if ahead.whole is not None:
            first.end()
        answer = answer._replace(chunks=ahead)
        if ahead.error is not None and not first.reading.events:
            return answer, _unanswered(ahead.error, retry_sent=answer.provider.retry_sent)
        error = first.reading.error
        if error is None or verdict.is_the_clients(error):
            return answer, None
        sick = verdict.is_sickness(error)
        return answer, Failure(f"error in the reply: {error}", may_pass=True, sick=sick, reading=first.reading)

    def _next(self, failure: Failure) -> float | None:
        """0 where the next candidate may be asked, at once."""
        return 0.0 if failure.sends_on and not self._account.outcome.left else None

    def _pause(self, failure: Failure, retries: int) -> float | None:
        """The seconds until the last candidate is asked again; None: it isn't."""
        if not failure.may_pass or self._repeats >= retries or self._account.outcome.left:
            return None
        self._repeats += 1
        pause = _growing(self._repeats) if failure.wait is None else failure.wait
        in_time = self._account.elapsed_ms() / 1000 + pause < self._settings.deadline
        return pause if in_time else None

    def _answered(self, answer: Answer) -> None:
        if self._running is not None and 200 <= answer.reply.status < 300:
            breaker, permit = self._running
            breaker.answered(permit, self._interrupt.now())

    def _of_an_earlier_one(self, failure: Failure) -> Answer:
        """The reply of the last provider that gave one, where the one that was asked last gave none."""
        if self._kept is None or not failure.sends_on:
            assert failure.error is not None
            raise failure.error
        self._account.tries.fail(failure.reason, maybe_billed=failure.error is not None and failure.error.sent)
        self._report(Breaker.failed)
        self._account.provider = self._kept.provider
        return self._kept

    async def _put_aside(self, closing: Closing, answer: Answer | None, failure: Failure) -> None:
        """Note a failed attempt, and let go of it."""
        reading, usage = failure.reading, failure.reading.usage
        self._account.tries.fail(
            failure.reason,
            maybe_billed=failure.error is not None and failure.error.sent,
            input_tokens=None if usage is None else usage.input_tokens,
            output_tokens=None if usage is None else usage.output_tokens,
            cost_sats=self._account.price(usage, reading.model),
        )
        self._report(Breaker.failed if failure.sick else Breaker.abandoned)
        if answer is not None:
            await self._keep(closing, answer)
        await closing.close()

    async def _keep(self, closing: Closing, answer: Answer) -> None:
        """Keep a reply that is there and not large, for the case that no other comes."""
        ahead, size = answer.chunks, 0
        if not isinstance(ahead, Lookahead):
            ahead = Lookahead(answer.reply)
            closing.add(ahead.close)

        def too_large(chunk: bytes) -> bool:
            nonlocal size
            size += len(chunk)
            return size > MAX_KEPT_BYTES

        await ahead.read(too_large, SECONDS_TO_KEEP)
        if ahead.whole is not None:
            self._kept = answer._replace(chunks=_once(ahead.whole))

    def _report(self, verdict_on: Callable[[Breaker, Permit, float], None]) -> None:
        if self._running is not None:
            (breaker, permit), self._running = self._running, None
            verdict_on(breaker, permit, self._interrupt.now())


def _unanswered(error: UpstreamError, *, retry_sent: bool) -> Failure:
    sends_on = not error.sent or retry_sent
    return Failure(error.summary(), error, sends_on=sends_on, may_pass=sends_on)


def _growing(number: int) -> float:
    """The seconds of a pause, of which this is the first, the second and so on."""
    state = RetryCallState(AsyncRetrying(), None, (), {})
    state.attempt_number = number
    return _PAUSES(state)


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body
