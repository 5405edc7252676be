"""One call, from the parsed request to its row."""

import asyncio
import os
import socket
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from decimal import Decimal
from math import inf
from typing import Any

import msgspec

from arbstr_asgi import headers as h
from arbstr_asgi.body import Receive
from arbstr_asgi.callers import Caller
from arbstr_asgi.chat import ChatRequest, ensure_stream_options
from arbstr_asgi.config import Config, Provider
from arbstr_asgi.drains import Drains
from arbstr_asgi.entry import Entry
from arbstr_asgi.errors import ArbstrError, ProviderAuthenticationError, ServerError, UpstreamError, UpstreamTimeout
from arbstr_asgi.interrupt import Interrupt
from arbstr_asgi.metering import Meter, Reading, open_meter
from arbstr_asgi.outcome import Outcome, usage_source
from arbstr_asgi.pricing import cost
from arbstr_asgi.replies import RawHeaders, Send, error_event, our_headers, send_error
from arbstr_asgi.routing import candidates
from arbstr_asgi.upstream import Reply, Upstream
from arbstr_asgi.watching import watching


class Desk(msgspec.Struct, frozen=True, kw_only=True):
    """What all calls share: the configuration, the way out, the caps, and where rows go."""

    config: Config
    upstream: Upstream
    drains: Drains
    record: Callable[[Entry], None]
    worker_id: str = f"{socket.gethostname()[:40]}:{os.getpid()}"


class Exchange:
    """The state of one call. `run` it once; whatever happens, one finished entry is recorded."""

    def __init__(
        self, desk: Desk, request: ChatRequest, caller: Caller, correlation_id: str, arrival: datetime
    ) -> None:
        self._desk = desk
        self._caller = caller
        self._streaming = request.stream
        self._provider: Provider | None = None
        self._meter: Meter | None = None
        self._reading = Reading()
        self._outcome = Outcome()
        self._draining = False
        self._complete = False
        self._headers: RawHeaders = []
        self._clock = asyncio.get_running_loop().time
        self._began = self._clock()
        self._latency_ms: int | None = None
        self._ttft_ms: int | None = None
        self.correlation_id = correlation_id
        self.interrupt = Interrupt()
        self._entry = Entry(
            correlation_id=correlation_id,
            timestamp=arrival,
            model=request.model,
            streaming=request.stream,
            end_user=caller.end_user,
            tenant=caller.tenant,
            tags=caller.tags_json(),
            worker_id=desk.worker_id,
        )

    async def run(
        self, request: ChatRequest, client_headers: h.Headers, receive: Receive, send: Send, sent: Callable[[], None]
    ) -> None:
        """Answer the client. `sent` is called once the provider has the request and its body may go."""
        try:
            with self.interrupt, watching(receive, self._client_left):
                try:
                    await self._relay(request, client_headers, send, sent)
                except ArbstrError as error:
                    self._outcome.error = error
            await self._settle(send)
        except asyncio.CancelledError:
            self._outcome.stopped = True
            raise
        finally:
            if self._draining:
                self._desk.drains.end(self._caller.end_user)
            self._desk.record(self._finished())

    async def _relay(
        self, request: ChatRequest, client_headers: h.Headers, send: Send, sent: Callable[[], None]
    ) -> None:
        config = self._desk.config
        provider = self._provider = candidates(config.providers, request.model)[0]
        body = request.body
        if provider.inject:
            body = ensure_stream_options(request, require=config.metering == "require")
        outgoing = h.to_provider(client_headers, provider, self.correlation_id)
        self.interrupt.deadline(provider.first_byte_timeout)
        async with self._desk.upstream.open(provider, body, outgoing) as reply:
            injected = body is not request.body
            del request, body
            sent()
            self._answered(reply, provider, injected=injected)
            self.interrupt.deadline(provider.idle_timeout)
            await self._pump(reply, provider.idle_timeout, send)

    def _answered(self, reply: Reply, provider: Provider, *, injected: bool) -> None:
        """The provider has spoken: note when, choose the meter, and let the row exist from now on."""
        self._latency_ms = self._elapsed_ms()
        outcome = self._outcome
        outcome.upstream_status = reply.status
        if 300 <= reply.status < 400:
            raise UpstreamError(
                "The provider answered with a redirect, which is not followed.", code="upstream_redirect"
            )
        if reply.status in (401, 403) and provider.sends_own_credentials:
            raise ProviderAuthenticationError(reply.status)
        media_type = h.media_type(reply.headers)
        encoding = h.first(reply.headers, b"content-encoding")
        streaming = self._streaming and outcome.answered_well
        self._meter = open_meter(
            content_type=media_type,
            content_encoding=encoding,
            streaming=streaming,
            strip=injected and streaming,
            before_done=self._cost_comment if self._desk.config.cost_comment and streaming else None,
        )
        self._reading = self._meter.reading
        changed = streaming and (injected or self._desk.config.cost_comment) and not encoding
        self._headers = h.to_client(reply.headers, provider, changed=changed)
        if media_type == "text/event-stream":
            self._headers.append((b"x-accel-buffering", b"no"))
        self._desk.record(self._row(0))

    async def _pump(self, reply: Reply, idle_timeout: float, send: Send) -> None:
        """Pass the body on, chunk by chunk, through the meter."""
        assert self._meter is not None
        meter, reading, touch, clock = self._meter, self._reading, self.interrupt.touch, self._clock
        held: list[bytes] | None = None
        if self._desk.config.response_headers == "full" and not self._streaming:
            held = []  # the headers say what the whole body cost
        else:
            await self._start(send)
        async for chunk in reply:
            out = meter.feed(chunk)
            if self._ttft_ms is None and reading.started:
                self._ttft_ms = self._elapsed_ms()
            if held is not None:
                held.append(out)
            elif out and not self._outcome.left:
                touch(inf)  # what a slow client takes is not the provider's idleness
                await self._send(send, {"type": "http.response.body", "body": out, "more_body": True})
            touch(clock() + idle_timeout)
        last = meter.finish()
        if held is not None:
            last = b"".join((*held, last))
            self._headers += self._cost_headers()
            await self._start(send)
        self._complete = True
        self.interrupt.touch(inf)
        await self._send(send, {"type": "http.response.body", "body": last, "more_body": False})

    async def _start(self, send: Send) -> None:
        status = self._outcome.upstream_status
        ours = self._our_headers()
        await self._send(send, {"type": "http.response.start", "status": status, "headers": self._headers + ours})
        if not self._outcome.left:
            self._outcome.status = status

    async def _send(self, send: Send, message: MutableMapping[str, Any]) -> None:
        if self._outcome.left:
            return
        try:
            await send(message)
        except OSError:  # what servers of ASGI spec 2.4 raise after a hang-up
            self._client_left()

    async def _settle(self, send: Send) -> None:
        """Tell the client of what went wrong, as far as that is still possible."""
        outcome = self._outcome
        if self.interrupt.reason == "timeout":
            outcome.error = UpstreamTimeout("The provider took too long.")
        elif self.interrupt.reason == "shutdown":
            outcome.stopped = True
            outcome.error = ServerError("The server is shutting down.", code="shutdown")
        error = outcome.error
        if error is None or outcome.left:
            return
        if outcome.status is None:
            outcome.status = error.status_code
            await send_error(send, error, self._our_headers())
        elif self._meter is not None and self._meter.abandon():
            await send({"type": "http.response.body", "body": error_event(error), "more_body": False})
        else:
            raise error  # an app that raises is all that makes a server abort the connection

    def _client_left(self) -> None:
        """The client hung up: read on to the usage if the policy, the caps and the moment allow."""
        outcome = self._outcome
        if outcome.left or self._complete or self._reading.done:
            return
        outcome.left = True
        before_answer = self._latency_ms is None
        limits = self._desk.config.limits
        if (
            self._provider is None
            or self._provider.disconnect == "cancel"
            or (before_answer and self._streaming)
            or not self._desk.drains.begin(self._caller.end_user)
        ):
            self.interrupt.fire("client_disconnected")
            return
        self._draining = True
        self.interrupt.at_most(limits.drain_timeout, "client_disconnected")

    def stop(self) -> None:
        """End the call now, because the server does."""
        self.interrupt.fire("shutdown")

    @property
    def draining(self) -> bool:
        """Whether the provider is being read on for a client that has left."""
        return self._draining

    def _row(self, revision: int, **facts: Any) -> Entry:
        return msgspec.structs.replace(
            self._entry,
            revision=revision,
            provider=self._provider.name if self._provider else None,
            latency_ms=self._latency_ms,
            attempts=1 if self._provider else 0,
            **facts,
        )

    def _finished(self) -> Entry:
        reading, outcome, usage = self._reading, self._outcome, self._reading.usage
        end_reason = outcome.end_reason_of(reading)
        facts: dict[str, Any] = {}
        if usage is not None:
            facts = {name: getattr(usage, name) for name in _COUNTS}
            facts["usage_json"] = usage.raw_json
            facts["provider_cost_usd"] = None if usage.cost_usd is None else Decimal(usage.cost_usd)
        return self._row(
            1,
            stream_duration_ms=self._elapsed_ms() if self._streaming and self._latency_ms is not None else None,
            success=outcome.answered_well and end_reason in ("completed", "client_disconnected"),
            error_status=outcome.error_status,
            error_message=outcome.error_message(reading),
            cost_sats=self._cost(reading),
            response_model=reading.model,
            response_id=reading.id,
            finish_reason=reading.finish_reason,
            service_tier=reading.service_tier,
            usage_source=usage_source(reading),
            end_reason=end_reason,
            ttft_ms=self._ttft_ms,
            **facts,
        )

    def _cost(self, reading: Reading) -> Decimal | None:
        return None if self._provider is None else cost(reading.usage, self._provider)

    def _cost_headers(self) -> RawHeaders:
        found = [(b"x-arbstr-latency-ms", str(self._elapsed_ms()).encode())]
        sats = self._cost(self._reading)
        return found if sats is None else [*found, (b"x-arbstr-cost-sats", f"{sats:f}".encode())]

    def _cost_comment(self, reading: Reading) -> bytes:
        sats = self._cost(reading)
        return b": arbstr cost_sats=" + ("unknown" if sats is None else f"{sats:f}").encode() + b"\n\n"

    def _our_headers(self) -> RawHeaders:
        provider = self._provider.name if self._provider else None
        return our_headers(self.correlation_id, provider, streaming=self._streaming)

    def _elapsed_ms(self) -> int:
        return round((self._clock() - self._began) * 1000)


_COUNTS = (
    "input_tokens",
    "output_tokens",
    "total_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
)


def now() -> datetime:
    """The time of day for a row; durations come from the loop's clock."""
    return datetime.now(UTC)
