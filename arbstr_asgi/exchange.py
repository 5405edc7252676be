"""One call, from the parsed request to its row."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from math import inf

import msgspec
from starlette.types import Message, Receive, Send

from arbstr_asgi import headers as h
from arbstr_asgi.account import Account
from arbstr_asgi.callers import Caller
from arbstr_asgi.chat import ChatRequest, ensure_stream_options
from arbstr_asgi.config import Config
from arbstr_asgi.drains import Drains
from arbstr_asgi.entry import Entry
from arbstr_asgi.errors import ArbstrError, ProviderAuthenticationError, ServerError, UpstreamError, UpstreamTimeout
from arbstr_asgi.interrupt import Interrupt
from arbstr_asgi.leaving import Leaving, on_leaving
from arbstr_asgi.metering import Meter, Reading, open_meter
from arbstr_asgi.metering.plain import MAX_PLAIN_BYTES
from arbstr_asgi.provider import Provider
from arbstr_asgi.replies import RawHeaders, error_event, our_headers, send_error
from arbstr_asgi.routing import candidates
from arbstr_asgi.upstream import Reply, Upstream
from arbstr_asgi.watching import watching

SECONDS_BEHIND_DONE = 1.0  # for a provider to end a stream whose client has gone after [DONE]
SECONDS_TO_TELL = 0.5  # for a client to take the news that the server stops


class Desk(msgspec.Struct, frozen=True, kw_only=True):
    """What all calls share: the configuration, the way out, the caps, and where rows go."""

    config: Config
    upstream: Upstream
    drains: Drains
    record: Callable[[Entry], None]
    worker_id: str


class Exchange:
    """The state of one call. `run` it once; whatever happens, one finished entry is recorded."""

    def __init__(
        self,
        desk: Desk,
        request: ChatRequest,
        caller: Caller,
        correlation_id: str,
        arrival: datetime,
        arrived: float,
    ) -> None:
        """`arrival` is the time of day when the request came, `arrived` the same on the loop's clock."""
        self._desk = desk
        self._request: ChatRequest | None = request
        self._caller = caller
        self._streaming = request.stream
        self._meter: Meter | None = None
        self._complete = False
        self._headers: RawHeaders = []
        self._clock = asyncio.get_running_loop().time
        self._arrived = arrived
        self._account = Account(
            correlation_id, arrival, request.model, caller, desk.worker_id, streaming=request.stream
        )
        self._outcome = self._account.outcome
        self._correlation_id = correlation_id
        self._interrupt = Interrupt()

    async def run(self, client_headers: h.Headers, receive: Receive, send: Send, sent: Callable[[], None]) -> None:
        """Answer the client. `sent` is called once the provider has the request and its body may go."""
        try:
            with self._interrupt, watching(receive, self._client_left):
                try:
                    await self._relay(client_headers, send, sent)
                except ArbstrError as error:
                    self._outcome.error = error
            if self._interrupt.reason == "shutdown":  # a client that doesn't read is not waited for
                with suppress(TimeoutError):
                    async with asyncio.timeout(SECONDS_TO_TELL):
                        await self._settle(send)
            else:
                await self._settle(send)
        except asyncio.CancelledError:
            self._outcome.stopped = True
            raise
        except Exception:
            self._outcome.error = self._outcome.error or ServerError("Something went wrong.", code="internal_error")
            self._outcome.status = self._outcome.status or 500  # what servers then say
            raise
        finally:
            if self.draining:
                assert self._account.provider is not None
                self._desk.drains.end(self._account.provider.name, self._caller.end_user)
            self._desk.record(self._account.finished(self._elapsed_ms()))

    async def _relay(self, client_headers: h.Headers, send: Send, sent: Callable[[], None]) -> None:
        config, request = self._desk.config, self._request
        assert request is not None
        provider = candidates(config.providers, request.model)[0]
        body = request.body
        if provider.inject:
            body = ensure_stream_options(request, require=config.metering == "require")
        self._account.provider = provider
        authorized = h.first(client_headers, b"authorization") is not None
        outgoing = h.to_provider(client_headers, provider, self._correlation_id)
        self._interrupt.deadline(provider.first_byte_timeout)
        async with self._desk.upstream.open(provider, body, outgoing) as reply:
            injected = body is not request.body
            self._request = request = None  # a long stream need not hold the body that began it
            del body
            sent()
            self._answered(reply, provider, injected=injected, authorized=authorized)
            self._interrupt.deadline(provider.idle_timeout)
            await self._pump(reply, provider.idle_timeout, send)

    def _answered(self, reply: Reply, provider: Provider, *, injected: bool, authorized: bool) -> None:
        """The provider has spoken: note when, choose the meter, and let the row exist from now on."""
        self._account.latency_ms = self._elapsed_ms()
        outcome = self._outcome
        outcome.upstream_status = reply.status
        if not 200 <= reply.status < 600:
            raise UpstreamError("The provider's answer has no valid status.", code="upstream_protocol_error")
        if 300 <= reply.status < 400:
            raise UpstreamError(
                "The provider answered with a redirect, which is not followed.", code="upstream_redirect"
            )
        if reply.status in (401, 403) and provider.sends_own_credentials(client_authorizes=authorized):
            raise ProviderAuthenticationError(reply.status)
        streaming = self._streaming and outcome.answered_well
        self._meter = open_meter(
            content_type=h.first(reply.headers, b"content-type"),
            content_encoding=h.first(reply.headers, b"content-encoding"),
            streaming=streaming,
            strip=injected and streaming,
            before_done=self._cost_comment if self._desk.config.cost_comment and streaming else None,
        )
        self._account.reading = self._meter.reading
        self._headers = h.to_client(reply.headers, provider, changed=self._meter.edits)
        if h.media_type(reply.headers) == "text/event-stream":
            self._headers.append((b"x-accel-buffering", b"no"))
        self._desk.record(self._account.in_flight())

    async def _pump(self, reply: Reply, idle_timeout: float, send: Send) -> None:
        """Pass the body on, chunk by chunk, through the meter."""
        assert self._meter is not None
        meter, account, touch, clock = self._meter, self._account, self._interrupt.touch, self._clock
        held: list[bytes] | None = None
        size = 0
        if self._desk.config.response_headers == "full" and not self._streaming:
            held = []  # the headers say what the whole body cost
        else:
            await self._start(send)
        async for chunk in reply:
            out = meter.feed(chunk)
            if account.ttft_ms is None and meter.reading.started:
                account.ttft_ms = self._elapsed_ms()
            if held is not None:
                held.append(out)
                size += len(out)
                if size > MAX_PLAIN_BYTES:  # too large to be held, or to be read for its cost
                    out, held = b"".join(held), None
                    await self._start(send)
            if held is None and out and not self._outcome.left:
                touch(inf)  # what a slow client takes is not the provider's idleness
                await self._send(send, {"type": "http.response.body", "body": out, "more_body": True})
            touch(clock() + idle_timeout)
        last = meter.finish()
        self._outcome.whole = True
        if held is not None:
            last = b"".join((*held, last))
            self._headers += self._cost_headers()
            await self._start(send)
        self._complete = True
        self._interrupt.touch(inf)
        await self._send(send, {"type": "http.response.body", "body": last, "more_body": False})

    async def _start(self, send: Send) -> None:
        status = self._outcome.upstream_status
        ours = self._our_headers()
        await self._send(send, {"type": "http.response.start", "status": status, "headers": self._headers + ours})
        if not self._outcome.left:
            self._outcome.status = status

    async def _send(self, send: Send, message: Message) -> None:
        if self._outcome.left:
            return
        try:
            await send(message)
        except OSError:  # what servers of ASGI spec 2.4 raise after a hang-up
            asyncio.get_running_loop().call_soon(self._client_left)
            await asyncio.sleep(0)  # a task that cancelled itself would notice too late, outside of the interrupt

    async def _settle(self, send: Send) -> None:
        """Tell the client of what went wrong, as far as that is still possible."""
        outcome = self._outcome
        if self._account.reading.done and outcome.status is not None:  # whatever broke off did so behind the end
            outcome.error = None
            if self._interrupt.reason != "done" and not (self._complete or outcome.left):
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        if self._interrupt.reason == "timeout":
            outcome.error = UpstreamTimeout("The provider took too long.")
        elif self._interrupt.reason == "shutdown":
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

    @property
    def draining(self) -> bool:
        """Whether the provider is read on for a client that has left."""
        return self._outcome.drains

    def _client_left(self) -> None:
        """The client hung up: read on to the usage if the policy, the caps and the moment allow."""
        outcome, provider, drains = self._outcome, self._account.provider, self._desk.drains
        if outcome.left:
            return
        drain = None if provider is None else provider.drain
        action = on_leaving(
            complete=self._complete,
            done=self._account.reading.done,
            held=False,
            answered=self._account.latency_ms is not None,
            streaming=self._streaming,
            drain=drain,
            room=provider is not None
            and drain is not None
            and drains.has_room(provider.name, self._caller.end_user, drain),
        )
        if action is Leaving.END_SOON:
            self._interrupt.at_most(SECONDS_BEHIND_DONE, "done")
        outcome.left = action in (Leaving.DRAIN, Leaving.CANCEL)
        if action is Leaving.DRAIN and provider is not None and drain is not None:
            outcome.drains = True
            drains.begin(provider.name, self._caller.end_user)
            self._interrupt.at_most(drain.drain, "client_disconnected")
        elif action is Leaving.CANCEL:
            self._interrupt.fire("client_disconnected")

    def stop(self) -> None:
        """End the call now, because the server does."""
        self._interrupt.fire("shutdown")

    def _cost_headers(self) -> RawHeaders:
        found = [(b"x-arbstr-latency-ms", str(self._elapsed_ms()).encode())]
        sats = self._account.cost_sats
        return found if sats is None else [*found, (b"x-arbstr-cost-sats", f"{sats:f}".encode())]

    def _cost_comment(self, reading: Reading) -> bytes:
        sats = self._account.cost_sats
        return b": arbstr cost_sats=" + ("unknown" if sats is None else f"{sats:f}").encode() + b"\n\n"

    def _our_headers(self) -> RawHeaders:
        provider = self._account.provider.name if self._account.provider else None
        return our_headers(self._correlation_id, provider, streaming=self._streaming)

    def _elapsed_ms(self) -> int:
        return round((self._clock() - self._arrived) * 1000)
