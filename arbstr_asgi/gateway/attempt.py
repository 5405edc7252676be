"""One request to one provider, and the beginning of its reply; where stream_options are refused, once more without."""

import asyncio
import logging
import re
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from time import monotonic
from typing import NamedTuple

import msgspec

from arbstr_asgi.config.provider import Provider
from arbstr_asgi.errors import UpstreamError
from arbstr_asgi.gateway.record import CallRecord
from arbstr_asgi.protocols.chat import ChatRequest, ensure_stream_options, with_model
from arbstr_asgi.protocols.json_edit import BOM
from arbstr_asgi.protocols.meters import GZIP_OR_ZLIB, open_meter
from arbstr_asgi.providers import headers as h
from arbstr_asgi.providers.api_keys import ApiKeys
from arbstr_asgi.providers.client import ProviderClient, ProviderReply
from arbstr_asgi.providers.retry_policy import ACCOUNT, BUSY
from arbstr_asgi.providers.routing import Candidate
from arbstr_asgi.providers.stream_options import StreamOptionsSupport

logger = logging.getLogger("arbstr_asgi")
MAX_FIRST_EVENT_BYTES = 16 * 1024
MAX_ERROR_BYTES = 64 * 1024
MAX_STEPS = 4
MAX_MODEL_SHOWN = 100
SECONDS_FOR_REFUSAL = 2.0  # for the body of an error to come
SECONDS_FOR_FIRST_EVENT = 0.5
# How a refusal of what we add is worded: by its name, or as a field, a parameter or the like that nobody knows.
_NAMED = re.compile(rb"stream_?options|include_?usage", re.IGNORECASE)
_UNKNOWN_FIELD = re.compile(
    rb"extra_forbidden|additional_?properties|"
    rb"(?:unknown|unrecogni[sz]ed|unexpected|unsupported|undefined|extra|extraneous|additional|disallowed|no such)"
    rb"[\s_'\"-]{1,3}(?:[a-z]{1,20}[\s_-])?(?:field|param|arg|key|propert|input|option|attribute|member)|"
    rb"(?:field|param|argument|propert|attribute)[^{}]{0,60}"
    rb"(?:not|n't) (?:be )?(?:permitted|allowed|supported|recogni[sz]ed|known|defined|expected)",
    re.IGNORECASE,
)


class PeekedReply:
    """A reply some of whose body has been read ahead; `read` gives all of it."""

    def __init__(self, reply: ProviderReply) -> None:
        self.status = reply.status
        self.headers = reply.headers
        self.ended = False
        self._reply = reply
        self._buffered: deque[bytes] = deque()
        self._reading: asyncio.Task[bytes] | None = None
        self._complete = False
        self.error: UpstreamError | None = None
        """How the body broke off, if it has."""

    @property
    def beginning(self) -> bytes:
        """What has been read ahead."""
        return b"".join(self._buffered)

    @property
    def body(self) -> bytes | None:
        """All of the body, where it has ended well and none of it has been read; None where it has not, or not yet."""
        return self.beginning if self._complete and self.error is None else None

    async def peek(self, enough: Callable[[bytes], bool], seconds: float | None = None) -> None:
        """Read until a chunk is `enough`, to the end, or for so many seconds. A failure is kept for `read`.

        Chunks that have been read ahead already are looked at first.
        """
        if any(enough(chunk) for chunk in self._buffered):
            return
        loop = asyncio.get_running_loop()
        deadline = None if seconds is None else loop.time() + seconds
        while not self._complete:
            if self._reading is None:
                self._reading = asyncio.create_task(self._reply.read())
            left = None if deadline is None else max(deadline - loop.time(), 0.0)
            done, _ = await asyncio.wait({self._reading}, timeout=left)
            if not done:
                return
            chunk = await self._take()
            if chunk:
                self._buffered.append(chunk)
                if enough(chunk):
                    return

    async def read(self) -> bytes:
        """The next bytes, none at the end. Raises UpstreamError where the body breaks off."""
        if self._buffered:
            return self._buffered.popleft()
        if self._reading is not None:
            chunk = await self._take()
            if chunk:
                return chunk
        if self.error is not None:
            raise self.error
        if self._complete:
            self.ended = True
            return b""
        chunk = await self._reply.read()
        self.ended = self._reply.ended
        return chunk

    async def aclose(self) -> None:
        """Let go of the reply."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})
        await self._reply.aclose()

    async def _take(self) -> bytes:
        """What has come, nothing at the end."""
        assert self._reading is not None
        try:
            chunk = await self._reading
        except UpstreamError as error:
            chunk, self.error = b"", error
        self._reading = None
        self._complete = not chunk
        return chunk


class BufferedReply:
    """A reply that has been read and closed."""

    def __init__(self, reply: ProviderReply, body: bytes) -> None:
        self.status = reply.status
        self.headers = reply.headers
        self.ended = False
        self._body = body

    async def read(self) -> bytes:
        """All of the body, then nothing."""
        body, self._body = self._body, b""
        self.ended = True
        return body

    async def aclose(self) -> None:
        """There is nothing to close."""


class FirstEventWatcher:
    """Watches the beginning of a reply with a meter of its own, whose summary says what it was."""

    def __init__(self, headers: h.Headers, *, streaming: bool = True) -> None:
        """`streaming`: a stream was asked for."""
        self._meter = open_meter(
            content_type=headers.get(b"content-type"),
            content_encoding=headers.get(b"content-encoding"),
            strip=False,
        )
        self._limit = MAX_FIRST_EVENT_BYTES if streaming else MAX_ERROR_BYTES
        self.summary = self._meter.summary
        self._size = 0
        self._begins = b""

    def complete(self, chunk: bytes) -> bool:
        """Whether enough has come with `chunk`: a whole event, a comment, or more than an error takes."""
        self._meter.feed(chunk[: self._limit])
        for _ in range(MAX_STEPS):  # of bounded work each; nobody is asked whether others may run between
            if self._meter.pending:
                self._meter.resume()
        self._size += len(chunk)
        if not self._begins:
            self._begins = chunk.removeprefix(BOM).lstrip()[:1]
        seen = self.summary.events > 0 or self.summary.error is not None or self.summary.seen_done
        return seen or self._begins == b":" or self._size >= self._limit or self._meter.pending

    def end(self) -> None:
        """The reply has ended, perhaps without the blank line behind its only event."""
        self._meter.finish()

    async def watch(self, reply: PeekedReply, seconds: float) -> None:
        """Read ahead until enough has come, to the end, or for so many seconds."""
        await reply.peek(self.complete, seconds)
        if reply.body is not None:
            self.end()


class ProviderResponse(NamedTuple):
    """What one provider answered."""

    provider: Provider
    reply: ProviderReply
    injected: bool
    """Whether `stream_options` were added to its request."""
    latency_ms: int
    """Milliseconds from the call's arrival to the beginning of the reply."""


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
        self, record: CallRecord, request: ChatRequest, candidate: Candidate, client_headers: h.Headers
    ) -> ProviderResponse:
        """Its response, whose reply is to be closed. Raises UpstreamError."""
        provider = candidate.provider
        if candidate.model != request.model:
            body = with_model(request.body, request, candidate.model)
            request = msgspec.structs.replace(request, body=body, model=candidate.model)
        body = self._body(request, provider, record.end_user)
        injected = body is not request.body
        ours = injected and not self._require and request.stream_options in (None, b"null")
        outgoing = await self._begin(record, candidate, client_headers, record.correlation_id)
        reply = await self._client.send(provider, body, outgoing)
        del body
        latency_ms = record.attempts.mark_answered(reply.status)
        error, good = None, 200 <= reply.status < 300
        # The first event of a stream is waited for only until one has been good: the head is not held back for it.
        if ours and not (good and self._stream_options.is_supported(provider.name, request.model, monotonic())):
            reply = PeekedReply(reply)
            error = await _error_of(reply)
            if error is not None and _refuses_field(reply.status, error):
                await reply.aclose()
                return await self._send_again(record, request, candidate, client_headers)
        if injected and error is None and good:
            self._stream_options.mark_supported(provider.name, request.model, monotonic())
        return ProviderResponse(provider, reply, injected, latency_ms)

    async def _send_again(
        self, record: CallRecord, request: ChatRequest, candidate: Candidate, client_headers: h.Headers
    ) -> ProviderResponse:
        """The same without `stream_options`, which were refused."""
        provider = candidate.provider
        record.attempts.mark_failed("stream_options refused", maybe_billed=False)
        # A provider that keeps to idempotency keys would repeat its refusal, or refuse the key.
        outgoing = await self._begin(record, candidate, client_headers, f"{record.correlation_id}-2")
        reply = PeekedReply(await self._client.send(provider, request.body, outgoing))
        latency_ms = record.attempts.mark_answered(reply.status)
        if 200 <= reply.status < 300 and await _error_of(reply) is None:
            self._learn(provider, request.model, record.end_user)
        return ProviderResponse(provider, reply, False, latency_ms)

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


async def _error_of(reply: PeekedReply) -> bytes | None:
    """The beginning of an error, by its status or in a reply with a good one; None for what is no error, or not yet.

    Lets go of the reply where it is cancelled.
    """
    try:
        if 200 <= reply.status < 300:
            first = FirstEventWatcher(reply.headers)
            await first.watch(reply, SECONDS_FOR_FIRST_EVENT)
            return None if first.summary.error is None else _decoded(reply)
        if reply.status < 400:
            return None
        size = 0

        def enough(chunk: bytes) -> bool:
            nonlocal size
            size += len(chunk)
            return size >= MAX_ERROR_BYTES

        await reply.peek(enough, SECONDS_FOR_REFUSAL)
        return _decoded(reply)
    except BaseException:
        await reply.aclose()
        raise


def _refuses_field(status: int, error: bytes) -> bool:
    """Whether an error says that what we added is why; one about the account or of a busy provider must name it."""
    if _NAMED.search(error):
        return True
    return status not in (*ACCOUNT, *BUSY) and _UNKNOWN_FIELD.search(error) is not None


def _decoded(reply: PeekedReply) -> bytes:
    """What has been read of the body, without gzip or deflate, at most 64 KiB."""
    beginning = reply.beginning[:MAX_ERROR_BYTES]
    if not reply.headers.is_plain:
        with suppress(zlib.error):
            return zlib.decompressobj(GZIP_OR_ZLIB).decompress(beginning, MAX_ERROR_BYTES)
    return beginning
