"""Passes a provider's reply on to the client."""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable
from math import inf

from starlette.types import Message, Send

from arbstr_asgi.account import Account
from arbstr_asgi.estimating.keeping import Kept
from arbstr_asgi.holding import Holding
from arbstr_asgi.interrupt import Interrupt
from arbstr_asgi.metering import Meter
from arbstr_asgi.metering.plain import MAX_PLAIN_BYTES
from arbstr_asgi.replies import RawHeaders


class Relay:
    """The client's side of one call. `complete` says that the end of the reply has been handed to the server."""

    def __init__(
        self,
        send: Send,
        account: Account,
        interrupt: Interrupt,
        *,
        head: Callable[[], RawHeaders],
        left: Callable[[bool], None],
        commit: Callable[[], Awaitable[None]],
    ) -> None:
        """`head` makes the headers of the reply; `commit` returns when its row may be taken for durable.

        `left` is called when it turns out that the client has gone, with whether bytes were lost by that.
        """
        self.complete = False
        self._send = send
        self._account = account
        self._outcome = account.outcome
        self._interrupt = interrupt
        self._head = head
        self._left = left
        self._commit = commit
        self._started = False
        self._rest = b""

    async def pass_on(
        self,
        chunks: AsyncIterable[bytes],
        meter: Meter,
        *,
        hold_all: bool,
        holding: Holding | None,
        idle_timeout: float,
        kept_of: Kept | None = None,
    ) -> None:
        """The head and the body, chunk by chunk, through the meter; what comes of its end is for `end`.

        `hold_all` keeps everything until the body has been read, so that the head can say what it cost. `holding`
        keeps back what must not go before the row is durable. `kept_of` keeps what comes.
        """
        account, outcome, touch, clock = self._account, self._outcome, self._interrupt.touch, self._interrupt.now
        held: list[bytes] | None = [] if hold_all else None
        size = 0
        if held is None:
            await self._start()
        async for chunk in chunks:
            out = meter.feed(chunk)
            if kept_of is not None:
                kept_of.add(chunk)
            if account.ttft_ms is None and meter.reading.started:
                account.ttft_ms = account.elapsed_ms()
            if held is not None:
                held.append(out)
                size += len(out)
                if size > MAX_PLAIN_BYTES:  # too large to be held, or to be read for its cost
                    out, held = b"".join(held), None
                    await self._start()
            if holding is not None and held is None:
                out = holding.take(out, meter.reading)
            if held is None and out and not outcome.left:
                touch(inf)  # what a slow client takes is not the provider's idleness
                await self._body(out)
            if holding is not None and held is None and meter.reading.done:
                await self._release(holding.rest())
                holding = None
            touch(clock() + idle_timeout)
        kept = b"" if holding is None else holding.rest()
        self._rest = b"".join((kept, *(held or ()), meter.finish()))
        outcome.whole = True
        touch(inf)

    async def end(self) -> None:
        """The rest of the reply."""
        await self._release(self._rest, more=False)

    async def _release(self, out: bytes, *, more: bool = True) -> None:
        """Send what makes the reply whole, once its row is durable."""
        outcome = self._outcome
        if not outcome.left:
            await self._commit()
        if not self._started:
            await self._start()
        self.complete = not more
        await self._body(out, more=more)
        outcome.held = False

    async def _start(self) -> None:
        self._started = True
        status = self._outcome.upstream_status
        await self._say({"type": "http.response.start", "status": status, "headers": self._head()})
        if not self._outcome.left:
            self._outcome.status = status

    async def _body(self, out: bytes, *, more: bool = True) -> None:
        await self._say({"type": "http.response.body", "body": out, "more_body": more})

    async def _say(self, message: Message) -> None:
        if self._outcome.left:
            return
        try:
            await self._send(message)
        except OSError:  # what servers of ASGI spec 2.4 raise after a hang-up
            asyncio.get_running_loop().call_soon(self._left, bool(message.get("body")))
            await asyncio.sleep(0)  # a task that cancelled itself would notice too late, outside of the interrupt
