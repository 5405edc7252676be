"""The client's side of a call: the head of its response, and the ways to send the body."""

import asyncio
from collections.abc import Awaitable, Callable
from math import inf
from typing import Protocol

from starlette.types import Message, Send

from arbstr_asgi.database.records import LedgerEntry
from arbstr_asgi.gateway.deadline import Deadline
from arbstr_asgi.gateway.record import CallRecord
from arbstr_asgi.gateway.responses import RawHeaders, our_headers
from arbstr_asgi.gateway.strict import StrictHold
from arbstr_asgi.protocols.body_meter import MAX_PLAIN_BYTES
from arbstr_asgi.providers.client import ProviderReply
from arbstr_asgi.providers.headers import HeaderPolicy

EVENT_STREAM = "text/event-stream"
SECONDS_TO_NOTIFY = 0.5  # for a client to take the news that the server stops

Commit = Callable[[LedgerEntry], Awaitable[None]]


def call_headers(record: CallRecord) -> RawHeaders:
    """The headers that say which call this was."""
    provider = record.provider.name if record.provider else None
    return our_headers(
        record.correlation_id, provider, streaming=record.streaming, failed=record.attempts.failures_by_provider
    )


def response_headers(reply: ProviderReply, policy: HeaderPolicy, record: CallRecord, *, changed: bool) -> RawHeaders:
    """The provider's headers that the client gets, and ours. `changed`: the body's bytes will not be the provider's."""
    headers = policy.response_headers(reply.headers, changed=changed)
    if reply.headers.media_type == EVENT_STREAM:
        headers.append((b"x-accel-buffering", b"no"))
    headers.extend(call_headers(record))
    return headers


def cost_headers(record: CallRecord) -> RawHeaders:
    """What a call took and cost, for a reply that has been read to its end before its head is sent."""
    headers = [(b"x-arbstr-latency-ms", str(record.clock.ms()).encode())]
    sats = record.cost_sats
    if sats is not None:
        headers.append((b"x-arbstr-cost-sats", f"{sats:f}".encode()))
    return headers


class Writer(Protocol):
    """The client's side of a response."""

    async def start(self) -> None:
        """The provider's reply has begun: the head may be sent."""
        ...

    async def write(self, out: bytes) -> None:
        """Some bytes of the body, while the client is not gone."""
        ...

    async def end(self, out: bytes) -> None:
        """The last bytes of the body, perhaps none."""
        ...


class ResponseWriter:
    """Sends a response to the client as it comes, and nothing once the client is gone."""

    def __init__(
        self, send: Send, record: CallRecord, headers: RawHeaders, on_disconnect: Callable[[bool], None]
    ) -> None:
        """`on_disconnect` is called when sending fails, with whether bytes were lost by that."""
        self._headers = headers
        self._send = send
        self._outcome = record.outcome
        self._on_disconnect = on_disconnect

    async def start(self) -> None:
        """The head."""
        outcome = self._outcome
        status = outcome.upstream_status
        await self._send_message({"type": "http.response.start", "status": status, "headers": self._headers})
        if not outcome.client_gone:
            outcome.status = status

    async def write(self, out: bytes) -> None:
        """Some bytes of the body, while the client is not gone."""
        try:
            await self._send({"type": "http.response.body", "body": out, "more_body": True})
        except OSError:
            await self._on_send_error(out)

    async def end(self, out: bytes) -> None:
        """The last bytes of the body, perhaps none."""
        self._outcome.end_sent = True
        await self._send_message({"type": "http.response.body", "body": out, "more_body": False})

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


class CostHeadersWriter:
    """Holds a response until it has been read to its end, so that its head can say what it took and cost.

    One of more than 1 MiB is not held: its head goes without.
    """

    def __init__(self, writer: Writer, headers: RawHeaders, record: CallRecord) -> None:
        """`headers` are those that `writer` sends."""
        self._writer = writer
        self._headers = headers
        self._record = record
        self._held: list[bytes] | None = []
        self._size = 0

    async def start(self) -> None:
        """Nothing is sent yet."""

    async def write(self, out: bytes) -> None:
        """Hold it, or send it where too much is held."""
        if self._held is None:
            await self._writer.write(out)
            return
        self._held.append(out)
        self._size += len(out)
        if self._size > MAX_PLAIN_BYTES:
            held, self._held = b"".join(self._held), None
            await self._writer.start()
            if not self._record.outcome.client_gone:
                await self._writer.write(held)

    async def end(self, out: bytes) -> None:
        """The head, with cost and latency, and all that was held."""
        if self._held is not None:
            self._headers.extend(cost_headers(self._record))
            out = b"".join((*self._held, out))
            await self._writer.start()
        await self._writer.end(out)


class DurableRow:
    """Has the row of a call made durable, once, before the client has all of its response."""

    def __init__(self, record: CallRecord, commit: Commit) -> None:
        """`commit` records an entry, and returns when it may be taken for durable."""
        self._record = record
        self._commit = commit
        self._stopping = False
        self.waiting = False
        """Whether the response waits for the row now."""

    def stop(self) -> None:
        """The server stops: end soon after the row is there."""
        self._stopping = True

    async def commit(self, deadline: Deadline, status: int | None = None) -> None:
        """Wait for the row of a client that gets `status`; without it, the provider's. `deadline` pauses meanwhile."""
        record = self._record
        if record.committed is not None:
            return
        deadline.extend(inf)
        self.waiting = record.outcome.held = True
        try:
            await self._commit(record.commit(status or record.outcome.upstream_status))
        finally:
            self.waiting = False
        if self._stopping:
            deadline.limit_total(SECONDS_TO_NOTIFY, "shutdown")


class StrictWriter:
    """Sends a response, but for the bytes that make it whole, which wait until its row is durable."""

    def __init__(
        self,
        writer: Writer,
        headers: RawHeaders,
        reply: ProviderReply,
        record: CallRecord,
        row: DurableRow,
        deadline: Deadline,
    ) -> None:
        """`headers` are those that `writer` sends; `deadline` is that of the block around."""
        length = next((value for name, value in headers if name == b"content-length"), None)
        self._hold: StrictHold | None = StrictHold(
            has_length=length is not None, is_events=reply.headers.media_type == EVENT_STREAM
        )
        self._whole_with_head = reply.status == 204 or length == b"0"
        self._writer = writer
        self._outcome = record.outcome
        self._summary = record.reply
        self._row = row
        self._deadline = deadline

    async def start(self) -> None:
        """The head, unless the response is whole with it."""
        if not self._whole_with_head:
            await self._writer.start()

    async def write(self, out: bytes) -> None:
        """Send what may go of these bytes and those that are held; with `[DONE]`, all, once the row is durable."""
        if self._hold is None:
            await self._writer.write(out)
            return
        out = self._hold.push(out, self._summary)
        if out:
            await self._writer.write(out)
        if self._summary.seen_done:
            held, self._hold = self._hold.flush(), None
            await self._commit()
            if held and not self._outcome.client_gone:
                await self._writer.write(held)
            self._outcome.held = False

    async def end(self, out: bytes) -> None:
        """The rest, once the row is durable."""
        if self._hold is not None:
            going = self._hold.push(out, self._summary)
            if going and not self._outcome.client_gone:
                await self._writer.write(going)
            out = self._hold.flush()
        await self._commit()
        if self._whole_with_head:
            await self._writer.start()
        await self._writer.end(out)
        self._outcome.held = False

    async def _commit(self) -> None:
        if not self._outcome.client_gone:
            await self._row.commit(self._deadline)
