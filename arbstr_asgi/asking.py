"""Asks a provider, and where it refuses what we have added, once more in the client's own words."""

import logging
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import AsyncExitStack
from time import monotonic
from typing import NamedTuple

from arbstr_asgi import headers as h
from arbstr_asgi.account import Account
from arbstr_asgi.chat import ChatRequest, ensure_stream_options
from arbstr_asgi.errors import UpstreamError
from arbstr_asgi.keys import Keys
from arbstr_asgi.learning import Learning
from arbstr_asgi.provider import Provider
from arbstr_asgi.upstream import Reply, Upstream

logger = logging.getLogger("arbstr_asgi")

MAX_REFUSAL_BYTES = 64 * 1024
MAX_MODEL_SHOWN = 100
REFUSES = (400, 422)
OURS = b"stream_options"


class Answer(NamedTuple):
    """What the client is to get: a reply, its body, whether `stream_options` were added, and when it came (ms)."""

    reply: Reply
    chunks: AsyncIterable[bytes]
    injected: bool
    latency_ms: int


class Asking:
    """How one request is put to a provider."""

    def __init__(self, upstream: Upstream, learning: Learning, keys: Keys, account: Account, *, require: bool) -> None:
        """`require`: usage is asked for in any case, and a provider that refuses that has refused."""
        self._upstream = upstream
        self._learning = learning
        self._keys = keys
        self._account = account
        self._require = require

    async def ask(
        self, stack: AsyncExitStack, request: ChatRequest, provider: Provider, client_headers: h.Headers
    ) -> Answer:
        """The answer, which stays open as long as `stack` does. Raises UpstreamError."""
        body, account = self._body(request, provider), self._account
        injected = body is not request.body
        account.provider, account.attempts = provider, 1
        key = await self._keys.of(provider)
        outgoing = h.to_provider(client_headers, provider, account.correlation_id, key)
        reply = await stack.enter_async_context(self._upstream.open(provider, body, outgoing))
        del body
        latency_ms = account.elapsed_ms()
        if injected and 200 <= reply.status < 300:
            self._learning.accepted(provider.name, request.model, monotonic())
        chose_itself = request.stream_options not in (None, b"null")
        if not injected or self._require or chose_itself or reply.status not in REFUSES or not _readable(reply):
            return Answer(reply, reply, injected, latency_ms)
        refusal = await Refusal.read(reply)
        if not refusal.names_ours:
            return Answer(reply, refusal, injected, latency_ms)
        await refusal.close()
        await stack.aclose()
        account.attempts = 2
        # A provider that keeps to idempotency keys would repeat its refusal, or refuse the key.
        key = await self._keys.of(provider)
        outgoing = h.to_provider(client_headers, provider, f"{account.correlation_id}-2", key)
        reply = await stack.enter_async_context(self._upstream.open(provider, request.body, outgoing))
        if 200 <= reply.status < 300:
            self._learn(provider, request.model)
        return Answer(reply, reply, False, account.elapsed_ms())

    def _body(self, request: ChatRequest, provider: Provider) -> bytes:
        if not provider.inject:
            return request.body
        body = ensure_stream_options(request, require=self._require)
        if self._require or body is request.body:
            return body
        wanted = self._learning.injects(provider.name, request.model, self._account.end_user, monotonic())
        return body if wanted else request.body

    def _learn(self, provider: Provider, model: str) -> None:
        if self._learning.refused(provider.name, model, self._account.end_user, monotonic()):
            logger.warning(
                "provider %s refuses stream_options for model %r: for an hour, streams of callers who met that are "
                "not asked for usage and have none. Say inject = false for the provider if that is to stay",
                provider.name,
                model[:MAX_MODEL_SHOWN],
            )


class Refusal:
    """A refusal whose beginning has been read; iterating gives all of its body."""

    def __init__(self, rest: AsyncIterator[bytes]) -> None:
        self._read: list[bytes] = []
        self._rest = rest
        self._error: UpstreamError | None = None
        self.names_ours = False

    @classmethod
    async def read(cls, reply: Reply) -> "Refusal":
        """Read on until `stream_options` is named, to the end, or for at most 64 KiB."""
        refusal = cls(reply.__aiter__())
        seen = b""
        try:
            async for chunk in refusal._rest:
                refusal._read.append(chunk)
                seen += chunk[: MAX_REFUSAL_BYTES - len(seen)]
                refusal.names_ours = OURS in seen
                if refusal.names_ours or len(seen) == MAX_REFUSAL_BYTES:
                    break
        except UpstreamError as error:
            refusal._error = error
        return refusal

    async def close(self) -> None:
        """Read no more."""
        assert isinstance(self._rest, AsyncGenerator)
        await self._rest.aclose()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Raises UpstreamError where the body breaks off."""
        while self._read:
            yield self._read.pop(0)
        if self._error is not None:
            raise self._error
        async for chunk in self._rest:
            yield chunk


def _readable(reply: Reply) -> bool:
    return (h.first(reply.headers, b"content-encoding") or "identity").strip().lower() == "identity"
