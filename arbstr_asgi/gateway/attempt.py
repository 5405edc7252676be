"""One request to one provider, and the beginning of its reply; where stream_options are refused, once more without."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from time import monotonic
from types import TracebackType
from typing import NamedTuple, Self

import msgspec

from arbstr_asgi.config.provider import Provider
from arbstr_asgi.errors import UpstreamError
from arbstr_asgi.gateway.record import CallRecord
from arbstr_asgi.protocols.chat import ChatRequest, ensure_stream_options, with_model
from arbstr_asgi.protocols.json_edit import BOM
from arbstr_asgi.protocols.meters import open_meter
from arbstr_asgi.providers import headers as h
from arbstr_asgi.providers.api_keys import ApiKeys
from arbstr_asgi.providers.client import ProviderClient, ProviderReply
from arbstr_asgi.providers.routing import Candidate
from arbstr_asgi.providers.stream_options import StreamOptionsSupport

logger = logging.getLogger("arbstr_asgi")
MAX_FIRST_EVENT_BYTES = 16 * 1024
MAX_REFUSAL_BYTES = 64 * 1024
MAX_MODEL_SHOWN = 100
REFUSES = (400, 422)
STREAM_OPTIONS = b"stream_options"


class Lookahead:
    """A reply's body of which some has been read already; iterating gives all of it."""

    def __init__(self, reply: ProviderReply) -> None:
        self._rest = reply.__aiter__()
        self._read: list[bytes] = []
        self._coming: asyncio.Task[bytes | None] | None = None
        self.error: UpstreamError | None = None
        """How the body broke off, if it has."""
        self._ended = False

    @property
    def whole(self) -> bytes | None:
        """All of the body, where it has ended well; None where it has not, or not yet."""
        return b"".join(self._read) if self._ended and self.error is None else None

    async def read(self, enough: Callable[[bytes], bool], seconds: float | None = None) -> None:
        """Read until a chunk is `enough`, to the end, or for so many seconds. A failure is kept for the iterating."""
        deadline = None if seconds is None else asyncio.get_running_loop().time() + seconds
        while not self._ended:
            if self._coming is None:
                self._coming = asyncio.create_task(self._next())
            left = None if deadline is None else max(deadline - asyncio.get_running_loop().time(), 0.0)
            done, _ = await asyncio.wait({self._coming}, timeout=left)
            if not done:
                return
            chunk = await self._take()
            if chunk is not None:
                self._read.append(chunk)
                if enough(chunk):
                    return

    async def close(self) -> None:
        """Read no more."""
        if self._coming is not None:
            self._coming.cancel()
            await asyncio.wait({self._coming})
        assert isinstance(self._rest, AsyncGenerator)
        await self._rest.aclose()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Raises UpstreamError where the body breaks off."""
        while self._read:
            yield self._read.pop(0)
        if self._coming is not None:
            chunk = await self._take()
            if chunk is not None:
                yield chunk
        if self.error is not None:
            raise self.error
        if not self._ended:
            async for chunk in self._rest:
                yield chunk

    async def _next(self) -> bytes | None:
        return await anext(self._rest, None)

    async def _take(self) -> bytes | None:
        """What has come, or None at the end."""
        assert self._coming is not None
        try:
            chunk = await self._coming
        except UpstreamError as error:
            chunk, self.error = None, error
        self._coming = None
        self._ended = chunk is None
        return chunk


class FirstEventWatcher:
    """Watches the beginning of a stream with a meter of its own, whose summary says what it was."""

    def __init__(self, headers: h.Headers) -> None:
        self._meter = open_meter(content_type=headers.get(b"content-type"), content_encoding=None, strip=False)
        self.summary = self._meter.summary
        self._size = 0
        self._begins = b""

    def complete(self, chunk: bytes) -> bool:
        """Whether enough has come with `chunk`: a whole event, a comment, or 16 KiB of anything."""
        self._meter.feed(chunk)
        self._size += len(chunk)
        if not self._begins:
            self._begins = chunk.removeprefix(BOM).lstrip()[:1]
        seen = self.summary.events > 0 or self.summary.error is not None or self.summary.seen_done
        return seen or self._begins == b":" or self._size >= MAX_FIRST_EVENT_BYTES

    def end(self) -> None:
        """The stream has ended, perhaps without the blank line behind its only event."""
        self._meter.finish()


Close = Callable[[], Awaitable[None]]


class Closing:
    """Closes what it was given at the end of a block, the last first, whatever fails.

    What `contextlib.AsyncExitStack` does for any context, for a fifth of the CPU: each call needs one.
    """

    __slots__ = ("_closes",)

    def __init__(self) -> None:
        self._closes: list[Close] = []

    def add(self, close: Close) -> None:
        """Call this at the end."""
        self._closes.append(close)

    async def close(self) -> None:
        """Close everything now; more can be added."""
        try:
            while self._closes:
                await self._closes.pop()()
        finally:
            if self._closes:
                await self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._closes:
            await self.close()


class ProviderResponse(NamedTuple):
    """What the client is to get: whose reply, its body, whether `stream_options` were added, and when it came (ms).

    Where the body is the reply's own, iterating raises what the transport raises (see `client.read_error`).
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
        client: ProviderClient,
        stream_options: StreamOptionsSupport,
        keys: ApiKeys,
        header_policies: Mapping[str, h.HeaderPolicy],
        *,
        require: bool,
    ) -> None:
        """`require`: usage is asked for in any case, and a provider that refuses that has refused."""
        self._client = client
        self._stream_options = stream_options
        self._api_keys = keys
        self._header_policies = header_policies
        self._require = require

    async def send(
        self,
        closing: Closing,
        record: CallRecord,
        request: ChatRequest,
        candidate: Candidate,
        client_headers: h.Headers,
    ) -> ProviderResponse:
        """The answer, which stays open until `closing` is closed. Raises UpstreamError."""
        provider = candidate.provider
        if candidate.model != request.model:
            body = with_model(request.body, request, candidate.model)
            request = msgspec.structs.replace(request, body=body, model=candidate.model)
        body = self._body(request, provider, record.end_user)
        injected = body is not request.body
        outgoing = await self._begin(record, candidate, client_headers, record.correlation_id)
        reply = await self._client.send(provider, body, outgoing)
        del body
        answer = _answered(record, provider, reply, closing)
        if injected and 200 <= reply.status < 300:
            self._stream_options.mark_supported(provider.name, request.model, monotonic())
        chose_itself = request.stream_options not in (None, b"null")
        may_be_ours = reply.status in REFUSES and reply.headers.is_plain
        if not injected or self._require or chose_itself or not may_be_ours:
            return answer._replace(injected=True) if injected else answer
        refusal = Lookahead(reply)
        closing.add(refusal.close)
        if not await _mentions_stream_options(refusal):
            return answer._replace(injected=True, chunks=refusal)
        await closing.close()
        record.attempts.mark_failed("stream_options refused", maybe_billed=False)
        # A provider that keeps to idempotency keys would repeat its refusal, or refuse the key.
        outgoing = await self._begin(record, candidate, client_headers, f"{record.correlation_id}-2")
        reply = await self._client.send(provider, request.body, outgoing)
        answer = _answered(record, provider, reply, closing)
        if 200 <= reply.status < 300:
            self._learn(provider, request.model, record.end_user)
        return answer

    async def _begin(
        self, record: CallRecord, candidate: Candidate, client_headers: h.Headers, idempotency_key: str
    ) -> h.RawHeaders:
        """Note that an attempt begins; gives its headers."""
        provider = candidate.provider
        record.begin(provider, candidate.model)
        theirs = provider.forward_authorization and b"authorization" in client_headers
        key = None if theirs else await self._api_keys.get(provider)
        outgoing = self._header_policies[provider.name].request_headers(client_headers, idempotency_key, key)
        record.attempts.sent = True
        return outgoing

    def _body(self, request: ChatRequest, provider: Provider, end_user: str | None) -> bytes:
        if not provider.inject:
            return request.body
        body = ensure_stream_options(request, require=self._require)
        if self._require or body is request.body:
            return body
        wanted = self._stream_options.should_inject(provider.name, request.model, end_user, monotonic())
        return body if wanted else request.body

    def _learn(self, provider: Provider, model: str, end_user: str | None) -> None:
        if self._stream_options.mark_refused(provider.name, model, end_user, monotonic()):
            logger.warning(
                "provider %s refuses stream_options for model %r: for an hour, streams of callers who met that are "
                "not asked for usage and have none. Say inject = false for the provider if that is to stay",
                provider.name,
                model[:MAX_MODEL_SHOWN],
            )


def _answered(record: CallRecord, provider: Provider, reply: ProviderReply, closing: Closing) -> ProviderResponse:
    closing.add(reply.close)
    return ProviderResponse(provider, reply, reply.body, False, record.attempts.mark_answered(reply.status))


async def _mentions_stream_options(refusal: Lookahead) -> bool:
    """Read on until `stream_options` is named, to the end, or for at most 64 KiB."""
    seen = bytearray()

    def enough(chunk: bytes) -> bool:
        seen.extend(chunk[: MAX_REFUSAL_BYTES - len(seen)])
        return STREAM_OPTIONS in seen or len(seen) == MAX_REFUSAL_BYTES

    await refusal.read(enough)
    return STREAM_OPTIONS in seen
