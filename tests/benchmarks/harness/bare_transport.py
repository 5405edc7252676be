"""The bare relay's transport: httpx-aiohttp's on a session that reads little at a time and keeps no cookies."""

import asyncio
import functools
from typing import Any

import aiohttp
import httpx
from aiohttp.client_proto import ResponseHandler
from httpx_aiohttp import AiohttpTransport

READ_BYTES = 16 * 1024
READ_BUFFER_BYTES = 8 * 1024
MAX_HEADER_BYTES = 65536


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
    """aiohttp's, read by a `_Reader`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, buffer: memoryview) -> None:
        super().__init__(loop)
        self._read_into = buffer

    def connection_made(self, transport: Any) -> None:
        """Read little at a time from now on."""
        super().connection_made(transport)
        transport.set_protocol(_Reader(self, self._read_into))


def _session(context: Any) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=5.0, ssl=context)
    factory: Any = functools.partial(_Protocol, asyncio.get_running_loop(), memoryview(bytearray(READ_BYTES)))
    connector._factory = factory
    return aiohttp.ClientSession(
        connector=connector,
        skip_auto_headers=("User-Agent", "Accept"),
        cookie_jar=aiohttp.DummyCookieJar(),
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        read_bufsize=READ_BUFFER_BYTES,
    )


def bare_transport() -> AiohttpTransport:
    """A transport for the loop that will run."""
    context = httpx.create_ssl_context()
    return AiohttpTransport(verify=context, client=functools.partial(_session, context))
