"""HTTP/1.1 client on aiohttp's connection pool, without the per-request objects of an HTTP client library."""

import asyncio
import functools
import logging
from typing import Any

import aiohttp
import httpx
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from yarl import URL

from arbstr_asgi.config.provider import Provider
from arbstr_asgi.errors import UpstreamError
from arbstr_asgi.providers.client_errors import connect_error, read_error
from arbstr_asgi.providers.headers import Headers, RawHeaders
from arbstr_asgi.providers.http1 import READ_BYTES, Http1Connection
from arbstr_asgi.providers.tls import TlsContexts

logger = logging.getLogger("arbstr_asgi")

# A reused connection that is closed within this time of a request, without a byte of a response, was closed for being
# idle: the request was not processed and is retried once.
KEEPALIVE_RACE_SECONDS = 1.0
_CLOSED = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)


class DirectClient:
    """Sends requests to providers without a proxy."""

    def __init__(self, tls_contexts: TlsContexts) -> None:
        self._tls_contexts = tls_contexts
        self._connectors: dict[tuple[str | float | None, ...], aiohttp.TCPConnector] = {}
        self._routes: dict[str, Route] = {}

    async def send(self, provider: Provider, body: bytes, headers: RawHeaders) -> "DirectReply":
        """Send a request and wait for the response head. Raises UpstreamError."""
        failure: UpstreamError | None = None
        try:
            route = self._routes.get(provider.name)
            if route is None:
                route = self._routes[provider.name] = Route(provider, self._connector(provider))
            return await route.send(body, headers)
        except UpstreamError:
            raise
        except Exception as error:  # noqa: BLE001 - aiohttp, DNS, TLS and socket errors
            # The message may hold secrets of the URL.
            logger.warning("no answer from %s: %s", URL(provider.url).host, type(error).__name__)
            failure = connect_error(error)
        raise failure

    async def close(self) -> None:
        """Close all connections. New ones may be opened afterwards, also in another event loop."""
        self._routes.clear()
        while self._connectors:
            _, connector = self._connectors.popitem()
            await connector.close()

    def _connector(self, provider: Provider) -> aiohttp.TCPConnector:
        """The connection pool of a provider in the running loop; not shared if it has `max_connections`."""
        alone = None if provider.max_connections is None else provider.name
        tls = URL(provider.url).scheme == "https"
        key = (tls, provider.ca_file, provider.keepalive_timeout, alone)
        connector = self._connectors.get(key)
        if connector is None:
            idle = provider.keepalive_timeout
            connector = self._connectors[key] = aiohttp.TCPConnector(
                limit=provider.max_connections or 0,
                ssl=self._tls_contexts.get(provider.ca_file) if tls else True,
                **({"keepalive_timeout": idle} if idle else {"force_close": True}),
            )
            # aiohttp has no public API to set the protocol class.
            factory: Any = functools.partial(
                Http1Connection, asyncio.get_running_loop(), memoryview(bytearray(READ_BYTES))
            )
            connector._factory = factory
        return connector


class _Target(ClientRequest):
    """The destination of connections, in the form that aiohttp's connector takes."""

    connection_key: Any = None  # a plain attribute: aiohttp's property is computed for each request


class Route:
    """What all requests to a provider share: pool, destination, timeouts, the start of the request head."""

    def __init__(self, provider: Provider, connector: aiohttp.TCPConnector) -> None:
        at = httpx.URL(f"{provider.url}/chat/completions", params=provider.query or None)
        url = URL(str(at))
        self._connector = connector
        self._loop = asyncio.get_running_loop()
        self._target = _Target("POST", url, loop=self._loop)
        self._target.connection_key = ClientRequest.connection_key.fget(self._target)  # type: ignore[attr-defined]
        # No total or read timeout: the gateway's deadline covers first byte and idle time. `connect` includes the wait
        # for a free connection.
        seconds = provider.connect_timeout
        self._timeout = aiohttp.ClientTimeout(connect=seconds, sock_connect=seconds)
        self._head = b"POST %b HTTP/1.1\r\nhost: %b\r\ncontent-length: " % (url.raw_path_qs.encode(), at.netloc)

    async def send(self, body: bytes, headers: RawHeaders) -> "DirectReply":
        """Send a request and wait for the response head.

        Raises errors of aiohttp, and UpstreamError for a header that can't be sent.
        """
        head = self._request_head(len(body), headers)
        connection = await self._connect()
        reader = _reader(connection)
        began = self._loop.time()
        try:
            return await _exchange(connection, reader, head, body)
        except _CLOSED:
            if not reader.reused or reader.received or self._loop.time() - began > KEEPALIVE_RACE_SECONDS:
                raise
        # Keep-alive race: the provider closed the idle connection before it read the request.
        connection = await self._connect_anew()
        return await _exchange(connection, _reader(connection), head, body)

    def _request_head(self, length: int, headers: RawHeaders) -> bytes:
        head = b"".join(
            (self._head, b"%d" % length, *[b"\r\n%b: %b" % (name, value) for name, value in headers], b"\r\n\r\n")
        )
        lines = len(headers) + 4
        if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\0" in head:
            raise UpstreamError(
                "A header for the provider holds a line end or a NUL; nothing was sent.",
                code="upstream_protocol_error",
                sent=False,
            )
        return head

    async def _connect(self) -> Connection:
        try:
            return await self._connector.connect(self._target, [], self._timeout)
        except TimeoutError:
            raise aiohttp.ConnectionTimeoutError from None

    async def _connect_anew(self) -> Connection:
        """A new connection. Idle ones are closed: the provider has probably closed them as well."""
        while _reader(connection := await self._connect()).used:
            connection.close()
        return connection


def _reader(connection: Connection) -> Http1Connection:
    reader: Any = connection.protocol
    assert isinstance(reader, Http1Connection)
    return reader


async def _exchange(connection: Connection, reader: Http1Connection, head: bytes, body: bytes) -> "DirectReply":
    try:
        reader.send(head, body)
        await reader.wait_head()
    except BaseException:
        connection.close()
        raise
    return DirectReply(connection, reader)


class DirectReply:
    """A response whose connection returns to the pool as soon as the whole body has been read."""

    __slots__ = ("_connection", "_reader", "ended", "headers", "status")

    def __init__(self, connection: Connection, reader: Http1Connection) -> None:
        self._connection = connection
        self._reader = reader
        self.status = reader.status
        self.headers = Headers(reader.headers)
        self.ended = False

    async def read(self) -> bytes:
        """The bytes received so far, b"" at the end of the body. Raises UpstreamError if it is truncated."""
        if self.ended:
            return b""
        reader = self._reader
        try:
            while (chunk := reader.take()) is None:
                await reader.more()
        except aiohttp.ClientError as error:
            raise read_error(error) from None
        if reader.complete:
            self.ended = True
            self._connection.release()
        return chunk

    async def aclose(self) -> None:
        """Close the connection, unless the body was read to its end."""
        if not self.ended:
            self._connection.close()
