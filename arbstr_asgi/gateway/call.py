"""One call, from the parsed request to its row."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import datetime
from math import inf

import msgspec
from starlette.types import Receive, Send

from arbstr_asgi.config.config import Config
from arbstr_asgi.database.records import LedgerEntry, PendingEntry
from arbstr_asgi.errors import ArbstrError, ProviderAuthenticationError, ServerError, UpstreamError, UpstreamTimeout
from arbstr_asgi.gateway.attempt import Closing, ProviderAttempt, ProviderResponse
from arbstr_asgi.gateway.auth import Caller
from arbstr_asgi.gateway.deadline import Deadline
from arbstr_asgi.gateway.disconnects import DisconnectAction, DisconnectListener, DrainLimiter, disconnect_action
from arbstr_asgi.gateway.estimator import Estimator, ReplySample
from arbstr_asgi.gateway.failover import Failover
from arbstr_asgi.gateway.record import CallRecord
from arbstr_asgi.gateway.relay import ResponseHead, ResponseRelay, call_headers
from arbstr_asgi.gateway.responses import error_event, send_error
from arbstr_asgi.protocols.chat import ChatRequest
from arbstr_asgi.protocols.meter import Meter
from arbstr_asgi.protocols.meters import open_meter
from arbstr_asgi.protocols.reply import ReplySummary
from arbstr_asgi.providers import headers as h
from arbstr_asgi.providers.circuit_breaker import CircuitBreakers
from arbstr_asgi.providers.headers import HeaderPolicy
from arbstr_asgi.providers.routing import PolicyMatcher, rank_providers

POLICY = b"x-arbstr-policy"
SECONDS_AFTER_DONE = 1.0  # for a provider to end a stream whose client has gone after [DONE]
SECONDS_TO_NOTIFY = 0.5  # for a client to take the news that the server stops


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


class CallDependencies(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration, the way out, the caps, what is known of the providers, and where rows go."""

    config: Config
    attempt: ProviderAttempt
    drains: DrainLimiter
    header_policies: Mapping[str, HeaderPolicy]
    """By the names of the providers."""
    matcher: PolicyMatcher
    breakers: CircuitBreakers
    record_started: Callable[[PendingEntry], None]
    """Records the first state of a call, as it is when it comes to be written."""
    record: Callable[[LedgerEntry], None]
    worker_id: str
    commit: Callable[[LedgerEntry], Awaitable[None]] | None = None
    """Records, and returns once the row is durable or has been waited for long enough; None: nobody waits."""
    estimator: Estimator | None = None
    """Takes over what has ended without usage; None: that stays so."""
    on_finish: Callable[[LedgerEntry, float], None] | None = None
    """Is told of each call that has ended, once, and how many seconds it took."""


class Call:
    """The state of one call. `run` it once; whatever happens, one finished entry is recorded."""

    def __init__(
        self,
        deps: CallDependencies,
        request: ChatRequest,
        caller: Caller,
        correlation_id: str,
        arrival: datetime,
        arrived: float,
    ) -> None:
        """`arrival` is the time of day when the request came, `arrived` the same on the loop's clock."""
        self._deps = deps
        self._request: ChatRequest | None = request
        self._meter: Meter | None = None
        self._relay: ResponseRelay | None = None
        self._failover: Failover | None = None
        self._sample: ReplySample | None = None
        self._stopwatch = Stopwatch(arrived, asyncio.get_running_loop().time)
        self._record = CallRecord(
            correlation_id,
            arrival,
            request.model,
            caller,
            deps.worker_id,
            streaming=request.stream,
            elapsed_ms=self._stopwatch.ms,
        )
        self._outcome = self._record.outcome
        self._deadline = Deadline()
        self._waiting = False  # for the row
        self._stopping = False
        self._drained: str | None = None  # the provider that is read on for a client that has left

    async def handle(self, client_headers: h.Headers, receive: Receive, send: Send, sent: Callable[[], None]) -> None:
        """Answer the client. `sent` is called once the provider has the request and its body may go."""
        try:
            with self._deadline, DisconnectListener(receive, self._on_disconnect):
                try:
                    await self._respond(client_headers, send, sent)
                except ArbstrError as error:
                    self._outcome.error = error
            if self._deadline.reason == "shutdown":  # a client that doesn't read is not waited for
                with suppress(TimeoutError):
                    async with asyncio.timeout(SECONDS_TO_NOTIFY):
                        await self._send_error_if_possible(receive, send)
            else:
                await self._send_error_if_possible(receive, send)
        except asyncio.CancelledError:
            self._outcome.stopped = True
            raise
        except Exception:
            self._outcome.error = self._outcome.error or ServerError("Something went wrong.", code="internal_error")
            self._outcome.status = self._outcome.status or 500  # what servers then say
            raise
        finally:
            if self._drained is not None:
                self._deps.drains.end(self._drained, self._record.end_user)
            if self._failover is not None:
                self._failover.report()
            last = self._record.finish()
            if last is not None:
                self._deps.record(last)
            self._notify_observers(last or self._record.committed)
            self._relay = self._meter = None  # they know us: nobody should have to look for such circles

    def _notify_observers(self, entry: LedgerEntry | None) -> None:
        deps, record = self._deps, self._record
        if deps.on_finish is not None and entry is not None:
            deps.on_finish(entry, self._stopwatch.seconds())
        kept, self._sample = self._sample, None
        if deps.estimator is not None and kept is not None and entry is not None:
            deps.estimator.submit(kept, entry, record.reply.events, record.total_sats)

    async def _respond(self, client_headers: h.Headers, send: Send, sent: Callable[[], None]) -> None:
        deps, record, request = self._deps, self._record, self._request
        assert request is not None
        rule = deps.matcher.match(request, client_headers.get(POLICY))
        record.policy = None if rule is None else rule.name
        found = rank_providers(deps.config.providers, request, rule)
        record.candidates = [candidate.provider for candidate in found]
        failover = self._failover = Failover(deps.attempt, deps.breakers, record, deps.config.failover, self._deadline)
        authorized = b"authorization" in client_headers
        async with Closing() as closing:
            response = await failover.send(closing, request, found, client_headers)
            if deps.estimator is not None:
                self._sample = deps.estimator.sample(request.body, streaming=request.stream)
            self._request = request = None  # a long stream need not hold the body that began it
            sent()
            meter, head = self._answered(response, authorized=authorized)
            self._deadline.start(response.provider.idle_timeout)
            relay = self._relay = ResponseRelay(
                send, record, self._deadline, left=self._on_disconnect, commit=self._commit
            )
            await relay.stream(
                head,
                response.chunks,
                meter,
                hold_all=head.says_cost or (deps.commit is not None and head.is_all),
                holding=None if deps.commit is None else head.strict_hold(),
                idle_timeout=response.provider.idle_timeout,
                kept_of=self._sample if self._outcome.answered_well and response.reply.headers.is_plain else None,
            )
        await relay.end()

    def _answered(self, response: ProviderResponse, *, authorized: bool) -> tuple[Meter, ResponseHead]:
        """The provider has spoken: note when, choose the meter, and let the row exist from now on."""
        record, outcome, reply, provider = self._record, self._outcome, response.reply, response.provider
        record.latency_ms = response.latency_ms
        outcome.upstream_status = reply.status
        if not 200 <= reply.status < 600:
            raise UpstreamError("The provider's response has no valid status.", code="upstream_protocol_error")
        if 300 <= reply.status < 400:
            raise UpstreamError(
                "The provider answered with a redirect, which is not followed.", code="upstream_redirect"
            )
        if reply.status in (401, 403) and provider.sends_own_credentials(client_authorizes=authorized):
            raise ProviderAuthenticationError(reply.status)
        streaming = record.streaming and outcome.answered_well
        meter = self._meter = open_meter(
            content_type=reply.headers.get(b"content-type"),
            content_encoding=reply.headers.get(b"content-encoding"),
            strip=response.injected and streaming,
            before_done=self._cost_comment if self._deps.config.cost_comment and streaming else None,
        )
        record.reply = meter.summary
        deps = self._deps
        head = ResponseHead(
            reply,
            deps.header_policies[provider.name],
            record,
            changed=meter.edits,
            says_cost=deps.config.response_headers == "full",
        )
        deps.record_started(record)
        return meter, head

    async def _send_error_if_possible(self, receive: Receive, send: Send) -> None:
        """Tell the client of what went wrong, as far as that is still possible."""
        outcome = self._outcome
        if self._record.reply.seen_done and outcome.status is not None:  # whatever broke off did so behind the end
            outcome.error = None
            if self._deadline.reason != "done" and not (self._complete or outcome.client_gone):
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        if self._deadline.reason == "timeout":
            outcome.error = UpstreamTimeout("The provider took too long.")
        elif self._deadline.reason == "shutdown":
            outcome.stopped = True
            outcome.error = ServerError("The server is shutting down.", code="shutdown")
        error = outcome.error
        if error is None or outcome.client_gone:
            return
        if outcome.status is None:
            await self._commit_watched(receive, error.status_code)
            if outcome.client_gone:
                return
            outcome.status = error.status_code
            await send_error(send, error, call_headers(self._record))
        elif self._meter is not None and self._meter.abandon():
            await self._commit_watched(receive, outcome.status)
            if not outcome.client_gone:
                await send({"type": "http.response.body", "body": error_event(error), "more_body": False})
        else:
            raise error  # an app that raises is all that makes a server abort the connection

    @property
    def _complete(self) -> bool:
        return self._relay is not None and self._relay.complete

    @property
    def draining(self) -> bool:
        """Whether the provider is read on for a client that has left."""
        return self._outcome.drains

    @property
    def streams(self) -> bool:
        """Whether a provider has begun to response with a stream."""
        return self._record.streaming and self._meter is not None

    async def _commit_watched(self, receive: Receive, status: int) -> None:
        """The same as `_commit` outside of the relay, where nobody else would notice a hang-up."""
        if self._deps.commit is not None:
            self._deadline = Deadline()
            with self._deadline, DisconnectListener(receive, self._on_disconnect):
                await self._commit(status)

    async def _commit(self, status: int | None = None) -> None:
        """Have the row made durable that the client's reply will have if what is kept back is sent well."""
        if self._deps.commit is None or self._record.committed is not None:
            return
        self._deadline.extend(inf)
        self._waiting = self._outcome.held = True
        try:
            await self._deps.commit(self._record.commit(status or self._outcome.upstream_status))
        finally:
            self._waiting = False
        if self._stopping:
            self._deadline.limit_total(SECONDS_TO_NOTIFY, "shutdown")

    def _on_disconnect(self, lost: bool = False) -> None:
        """The client hung up: read on to the usage if the policy, the caps and the moment allow.

        `lost`: bytes that were sent have not arrived.
        """
        outcome, provider, drains = self._outcome, self._record.provider, self._deps.drains
        if outcome.client_gone:
            return
        drain = None if provider is None else provider.drain
        action = disconnect_action(
            complete=self._complete,
            done=self._record.reply.seen_done,
            held=self._waiting or (lost and outcome.held),
            answered=self._record.latency_ms is not None or self._record.attempts.answered_well,
            streaming=self._record.streaming,
            drain=drain,
            room=provider is not None
            and drain is not None
            and drains.has_room(provider.name, self._record.end_user, drain),
        )
        if action is DisconnectAction.END_SOON:
            self._deadline.limit_total(SECONDS_AFTER_DONE, "done")
        outcome.client_gone = action in (DisconnectAction.DRAIN, DisconnectAction.CANCEL)
        if action is DisconnectAction.DRAIN and provider is not None and drain is not None:
            outcome.drains = True
            self._drained = provider.name
            drains.begin(provider.name, self._record.end_user)
            self._deadline.limit_total(drain.drain, "client_disconnected")
        elif action is DisconnectAction.CANCEL:
            self._deadline.cancel("client_disconnected")

    def stop(self) -> None:
        """End the call now, because the server does; one that waits for its row does so soon anyway."""
        self._stopping = True
        if not self._waiting:
            self._deadline.cancel("shutdown")

    def _cost_comment(self, reading: ReplySummary) -> bytes:
        sats = self._record.cost_sats
        return b": arbstr cost_sats=" + ("unknown" if sats is None else f"{sats:f}").encode() + b"\n\n"
