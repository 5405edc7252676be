"""One call, from the parsed request to its row."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from math import inf

from starlette.types import Receive, Send

from arbstr_asgi import headers as h
from arbstr_asgi.account import Account
from arbstr_asgi.asking import Answer
from arbstr_asgi.callers import Caller
from arbstr_asgi.chat import ChatRequest
from arbstr_asgi.closing import Closing
from arbstr_asgi.desk import Desk
from arbstr_asgi.entry import Entry
from arbstr_asgi.errors import ArbstrError, ProviderAuthenticationError, ServerError, UpstreamError, UpstreamTimeout
from arbstr_asgi.estimating.keeping import Kept
from arbstr_asgi.failover import Failover
from arbstr_asgi.head import Head, call_headers
from arbstr_asgi.interrupt import Interrupt
from arbstr_asgi.leaving import Leaving, on_leaving
from arbstr_asgi.metering import Meter, Reading, open_meter
from arbstr_asgi.relay import Relay
from arbstr_asgi.replies import error_event, send_error
from arbstr_asgi.routing import candidates
from arbstr_asgi.stopwatch import Stopwatch
from arbstr_asgi.watching import Watching

POLICY = b"x-arbstr-policy"
SECONDS_BEHIND_DONE = 1.0  # for a provider to end a stream whose client has gone after [DONE]
SECONDS_TO_TELL = 0.5  # for a client to take the news that the server stops


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
        self._meter: Meter | None = None
        self._relay: Relay | None = None
        self._failover: Failover | None = None
        self._kept: Kept | None = None
        self._stopwatch = Stopwatch(arrived, asyncio.get_running_loop().time)
        self._account = Account(
            correlation_id,
            arrival,
            request.model,
            caller,
            desk.worker_id,
            streaming=request.stream,
            elapsed_ms=self._stopwatch.ms,
        )
        self._outcome = self._account.outcome
        self._interrupt = Interrupt()
        self._waiting = False  # for the row
        self._stopping = False
        self._drained: str | None = None  # the provider that is read on for a client that has left

    async def run(self, client_headers: h.Headers, receive: Receive, send: Send, sent: Callable[[], None]) -> None:
        """Answer the client. `sent` is called once the provider has the request and its body may go."""
        try:
            with self._interrupt, Watching(receive, self._client_left):
                try:
                    await self._answer(client_headers, send, sent)
                except ArbstrError as error:
                    self._outcome.error = error
            if self._interrupt.reason == "shutdown":  # a client that doesn't read is not waited for
                with suppress(TimeoutError):
                    async with asyncio.timeout(SECONDS_TO_TELL):
                        await self._settle(receive, send)
            else:
                await self._settle(receive, send)
        except asyncio.CancelledError:
            self._outcome.stopped = True
            raise
        except Exception:
            self._outcome.error = self._outcome.error or ServerError("Something went wrong.", code="internal_error")
            self._outcome.status = self._outcome.status or 500  # what servers then say
            raise
        finally:
            if self._drained is not None:
                self._desk.drains.end(self._drained, self._account.end_user)
            if self._failover is not None:
                self._failover.settle()
            last = self._account.last()
            if last is not None:
                self._desk.record(last)
            self._tell_of_end(last or self._account.committed)
            self._relay = self._meter = None  # they know us: nobody should have to look for such circles

    def _tell_of_end(self, entry: Entry | None) -> None:
        desk, account = self._desk, self._account
        if desk.measure is not None and entry is not None:
            desk.measure(entry, self._stopwatch.seconds())
        kept, self._kept = self._kept, None
        if desk.estimator is not None and kept is not None and entry is not None:
            desk.estimator.ended(kept, entry, account.reading.events, account.total_sats)

    async def _answer(self, client_headers: h.Headers, send: Send, sent: Callable[[], None]) -> None:
        desk, account, request = self._desk, self._account, self._request
        assert request is not None
        rule = desk.matcher.rule(request, client_headers.get(POLICY))
        account.policy = None if rule is None else rule.name
        found = candidates(desk.config.providers, request, rule)
        account.candidates = [candidate.provider for candidate in found]
        failover = self._failover = Failover(desk.asking, desk.breakers, account, desk.config.failover, self._interrupt)
        authorized = b"authorization" in client_headers
        async with Closing() as closing:
            answer = await failover.ask(closing, request, found, client_headers)
            if desk.estimator is not None:
                self._kept = desk.estimator.keep(request.body, streaming=request.stream)
            self._request = request = None  # a long stream need not hold the body that began it
            sent()
            meter, head = self._answered(answer, authorized=authorized)
            self._interrupt.deadline(answer.provider.idle_timeout)
            relay = self._relay = Relay(send, account, self._interrupt, left=self._client_left, commit=self._commit)
            await relay.pass_on(
                head,
                answer.chunks,
                meter,
                hold_all=head.says_cost or (desk.commit is not None and head.is_all),
                holding=None if desk.commit is None else head.holding(),
                idle_timeout=answer.provider.idle_timeout,
                kept_of=self._kept if self._outcome.answered_well and answer.reply.headers.is_plain else None,
            )
        await relay.end()

    def _answered(self, answer: Answer, *, authorized: bool) -> tuple[Meter, Head]:
        """The provider has spoken: note when, choose the meter, and let the row exist from now on."""
        account, outcome, reply, provider = self._account, self._outcome, answer.reply, answer.provider
        account.latency_ms = answer.latency_ms
        outcome.upstream_status = reply.status
        if not 200 <= reply.status < 600:
            raise UpstreamError("The provider's answer has no valid status.", code="upstream_protocol_error")
        if 300 <= reply.status < 400:
            raise UpstreamError(
                "The provider answered with a redirect, which is not followed.", code="upstream_redirect"
            )
        if reply.status in (401, 403) and provider.sends_own_credentials(client_authorizes=authorized):
            raise ProviderAuthenticationError(reply.status)
        streaming = account.streaming and outcome.answered_well
        meter = self._meter = open_meter(
            content_type=reply.headers.get(b"content-type"),
            content_encoding=reply.headers.get(b"content-encoding"),
            streaming=streaming,
            strip=answer.injected and streaming,
            before_done=self._cost_comment if self._desk.config.cost_comment and streaming else None,
        )
        account.reading = meter.reading
        desk = self._desk
        head = Head(
            reply,
            desk.passages[provider.name],
            account,
            changed=meter.edits,
            says_cost=desk.config.response_headers == "full",
        )
        desk.follow(account)
        return meter, head

    async def _settle(self, receive: Receive, send: Send) -> None:
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
            await self._commit_watched(receive, error.status_code)
            if outcome.left:
                return
            outcome.status = error.status_code
            await send_error(send, error, call_headers(self._account))
        elif self._meter is not None and self._meter.abandon():
            await self._commit_watched(receive, outcome.status)
            if not outcome.left:
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
        """Whether a provider has begun to answer with a stream."""
        return self._account.streaming and self._meter is not None

    async def _commit_watched(self, receive: Receive, status: int) -> None:
        """The same as `_commit` outside of the relay, where nobody else would notice a hang-up."""
        if self._desk.commit is not None:
            self._interrupt = Interrupt()
            with self._interrupt, Watching(receive, self._client_left):
                await self._commit(status)

    async def _commit(self, status: int | None = None) -> None:
        """Have the row made durable that the client's reply will have if what is kept back is sent well."""
        if self._desk.commit is None or self._account.committed is not None:
            return
        self._interrupt.touch(inf)
        self._waiting = self._outcome.held = True
        try:
            await self._desk.commit(self._account.commit(status or self._outcome.upstream_status))
        finally:
            self._waiting = False
        if self._stopping:
            self._interrupt.at_most(SECONDS_TO_TELL, "shutdown")

    def _client_left(self, lost: bool = False) -> None:
        """The client hung up: read on to the usage if the policy, the caps and the moment allow.

        `lost`: bytes that were sent have not arrived.
        """
        outcome, provider, drains = self._outcome, self._account.provider, self._desk.drains
        if outcome.left:
            return
        drain = None if provider is None else provider.drain
        action = on_leaving(
            complete=self._complete,
            done=self._account.reading.done,
            held=self._waiting or (lost and outcome.held),
            answered=self._account.latency_ms is not None or self._account.tries.answered_well,
            streaming=self._account.streaming,
            drain=drain,
            room=provider is not None
            and drain is not None
            and drains.has_room(provider.name, self._account.end_user, drain),
        )
        if action is Leaving.END_SOON:
            self._interrupt.at_most(SECONDS_BEHIND_DONE, "done")
        outcome.left = action in (Leaving.DRAIN, Leaving.CANCEL)
        if action is Leaving.DRAIN and provider is not None and drain is not None:
            outcome.drains = True
            self._drained = provider.name
            drains.begin(provider.name, self._account.end_user)
            self._interrupt.at_most(drain.drain, "client_disconnected")
        elif action is Leaving.CANCEL:
            self._interrupt.fire("client_disconnected")

    def stop(self) -> None:
        """End the call now, because the server does; one that waits for its row does so soon anyway."""
        self._stopping = True
        if not self._waiting:
            self._interrupt.fire("shutdown")

    def _cost_comment(self, reading: Reading) -> bytes:
        sats = self._account.cost_sats
        return b": arbstr cost_sats=" + ("unknown" if sats is None else f"{sats:f}").encode() + b"\n\n"
