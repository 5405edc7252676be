"""Relays a provider's reply to the client: its headers, then its chunks."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from math import inf

from starlette.types import Message, Send

from arbstr_asgi.gateway.deadline import Deadline
from arbstr_asgi.gateway.estimator import ReplySample
from arbstr_asgi.gateway.record import CallRecord
from arbstr_asgi.gateway.responses import RawHeaders, our_headers
from arbstr_asgi.gateway.strict import StrictHold
from arbstr_asgi.protocols.body_meter import MAX_PLAIN_BYTES
from arbstr_asgi.protocols.meter import Meter
from arbstr_asgi.providers import headers as h
from arbstr_asgi.providers.client import ProviderReply, read_error

EVENTS = "text/event-stream"


class ResponseHead:
    """What the client is told in front of a provider's reply."""

    def __init__(
        self, reply: ProviderReply, policy: h.HeaderPolicy, record: CallRecord, *, changed: bool, says_cost: bool
    ) -> None:
        """`changed`: the body's bytes will not be the provider's. `says_cost` wants the cost where it is known."""
        self._record = record
        self._provider_headers = policy.response_headers(reply.headers, changed=changed)
        self._is_events = reply.headers.media_type == EVENTS
        if self._is_events:
            self._provider_headers.append((b"x-accel-buffering", b"no"))
        self.says_cost = says_cost and not record.streaming
        """Whether it should wait until the cost is known."""

    def headers(self) -> RawHeaders:
        """Theirs and ours, as things are now."""
        record = self._record
        headers = self._provider_headers + call_headers(record)
        if self.says_cost and record.outcome.complete:  # else the head went first
            headers.append((b"x-arbstr-latency-ms", str(record.elapsed_ms()).encode()))
            sats = record.cost_sats
            if sats is not None:
                headers.append((b"x-arbstr-cost-sats", f"{sats:f}".encode()))
        return headers

    @property
    def length(self) -> int | None:
        """How many bytes the client has been told of; None where it was not told, or is to wait for the end."""
        said = h.Headers(self._provider_headers).get(b"content-length")
        return int(said) if said is not None and said.isdecimal() and len(said) < 20 else None

    @property
    def is_all(self) -> bool:
        """Whether the client has all of the reply with its head."""
        return (
            self._record.outcome.upstream_status == 204
            or h.Headers(self._provider_headers).get(b"content-length") == "0"
        )

    def strict_hold(self) -> StrictHold:
        """What of the body makes the reply whole."""
        return StrictHold(has_length=b"content-length" in h.Headers(self._provider_headers), is_events=self._is_events)


def call_headers(record: CallRecord) -> RawHeaders:
    """The headers that say which call this was."""
    provider = record.provider.name if record.provider else None
    return our_headers(
        record.correlation_id, provider, streaming=record.streaming, failed=record.attempts.failures_by_provider
    )


class ResponseRelay:
    """The client's side of one call. `complete` says that the end of the reply has been handed to the server."""

    def __init__(
        self,
        send: Send,
        record: CallRecord,
        deadline: Deadline,
        *,
        left: Callable[[bool], None],
        commit: Callable[[], Awaitable[None]],
    ) -> None:
        """`commit` returns when the reply's row may be taken for durable.

        `left` is called when it turns out that the client has gone, with whether bytes were lost by that.
        """
        self.complete = False
        self._send = send
        self._record = record
        self._outcome = record.outcome
        self._deadline = deadline
        self._head: ResponseHead | None = None
        self._on_disconnect = left
        self._commit = commit
        self._started = False
        self._idle_timeout = inf
        self._held: list[bytes] | None = None
        self._strict_hold: StrictHold | None = None
        self._last = b""
        self._rest = b""

    async def stream(
        self,
        head: ResponseHead,
        chunks: AsyncIterable[bytes],
        meter: Meter,
        *,
        hold_all: bool,
        holding: StrictHold | None,
        idle_timeout: float,
        kept_of: ReplySample | None = None,
    ) -> None:
        """The head and the body, chunk by chunk, through the meter; what comes of its end is for `end`.

        `chunks` may raise anything. `hold_all` keeps everything until the body has been read, so that the head can
        say what it cost. `holding` keeps back what must not go before the row is durable. `kept_of` keeps what comes.
        """
        self._head, self._idle_timeout = head, idle_timeout
        if hold_all:
            self._held = []
        else:
            await self._start()
        self._strict_hold = holding
        coming = aiter(chunks)
        try:
            if hold_all or holding is not None or kept_of is not None:
                await self._stream_held(coming, meter, kept_of)
            else:
                await self._stream(coming, meter)
            self._last += await _rest(meter)
        except BaseException:
            meter.abandon()  # what has come of it may be whole, and say what it used
            raise
        kept = b"" if self._strict_hold is None else self._strict_hold.flush()
        self._rest = b"".join((kept, *(self._held or ()), self._last, meter.finish()))
        self._outcome.complete = True
        self._deadline.limit = inf

    async def _stream(self, coming: AsyncIterator[bytes], meter: Meter) -> None:
        """What nearly every chunk meets, and nothing else."""
        outcome, deadline, send, feed, summary = self._outcome, self._deadline, self._send, meter.feed, meter.summary
        now, idle_timeout, next_chunk = asyncio.get_running_loop().time, self._idle_timeout, coming.__anext__
        record, is_to_start, missing = self._record, True, self._head.length if self._head else None
        while True:
            if meter.pending:
                await asyncio.sleep(0)
                out = meter.resume()
            else:
                try:
                    chunk = await next_chunk()
                except StopAsyncIteration:
                    return
                except Exception as error:  # noqa: BLE001 - transports let more through than httpx.HTTPError
                    raise read_error(error) from None
                out = feed(chunk)
            if is_to_start and summary.started:
                record.ttft_ms, is_to_start = record.elapsed_ms(), False
            if missing is not None:
                missing -= len(out)
                if not missing:  # nothing can follow, whatever the provider does: it goes with the end
                    self._last = out
                    return
            if out and not outcome.client_gone:
                deadline.limit = inf  # what a slow client takes is not the provider's idleness
                try:
                    await send({"type": "http.response.body", "body": out, "more_body": True})
                except OSError:
                    await self._on_send_error(out)
            deadline.limit = now() + idle_timeout

    async def _stream_held(self, coming: AsyncIterator[bytes], meter: Meter, kept_of: ReplySample | None) -> None:
        record, deadline, size = self._record, self._deadline, 0
        while (chunk := await _next(coming)) is not None:
            out = meter.feed(chunk)
            out += await _rest(meter)
            if kept_of is not None:
                kept_of.add(chunk)
            if record.ttft_ms is None and meter.summary.started:
                record.ttft_ms = record.elapsed_ms()
            if self._held is not None:
                self._held.append(out)
                size += len(out)
                if size > MAX_PLAIN_BYTES:  # too large to be held, or to be read for its cost
                    out, self._held = b"".join(self._held), None
                    await self._start()
            if self._held is None:
                await self._send_held(out, meter)
            deadline.limit = deadline.now() + self._idle_timeout

    async def _send_held(self, out: bytes, meter: Meter) -> None:
        """Bytes that may go, but for those that wait for the row."""
        if self._strict_hold is not None:
            out = self._strict_hold.push(out, meter.summary)
        if out and not self._outcome.client_gone:
            self._deadline.limit = inf
            await self._body(out)
        if self._strict_hold is not None and meter.summary.seen_done:
            await self._release(self._strict_hold.flush())
            self._strict_hold = None

    async def end(self) -> None:
        """The rest of the reply."""
        await self._release(self._rest, more=False)

    async def _release(self, out: bytes, *, more: bool = True) -> None:
        """Send what makes the reply whole, once its row is durable."""
        outcome = self._outcome
        if not outcome.client_gone:
            await self._commit()
        if not self._started:
            await self._start()
        self.complete = not more
        await self._body(out, more=more)
        outcome.held = False

    async def _start(self) -> None:
        self._started = True
        assert self._head is not None
        status = self._outcome.upstream_status
        await self._send_message({"type": "http.response.start", "status": status, "headers": self._head.headers()})
        if not self._outcome.client_gone:
            self._outcome.status = status

    async def _body(self, out: bytes, *, more: bool = True) -> None:
        await self._send_message({"type": "http.response.body", "body": out, "more_body": more})

    async def _send_message(self, message: Message) -> None:
        if self._outcome.client_gone:
            return
        try:
            await self._send(message)
        except OSError:
            await self._on_send_error(message.get("body"))

    async def _on_send_error(self, body: bytes | None) -> None:
        """Sending has failed, as it does after a hang-up on servers of ASGI spec 2.4."""
        asyncio.get_running_loop().call_soon(self._on_disconnect, bool(body))
        await asyncio.sleep(0)  # a task that cancelled itself would notice too late, outside of the deadline


async def _rest(meter: Meter) -> bytes:
    """What is pending, part by part, while others run."""
    out = b""
    while meter.pending:
        await asyncio.sleep(0)
        out += meter.resume()
    return out


async def _next(coming: AsyncIterator[bytes]) -> bytes | None:
    """The next chunk, None at the end. Raises UpstreamError."""
    try:
        return await anext(coming, None)
    except Exception as error:  # noqa: BLE001 - transports let more through than httpx.HTTPError
        raise read_error(error) from None
