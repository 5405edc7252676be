"""The connections of our own to providers, on aiohttp.

The transport is httpx-aiohttp's, called directly: a quarter of the CPU of `httpx.AsyncClient`, which does for a
browser-like client much that a relay must not do (cookies, redirects, decoding). It runs on sessions of our own,
because its default one keeps cookies (and would send one user's to the next) and stops at 100 connections."""

import asyncio
import functools
import ssl
from base64 import b64encode
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp
import httpx
from aiohttp.client_proto import ResponseHandler
from httpx_aiohttp import AiohttpTransport

from arbstr_asgi.config.provider import Provider

KEEPALIVE_SECONDS = 5.0  # a POST on a connection that the provider has just closed can't be repeated safely
MAX_HEADER_BYTES = 65536
# What a stream holds of a reply while its client reads nothing; event loops would read 256 KiB at once.
READ_BYTES = 16 * 1024
READ_BUFFER_BYTES = 8 * 1024  # aiohttp stops reading when it has twice that


class TransportPool:
    """One for all providers with the same proxy and the same authorities; one each for those with `max_connections`.

    Nothing is made before it is needed.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[str | None, ...], AiohttpTransport] = {}
        self._trusting: dict[str | None, ssl.SSLContext] = {}

    def get(self, provider: Provider) -> AiohttpTransport:
        """The way to `provider`, for the loop that runs. Raises OSError where its `ca_file` can't be read."""
        alone = None if provider.max_connections is None else provider.name
        way = (provider.proxy, provider.ca_file, alone)
        transport = self._made.get(way)
        if transport is None:
            trusting = self.ssl_context(provider.ca_file)
            transport = self._made[way] = AiohttpTransport(
                verify=trusting,
                proxy=None if provider.proxy is None else _proxy(provider.proxy),
                client=functools.partial(_session, trusting, provider.max_connections or 0),
            )
        return transport

    def ssl_context(self, ca_file: str | None) -> ssl.SSLContext:
        """What trusts the authorities of `ca_file`, or those of everybody. Raises OSError where that can't be read."""
        context = self._trusting.get(ca_file)
        if context is None:
            context = ssl.create_default_context(cafile=ca_file) if ca_file else httpx.create_ssl_context()
            self._trusting[ca_file] = context
        return context

    async def close(self) -> None:
        """Close all connections; they can be made anew, in another loop, too."""
        while self._made:
            _, transport = self._made.popitem()
            await transport.aclose()


def proxy_login(url: str) -> str | None:
    """What a proxy whose URL has a user wants in `proxy-authorization`."""
    parts = urlsplit(url)
    if parts.username is None:
        return None
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return f"Basic {b64encode(login.encode()).decode()}"


def _proxy(url: str) -> httpx.Proxy:
    """The login is given as a header, for tunnels: as aiohttp wants it, and httpx-aiohttp does not do it."""
    bare, login = httpx.URL(url).copy_with(username=None, password=None), proxy_login(url)
    return httpx.Proxy(bare, headers=None if login is None else {"proxy-authorization": login})


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


def _session(trusting: ssl.SSLContext, max_connections: int) -> aiohttp.ClientSession:
    """`max_connections` of 0 are any number."""
    connector = aiohttp.TCPConnector(limit=max_connections, keepalive_timeout=KEEPALIVE_SECONDS, ssl=trusting)
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
