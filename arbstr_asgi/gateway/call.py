"""One call, from the parsed request to its row: the main path."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from math import inf
from time import monotonic

import msgspec
from starlette.types import Receive, Send

from arbstr_asgi._utils import Throttle
from arbstr_asgi.config.config import Config
from arbstr_asgi.database.records import LedgerEntry, PendingEntry
from arbstr_asgi.errors import ArbstrError, ProviderAuthenticationError, ServerError, UpstreamError, UpstreamTimeout
from arbstr_asgi.gateway.attempt import MAX_MODEL_SHOWN, ProviderAttempt, ProviderResponse
from arbstr_asgi.gateway.auth import Caller
from arbstr_asgi.gateway.deadline import Deadline, DeadlineTimer
from arbstr_asgi.gateway.disconnects import DisconnectAction, DisconnectListener, DrainLimiter, disconnect_action
from arbstr_asgi.gateway.estimator import Estimator, ReplySample, SampledMeter
from arbstr_asgi.gateway.failover import Failover
from arbstr_asgi.gateway.record import CallRecord, Stopwatch
from arbstr_asgi.gateway.relay import (
    SECONDS_TO_NOTIFY,
    Commit,
    CostHeadersWriter,
    DurableRow,
    ResponseWriter,
    StrictWriter,
    Writer,
    call_headers,
    response_headers,
)
from arbstr_asgi.gateway.responses import error_event, send_error
from arbstr_asgi.protocols.chat import ChatRequest
from arbstr_asgi.protocols.meter import Meter
from arbstr_asgi.protocols.meters import open_meter
from arbstr_asgi.protocols.reply import ReplySummary
from arbstr_asgi.providers import headers as h
from arbstr_asgi.providers.circuit_breaker import CircuitBreakers
from arbstr_asgi.providers.headers import HeaderPolicy
from arbstr_asgi.providers.retry_policy import ACCOUNT
from arbstr_asgi.providers.routing import PolicyMatcher, rank_providers
from arbstr_asgi.telemetry.observer import CallObserver

logger = logging.getLogger("arbstr_asgi")
POLICY = b"x-arbstr-policy"
SECONDS_AFTER_DONE = 1.0  # for a provider to end a stream whose client has gone after [DONE]
SECONDS_UNTIL_RECORDED = 0.05  # a plain call that is over by then has its last row only
SECONDS_BETWEEN_WARNINGS = 3600.0  # about one provider and model
MAX_PAIRS = 1_000  # of provider and model, whose last warning is remembered


class UsageWarnings:
    """Logs contradictory usage, once per SECONDS_BETWEEN_WARNINGS for each provider and model."""

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self._now = now
        self._throttles: dict[tuple[str, str], Throttle] = {}

    def contradictory(self, provider: str, model: str) -> None:
        """A reply of this provider to this model has usage whose counts can not all be true."""
        throttle = self._throttles.pop((provider, model), None) or Throttle(SECONDS_BETWEEN_WARNINGS, self._now)
        self._throttles[provider, model] = throttle
        if len(self._throttles) > MAX_PAIRS:
            del self._throttles[next(iter(self._throttles))]
        if throttle.allow():
            logger.warning(
                "provider %s reports contradictory usage for model %r: the counts of such replies can not all be true, "
                "so their calls have no cost",
                provider,
                model[:MAX_MODEL_SHOWN],
            )


class CallDependencies(msgspec.Struct, frozen=True, kw_only=True):
    """What all calls of a gateway share: its configuration, its collaborators, and where rows go."""

    config: Config
    attempt: ProviderAttempt
    drains: DrainLimiter
    header_policies: Mapping[str, HeaderPolicy]
    """By the names of the providers."""
    matcher: PolicyMatcher
    breakers: CircuitBreakers
    timer: DeadlineTimer
    record_started: Callable[[PendingEntry], None]
    """Records the first state of a call, as it is when it comes to be written."""
    record: Callable[[LedgerEntry], None]
    worker_id: str
    commit: Commit | None = None
    """Records, and returns once the row is durable or has been waited for long enough; None: nobody waits."""
    estimator: Estimator | None = None
    """Takes over what has ended without usage; None: that stays so."""
    observers: Sequence[CallObserver] = ()
    usage_warnings: UsageWarnings = msgspec.field(default_factory=UsageWarnings)


class Call:
    """The state of one call. `handle` it once; whatever happens, one finished entry is recorded."""

    __slots__ = (
        "_deadline",
        "_deps",
        "_draining",
        "_durable",
        "_failover",
        "_listener",
        "_meter",
        "_outcome",
        "_record",
        "_request",
        "_sample",
    )

    def __init__(
        self,
        deps: CallDependencies,
        request: ChatRequest,
        caller: Caller,
        correlation_id: str,
        arrival: datetime,
        clock: Stopwatch,
    ) -> None:
        """`arrival` is the time of day when the request came, and `clock` began."""
        self._deps = deps
        self._request: ChatRequest | None = request
        record = self._record = CallRecord(
            correlation_id, arrival, request.model, caller, deps.worker_id, streaming=request.stream, clock=clock
        )
        self._outcome = record.outcome
        self._deadline = Deadline(deps.timer)
        self._failover = Failover(deps.attempt, deps.breakers, record, deps.config.failover, self._deadline)
        self._durable = None if deps.commit is None else DurableRow(record, deps.commit)
        self._listener: DisconnectListener | None = None
        self._meter: Meter | None = None
        self._sample: ReplySample | None = None
        self._draining: str | None = None  # the provider whose reply is read on for a client that has left

    async def handle(
        self, client_headers: h.Headers, receive: Receive, send: Send, release_body: Callable[[], None]
    ) -> None:
        """Answer the client. `release_body` is called once the provider has the request, and its body may go."""
        try:
            with self._deadline, DisconnectListener(receive, self._on_disconnect, self._deadline) as self._listener:
                try:
                    await self._respond(client_headers, send, release_body)
                except ArbstrError as error:
                    self._outcome.error = error
            await self._end_response(receive, send)
        except asyncio.CancelledError:
            self._outcome.stopped = True
            raise
        except Exception:
            self._outcome.error = self._outcome.error or ServerError("Something went wrong.", code="internal_error")
            self._outcome.status = self._outcome.status or 500  # what servers then say
            raise
        finally:
            self._finish()

    async def _respond(self, client_headers: h.Headers, send: Send, release_body: Callable[[], None]) -> None:
        """Choose providers, send the request until one answers, and relay its reply."""
        deps, record, request = self._deps, self._record, self._request
        assert request is not None
        rule = deps.matcher.match(request, client_headers.get(POLICY))
        record.policy = None if rule is None else rule.name
        candidates = rank_providers(deps.config.providers, request, rule)
        record.candidates = [candidate.provider for candidate in candidates]
        try:
            response = await self._failover.send(request, candidates, client_headers)
            if deps.estimator is not None:
                self._sample = deps.estimator.sample(request.body, streaming=request.stream)
            self._request = request = None  # a long stream need not hold the body that began it
            release_body()
            self._check(response, client_authorizes=b"authorization" in client_headers)
            meter, writer = self._open(response, send)
            self._record_started()
            try:
                rest = await self._relay(response, meter, writer)
            except BaseException:
                meter.abandon()  # what has come may be whole, and say what it used
                raise
        finally:
            await self._failover.close()
        await writer.end(rest)

    async def _relay(self, response: ProviderResponse, meter: Meter, writer: Writer) -> bytes:
        """The head and the body, chunk by chunk, through the meter; returns the last bytes, which end the response."""
        record, outcome, deadline, reply = self._record, self._outcome, self._deadline, response.reply
        read, feed, summary, write = reply.read, meter.feed, meter.summary, writer.write
        now, idle_timeout = asyncio.get_running_loop().time, response.provider.idle_timeout
        last, is_to_start = b"", True
        deadline.start(idle_timeout)
        await writer.start()
        while chunk := await read():
            deadline.limit = inf  # what a slow client takes is not the provider's idleness
            out = feed(chunk)
            while meter.pending:  # a large chunk, for which others need not wait
                if out and not outcome.client_gone:
                    await write(out)
                await asyncio.sleep(0)
                out = meter.resume()
            if is_to_start and summary.started:
                record.ttft_ms, is_to_start = record.clock.ms(), False
            if reply.ended:  # nothing can follow: it goes with the end
                last = out
                break
            if out and not outcome.client_gone:
                await write(out)
            deadline.limit = now() + idle_timeout
        last += meter.finish()
        outcome.complete = True
        deadline.limit = inf
        return last

    def _check(self, response: ProviderResponse, *, client_authorizes: bool) -> None:
        """Note the provider's answer. Raises UpstreamError for one that can't be passed on."""
        status = response.reply.status
        self._record.latency_ms = response.latency_ms
        self._outcome.upstream_status = status
        if not 200 <= status < 600:
            raise UpstreamError("The provider's response has no valid status.", code="upstream_protocol_error")
        if 300 <= status < 400:
            raise UpstreamError(
                "The provider answered with a redirect, which is not followed.", code="upstream_redirect"
            )
        if status in ACCOUNT and response.provider.sends_own_credentials(client_authorizes=client_authorizes):
            raise ProviderAuthenticationError(status)

    def _open(self, response: ProviderResponse, send: Send) -> tuple[Meter, Writer]:
        """The meter and the writer for a response; what only some calls need is wrapped around them here."""
        deps, record, reply = self._deps, self._record, response.reply
        streaming = record.streaming and self._outcome.answered_well
        meter: Meter = open_meter(
            content_type=reply.headers.get(b"content-type"),
            content_encoding=reply.headers.get(b"content-encoding"),
            strip=response.injected and streaming,
            before_done=self._cost_comment if deps.config.cost_comment and streaming else None,
        )
        record.reply = meter.summary
        policy = deps.header_policies[response.provider.name]
        headers = response_headers(reply, policy, record, changed=meter.edits)
        writer: Writer = ResponseWriter(send, record, headers, self._on_disconnect)
        if self._durable is not None:
            writer = StrictWriter(writer, headers, reply, record, self._durable, self._deadline)
        if deps.config.response_headers == "full" and not record.streaming:
            writer = CostHeadersWriter(writer, headers, record)
        if self._sample is not None and self._outcome.answered_well and reply.headers.is_plain:
            meter = SampledMeter(meter, self._sample)
        self._meter = meter
        return meter, writer

    def _record_started(self) -> None:
        """Let the row exist: that of a stream from now on, any other's if the call goes on a little longer."""
        deps, record = self._deps, self._record
        if record.streaming:
            assert self._listener is not None
            self._listener.start()
            deps.record_started(record)
        else:
            self._deadline.call_later(SECONDS_UNTIL_RECORDED, lambda: deps.record_started(record))

    async def _end_response(self, receive: Receive, send: Send) -> None:
        """What the relay has left open: nothing, or an error that the client is still to be told of."""
        if self._deadline.reason == "shutdown":  # a client that doesn't read is not waited for
            with suppress(TimeoutError):
                async with asyncio.timeout(SECONDS_TO_NOTIFY):
                    await self._send_error_if_possible(receive, send)
        elif self._deadline.reason is not None or self._outcome.error is not None:
            await self._send_error_if_possible(receive, send)

    async def _send_error_if_possible(self, receive: Receive, send: Send) -> None:
        """Tell the client of what went wrong, as far as that is still possible."""
        outcome = self._outcome
        if self._record.reply.seen_done and outcome.status is not None:  # whatever broke off did so behind the end
            outcome.error = None
            if self._deadline.reason != "done" and not (outcome.end_sent or outcome.client_gone):
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

    async def _commit_watched(self, receive: Receive, status: int) -> None:
        """With strict durability: have the row made durable before an error is sent, unless the client hangs up."""
        if self._durable is not None:
            self._deadline = Deadline(self._deps.timer)
            with self._deadline, DisconnectListener(receive, self._on_disconnect):
                await self._durable.commit(self._deadline, status)

    def _on_disconnect(self, lost: bool = False) -> None:
        """The client hung up: read on to the usage if the policy, the caps and the moment allow.

        `lost`: bytes that were sent have not arrived.
        """
        outcome, provider, drains = self._outcome, self._record.provider, self._deps.drains
        if outcome.client_gone:
            return
        drain = None if provider is None else provider.drain
        action = disconnect_action(
            complete=outcome.end_sent,
            done=self._record.reply.seen_done,
            held=(self._durable is not None and self._durable.waiting) or (lost and outcome.held),
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
            self._draining = provider.name
            drains.begin(provider.name, self._record.end_user)
            self._deadline.limit_total(drain.drain, "client_disconnected")
        elif action is DisconnectAction.CANCEL:
            self._deadline.cancel("client_disconnected")

    def _finish(self) -> None:
        """Give back what is held, and record how the call ended."""
        deps, record = self._deps, self._record
        if self._draining is not None:
            deps.drains.end(self._draining, record.end_user)
        self._failover.report()
        last = record.finish()
        if last is not None:
            deps.record(last)
        entry = last or record.committed
        if entry is not None:
            for observer in deps.observers:
                observer.on_finish(entry, record.clock.seconds())
            if deps.estimator is not None and self._sample is not None:
                deps.estimator.submit(self._sample, entry, record.reply.events, record.total_sats)
        usage = record.reply.usage
        if usage is not None and usage.is_contradictory and record.provider is not None:
            deps.usage_warnings.contradictory(record.provider.name, record.model)
        self._listener = self._meter = self._sample = None  # they know us: nobody should have to look for such circles

    def stop(self) -> None:
        """End the call now, because the server does; one that waits for its row does so soon anyway."""
        if self._durable is not None:
            self._durable.stop()
        if self._durable is None or not self._durable.waiting:
            self._deadline.cancel("shutdown")

    @property
    def draining(self) -> bool:
        """Whether the provider's reply is read on for a client that has left."""
        return self._outcome.drains

    @property
    def streams(self) -> bool:
        """Whether a provider has begun to respond to a streaming request."""
        return self._record.streaming and self._meter is not None

    def _cost_comment(self, summary: ReplySummary) -> bytes:
        sats = self._record.cost_sats
        return b": arbstr cost_sats=" + ("unknown" if sats is None else f"{sats:f}").encode() + b"\n\n"
