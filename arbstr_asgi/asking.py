"""Asks a provider, and where it refuses what we have added, once more in the client's own words."""

import logging
from collections.abc import AsyncIterable, Mapping
from time import monotonic
from typing import NamedTuple

import msgspec

from arbstr_asgi import headers as h
from arbstr_asgi.account import CallRecord
from arbstr_asgi.aliasing import with_model
from arbstr_asgi.chat import ChatRequest, ensure_stream_options
from arbstr_asgi.closing import Closing
from arbstr_asgi.config.provider import Provider
from arbstr_asgi.keys import ApiKeys
from arbstr_asgi.learning import StreamOptionsSupport
from arbstr_asgi.lookahead import Lookahead
from arbstr_asgi.routing import Candidate
from arbstr_asgi.upstream import ProviderReply, ProviderClient

logger = logging.getLogger("arbstr_asgi")

MAX_REFUSAL_BYTES = 64 * 1024
MAX_MODEL_SHOWN = 100
REFUSES = (400, 422)
OURS = b"stream_options"


class ProviderResponse(NamedTuple):
    """What the client is to get: whose reply, its body, whether `stream_options` were added, and when it came (ms).

    Where the body is the reply's own, iterating raises what the transport raises (see `upstream.broken_off`).
    """

    provider: Provider
    reply: ProviderReply
    chunks: AsyncIterable[bytes]
    injected: bool
    latency_ms: int


class ProviderAttempt:
    """How requests are put to providers."""

    def __init__(
        self,
        upstream: ProviderClient,
        learning: StreamOptionsSupport,
        keys: ApiKeys,
        passages: Mapping[str, h.HeaderPolicy],
        *,
        require: bool,
    ) -> None:
        """`require`: usage is asked for in any case, and a provider that refuses that has refused."""
        self._upstream = upstream
        self._learning = learning
        self._keys = keys
        self._passages = passages
        self._require = require

    async def send(
        self,
        closing: Closing,
        account: CallRecord,
        request: ChatRequest,
        candidate: Candidate,
        client_headers: h.Headers,
    ) -> ProviderResponse:
        """The answer, which stays open until `closing` is closed. Raises UpstreamError."""
        provider = candidate.provider
        if candidate.model != request.model:
            body = with_model(request.body, request, candidate.model)
            request = msgspec.structs.replace(request, body=body, model=candidate.model)
        body = self._body(request, provider, account.end_user)
        injected = body is not request.body
        outgoing = await self._begin(account, candidate, client_headers, account.correlation_id)
        reply = await self._upstream.send(provider, body, outgoing)
        del body
        answer = _answered(account, provider, reply, closing)
        if injected and 200 <= reply.status < 300:
            self._learning.mark_supported(provider.name, request.model, monotonic())
        chose_itself = request.stream_options not in (None, b"null")
        may_be_ours = reply.status in REFUSES and reply.headers.is_plain
        if not injected or self._require or chose_itself or not may_be_ours:
            return answer._replace(injected=True) if injected else answer
        refusal = Lookahead(reply)
        closing.add(refusal.close)
        if not await _mentions_stream_options(refusal):
            return answer._replace(injected=True, chunks=refusal)
        await closing.close()
        account.attempts.mark_failed("stream_options refused", maybe_billed=False)
        # A provider that keeps to idempotency keys would repeat its refusal, or refuse the key.
        outgoing = await self._begin(account, candidate, client_headers, f"{account.correlation_id}-2")
        reply = await self._upstream.send(provider, request.body, outgoing)
        answer = _answered(account, provider, reply, closing)
        if 200 <= reply.status < 300:
            self._learn(provider, request.model, account.end_user)
        return answer

    async def _begin(
        self, account: CallRecord, candidate: Candidate, client_headers: h.Headers, idempotency_key: str
    ) -> h.RawHeaders:
        """Note that an attempt begins; gives its headers."""
        provider = candidate.provider
        account.begin(provider, candidate.model)
        theirs = provider.forward_authorization and b"authorization" in client_headers
        key = None if theirs else await self._keys.get(provider)
        outgoing = self._passages[provider.name].request_headers(client_headers, idempotency_key, key)
        account.attempts.sent = True
        return outgoing

    def _body(self, request: ChatRequest, provider: Provider, end_user: str | None) -> bytes:
        if not provider.inject:
            return request.body
        body = ensure_stream_options(request, require=self._require)
        if self._require or body is request.body:
            return body
        wanted = self._learning.should_inject(provider.name, request.model, end_user, monotonic())
        return body if wanted else request.body

    def _learn(self, provider: Provider, model: str, end_user: str | None) -> None:
        if self._learning.mark_refused(provider.name, model, end_user, monotonic()):
            logger.warning(
                "provider %s refuses stream_options for model %r: for an hour, streams of callers who met that are "
                "not asked for usage and have none. Say inject = false for the provider if that is to stay",
                provider.name,
                model[:MAX_MODEL_SHOWN],
            )


def _answered(account: CallRecord, provider: Provider, reply: ProviderReply, closing: Closing) -> ProviderResponse:
    closing.add(reply.close)
    return ProviderResponse(provider, reply, reply.body, False, account.attempts.mark_answered(reply.status))


async def _mentions_stream_options(refusal: Lookahead) -> bool:
    """Read on until `stream_options` is named, to the end, or for at most 64 KiB."""
    seen = bytearray()

    def enough(chunk: bytes) -> bool:
        seen.extend(chunk[: MAX_REFUSAL_BYTES - len(seen)])
        return OURS in seen or len(seen) == MAX_REFUSAL_BYTES

    await refusal.read(enough)
    return OURS in seen
