"""The way to a provider, over httpx; the only room that knows httpx and aiohttp.

The default transport is httpx-aiohttp's, called directly: a quarter of the CPU of `httpx.AsyncClient`, which does
for a browser-like client much that a relay must not do (cookies, redirects, decoding). It runs on a session of our
own, because its default one keeps cookies (and would send one user's to the next) and stops at 100 connections.
"""

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Protocol

import aiohttp
import httpx
from aiohttp.client_proto import ResponseHandler
from httpx_aiohttp import AiohttpTransport

from arbstr_asgi.errors import UpstreamError, UpstreamTimeout, UpstreamUnreachable
from arbstr_asgi.provider import Provider

logger = logging.getLogger("arbstr_asgi")

Headers = Sequence[tuple[bytes, bytes]]

KEEPALIVE_SECONDS = 5.0  # a POST on a connection that the provider has just closed can't be repeated safely
MAX_HEADER_BYTES = 65536
# What a stream holds of a reply while its client reads nothing; event loops would read 256 KiB at once.
READ_BYTES = 16 * 1024
READ_BUFFER_BYTES = 8 * 1024  # aiohttp stops reading when it has twice that

# Nothing of the request has reached the provider; anything else may have been worked on and billed.
_NEVER_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


class Upstream(Protocol):
    """Opens replies. One provider is asked; several could be behind the same seam."""

    def open(self, provider: Provider, body: bytes, headers: Headers) -> "Opening":
        """A context that sends the request and yields the Reply. Raises UpstreamError on entering."""
        ...

    async def close(self) -> None:
        """Close the connections that are ours."""
        ...


class HttpxUpstream:
    """Providers over HTTP: on a transport of our own, or on the host's transport or client, which it closes itself."""

    def __init__(
        self, *, transport: httpx.AsyncBaseTransport | None = None, client: httpx.AsyncClient | None = None
    ) -> None:
        if transport is not None and client is not None:
            raise TypeError("give transport or client, not both")
        self._transport = transport
        self._client = client
        self._own: AiohttpTransport | None = None
        self._urls: dict[str, httpx.URL] = {}

    def open(self, provider: Provider, body: bytes, headers: Headers) -> "Opening":
        """Prepare the request; it is sent on entering. Raises UpstreamError there."""
        url = self._urls.get(provider.name)
        if url is None:
            url = self._urls[provider.name] = httpx.URL(
                f"{provider.url}/chat/completions", params=provider.query or None
            )
        # No total and no read time-out: the gateway's own deadline tells a slow first byte from an idle stream.
        timeout = {"connect": provider.connect_timeout, "read": None, "write": None, "pool": None}
        request = httpx.Request("POST", url, headers=list(headers), content=body, extensions={"timeout": timeout})
        return Opening(self, request)

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send on whichever transport there is; the body is still to be read."""
        if self._client is not None:
            return await self._client.send(request, stream=True, follow_redirects=False)
        if self._transport is not None:
            return await self._transport.handle_async_request(request)
        if self._own is None:
            self._own = AiohttpTransport(client=_session)
        return await self._own.handle_async_request(request)

    async def close(self) -> None:
        """Close our own connections, if any were made."""
        if self._own is not None:
            await self._own.aclose()
            self._own = None


class Opening:
    """Holds a reply open for the length of a `with` block."""

    __slots__ = ("_request", "_response", "_upstream")

    def __init__(self, upstream: HttpxUpstream, request: httpx.Request) -> None:
        self._upstream = upstream
        self._request: httpx.Request | None = request
        self._response: httpx.Response | None = None

    async def __aenter__(self) -> "Reply":
        assert self._request is not None
        request, self._request = self._request, None  # a long stream need not hold the request's body
        try:
            response = await self._upstream.send(request)
        except Exception as error:  # noqa: BLE001 - transports let more through than httpx.HTTPError
            # The class says enough; the text may hold the URL's secrets.
            logger.warning("no answer from %s: %s", request.url.host, type(error.__cause__ or error).__name__)
            raise _opening_error(error) from None
        self._response = response
        return Reply(response)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._response is not None:
            await self._response.aclose()


class Reply:
    """A provider's answer: status, headers as they came, and its body's bytes by iterating, undecoded."""

    __slots__ = ("_stream", "headers", "status")

    def __init__(self, response: httpx.Response) -> None:
        assert isinstance(response.stream, httpx.AsyncByteStream)
        self.status = response.status_code
        self.headers: Headers = response.headers.raw
        self._stream = response.stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Raises UpstreamError where the body breaks off."""
        try:
            async for chunk in self._stream:
                yield chunk
        except httpx.TimeoutException:
            raise UpstreamTimeout("The provider stopped sending.") from None
        except Exception:  # noqa: BLE001 - transports let more through than httpx.HTTPError
            raise UpstreamError("The provider's reply broke off.", code="upstream_disconnected") from None


class _Reader(asyncio.BufferedProtocol):
    """Reads little at a time for a protocol that would be handed as much as there is."""

    def __init__(self, protocol: ResponseHandler, buffer: memoryview) -> None:
        self._protocol = protocol
        self._buffer = buffer
        self.eof_received = protocol.eof_received  # type: ignore[method-assign]
        self.connection_lost = protocol.connection_lost  # type: ignore[method-assign]
        self.pause_writing = protocol.pause_writing  # type: ignore[method-assign]
        self.resume_writing = protocol.resume_writing  # type: ignore[method-assign]

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """So many have come."""
        self._protocol.data_received(bytes(self._buffer[:nbytes]))


class _Protocol(ResponseHandler):
    """aiohttp's, but a malformed chunk ends the body at once; its own leaves the reader waiting for ever."""

    def __init__(self, loop: asyncio.AbstractEventLoop, buffer: memoryview) -> None:
        super().__init__(loop)
        self._read_into = buffer

    def connection_made(self, transport: Any) -> None:
        """Read little at a time from now on."""
        super().connection_made(transport)
        transport.set_protocol(_Reader(self, self._read_into))

    def set_exception(self, exc: Any, *cause: BaseException) -> None:
        super().set_exception(exc, *cause)
        payload = self._payload
        if payload is not None and not payload.is_eof() and payload.exception() is None:
            payload.set_exception(aiohttp.ClientPayloadError("malformed body"))


def _session() -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_SECONDS, ssl=httpx.create_ssl_context())
    # One buffer for all connections of a loop: what has come is taken out before anything else is read.
    buffer = memoryview(bytearray(READ_BYTES))
    # There is no public way to choose the protocol.
    factory: Any = functools.partial(_Protocol, asyncio.get_running_loop(), buffer)
    connector._factory = factory
    return aiohttp.ClientSession(
        connector=connector,
        skip_auto_headers=("User-Agent", "Accept"),
        cookie_jar=aiohttp.DummyCookieJar(),
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        read_bufsize=READ_BUFFER_BYTES,
    )


def _opening_error(error: Exception) -> UpstreamError:
    """The AiohttpTransport raises ConnectTimeout for nearly everything; what happened is in the cause."""
    cause = error.__cause__ or error
    if isinstance(cause, aiohttp.ConnectionTimeoutError):
        late = UpstreamTimeout("The provider could not be reached in time.")
        late.sent = False
        return late
    if isinstance(cause, _NEVER_SENT) or type(error) in (
        httpx.ConnectError,
        httpx.ProxyError,
        httpx.UnsupportedProtocol,
    ):
        return UpstreamUnreachable("The provider could not be reached.")
    if isinstance(cause, (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
        return UpstreamError("The provider closed the connection without an answer.", code="upstream_disconnected")
    if isinstance(error, httpx.TimeoutException):
        return UpstreamTimeout("The provider did not answer in time.")
    if isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError):
        return UpstreamError("The provider closed the connection without an answer.", code="upstream_disconnected")
    return UpstreamError("The provider's answer could not be read.", code="upstream_protocol_error")
