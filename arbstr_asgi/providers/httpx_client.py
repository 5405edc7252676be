"""HTTP client on httpx: for the transport or client of the host, and for proxies."""

import asyncio
import functools
import logging
import ssl
from base64 import b64encode
from collections.abc import Coroutine
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp
import httpx
from aiohttp.client_proto import ResponseHandler
from httpx_aiohttp import AiohttpTransport

from arbstr_asgi.config.provider import Provider
from arbstr_asgi.errors import UpstreamError, UpstreamUnreachable
from arbstr_asgi.providers.client_errors import connect_error, read_error
from arbstr_asgi.providers.headers import Headers, RawHeaders
from arbstr_asgi.providers.tls import TlsContexts

logger = logging.getLogger("arbstr_asgi")

_WANTS_CREDENTIALS = 407
MAX_HEADER_BYTES = 65536
# What a stream holds of a reply while its client reads nothing; event loops would read 256 KiB at once.
READ_BYTES = 16 * 1024
READ_BUFFER_BYTES = 8 * 1024  # aiohttp stops reading when it has twice that


class TransportPool:
    """httpx-aiohttp transports, shared by providers with the same proxy, authorities and keep-alive timeout.

    Those with `max_connections` have one each. They run on sessions of our own, because their default one keeps cookies
    (and would send one user's to the next) and stops at 100 connections. Nothing is made before it is needed.
    """

    def __init__(self, tls_contexts: TlsContexts) -> None:
        self._made: dict[tuple[str | float | None, ...], AiohttpTransport] = {}
        self._tls_contexts = tls_contexts

    def get(self, provider: Provider) -> AiohttpTransport:
        """The transport for `provider` in the running loop. Raises OSError if its `ca_file` can't be read."""
        alone = None if provider.max_connections is None else provider.name
        key = (provider.proxy, provider.ca_file, provider.keepalive_timeout, alone)
        transport = self._made.get(key)
        if transport is None:
            context = self._tls_contexts.get(provider.ca_file)
            transport = self._made[key] = AiohttpTransport(
                verify=context,
                proxy=None if provider.proxy is None else _proxy(provider.proxy),
                client=functools.partial(_session, context, provider),
            )
        return transport

    async def close(self) -> None:
        """Close all connections. New ones may be opened afterwards, also in another event loop."""
        while self._made:
            _, transport = self._made.popitem()
            await transport.aclose()


def proxy_login(url: str) -> str | None:
    """The value of `proxy-authorization` for a proxy URL with a user, or None."""
    parts = urlsplit(url)
    if parts.username is None:
        return None
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return f"Basic {b64encode(login.encode()).decode()}"


def _proxy(url: str) -> httpx.Proxy:
    """The login is passed as a header for CONNECT: aiohttp needs that, and httpx-aiohttp does not do it."""
    bare, login = httpx.URL(url).copy_with(username=None, password=None), proxy_login(url)
    return httpx.Proxy(bare, headers=None if login is None else {"proxy-authorization": login})


class _Reader(asyncio.BufferedProtocol):
    """Limits the size of a read for a protocol without a buffer of its own."""

    def __init__(self, protocol: ResponseHandler, buffer: memoryview) -> None:
        self._protocol = protocol
        self._buffer = buffer
        self.eof_received = protocol.eof_received  # type: ignore[method-assign]
        self.connection_lost = protocol.connection_lost  # type: ignore[method-assign]
        self.pause_writing = protocol.pause_writing  # type: ignore[method-assign]
        self.resume_writing = protocol.resume_writing  # type: ignore[method-assign]

    def get_buffer(self, sizehint: int) -> memoryview:
        """The buffer for the next read."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Pass on what was read."""
        self._protocol.data_received(bytes(self._buffer[:nbytes]))


class _Protocol(ResponseHandler):
    """aiohttp's protocol, but a malformed chunk fails the body at once, where aiohttp's leaves its reader waiting."""

    def __init__(self, loop: asyncio.AbstractEventLoop, buffer: memoryview) -> None:
        super().__init__(loop)
        self._read_into = buffer

    def connection_made(self, transport: Any) -> None:
        """Read through a `_Reader` from now on."""
        super().connection_made(transport)
        transport.set_protocol(_Reader(self, self._read_into))

    def set_exception(self, exc: Any, *cause: BaseException) -> None:
        super().set_exception(exc, *cause)
        payload = self._payload
        if payload is not None and not payload.is_eof() and payload.exception() is None:
            payload.set_exception(aiohttp.ClientPayloadError("malformed body"))


def _session(context: ssl.SSLContext, provider: Provider) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(
        limit=provider.max_connections or 0,
        ssl=context,
        **({"keepalive_timeout": idle} if (idle := provider.keepalive_timeout) else {"force_close": True}),
    )
    # One buffer for all connections of a session: what has come is taken out before anything else is read.
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


class HttpxClient:
    """Sends over the transport or client of the host, which the host closes itself, or over own transports."""

    def __init__(
        self,
        tls_contexts: TlsContexts,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        client: httpx.AsyncClient | None = None,
    ) -> None:
        self._transport = transport
        self._client = client
        self._own = TransportPool(tls_contexts)
        self._urls: dict[str, httpx.URL] = {}

    async def send(self, provider: Provider, body: bytes, headers: RawHeaders) -> "HttpxReply":
        """Send a request and wait for the response head. Raises UpstreamError."""
        request = self._request(provider, body, headers)
        failure: UpstreamError | None = None
        try:
            response = await self._send(provider, request)
        except Exception as error:  # noqa: BLE001 - transports let more through than httpx.HTTPError
            # The class says enough; the text may hold the URL's secrets.
            logger.warning("no answer from %s: %s", request.url.host, type(error.__cause__ or error).__name__)
            failure = connect_error(error)
        if failure is not None:
            raise failure  # out of the handler, whose error may hold a proxy's login
        if response.status_code == _WANTS_CREDENTIALS and provider.proxy is not None:
            await response.aclose()
            logger.warning("no answer from %s: its proxy refuses our credentials", request.url.host)
            raise UpstreamUnreachable("The provider could not be reached.")
        return HttpxReply(response)

    def _request(self, provider: Provider, body: bytes, headers: RawHeaders) -> httpx.Request:
        url = self._urls.get(provider.name)
        if url is None:
            url = self._urls[provider.name] = httpx.URL(
                f"{provider.url}/chat/completions", params=provider.query or None
            )
        # No total and no read time-out: the gateway's own deadline tells a slow first byte from an idle stream. "pool"
        # is the wait for a connection together with making it, through a proxy, too.
        connect = provider.connect_timeout
        timeout = {"connect": connect, "read": None, "write": None, "pool": connect}
        sent = [*headers]
        if provider.proxy is not None and url.scheme == "http" and (login := proxy_login(provider.proxy)):
            sent.append((b"proxy-authorization", login.encode()))  # without a tunnel it is the proxy that reads this
        return httpx.Request("POST", url, headers=sent, content=body, extensions={"timeout": timeout})

    def _send(self, provider: Provider, request: httpx.Request) -> Coroutine[Any, Any, httpx.Response]:
        if self._client is not None:
            return self._client.send(request, stream=True, follow_redirects=False)
        transport = self._own.get(provider) if self._transport is None else self._transport
        return transport.handle_async_request(request)

    async def close(self) -> None:
        """Close our own connections."""
        await self._own.close()


class HttpxReply:
    """A response over httpx."""

    __slots__ = ("_chunks", "_missing", "_response", "ended", "headers", "status")

    def __init__(self, response: httpx.Response) -> None:
        assert isinstance(response.stream, httpx.AsyncByteStream)
        self._response = response
        self.status = response.status_code
        self.headers = Headers(response.headers.raw)
        self._chunks = aiter(response.stream)
        length = self.headers.get(b"content-length")
        self._missing = int(length) if length is not None and length.isdecimal() and len(length) < 20 else None
        self.ended = False

    async def read(self) -> bytes:
        """The next bytes of the body, b"" at its end. Raises UpstreamError if the body is truncated."""
        chunk = b""
        try:
            while not chunk:
                chunk = await anext(self._chunks)
        except StopAsyncIteration:
            self.ended = True
            return b""
        except Exception as error:  # noqa: BLE001 - transports let more through than httpx.HTTPError
            raise read_error(error) from None
        if self._missing is not None:  # nothing can follow the last byte, whatever the provider does
            self._missing -= len(chunk)
            self.ended = self._missing <= 0
        return chunk

    async def aclose(self) -> None:
        """Close the response."""
        await self._response.aclose()
