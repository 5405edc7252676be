"""Database servers that speak TLS: in front of those of the tests, which need not, and decrypting for them."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.support.databases import server

PORTS = {"postgresql": 5432, "mysql": 3306}
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_CLIENT_SSL = 0x08  # the capability of MySQL's protocol, in the second byte of its flags
_SSL_REQUEST = {"postgresql": 8, "mysql": 36}  # bytes


class TlsServer:
    """Where one listens; `encrypted` counts the connections that went on with TLS."""

    def __init__(self, dialect: str, context: ssl.SSLContext, listener: socket.socket) -> None:
        self.port = int(listener.getsockname()[1])
        self.encrypted = 0
        self._dialect = dialect
        self._context = context
        self._listener = listener

    async def serve(self) -> None:
        """Take connections until cancelled."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as connections:
            while True:
                client, _ = await loop.sock_accept(self._listener)
                connections.create_task(self._answer(client))

    async def _answer(self, client: socket.socket) -> None:
        at = server(self._dialect)
        far = await asyncio.open_connection(at.hostname, at.port or PORTS[self._dialect])
        writers = [far[1]]
        try:
            near = await self._encrypt(client, far[0])
            writers.append(near[1])
            if self._dialect == "mysql":
                await _log_in(near, far)
            self.encrypted += 1
            await asyncio.gather(_copy(near[0], far[1]), _copy(far[0], near[1]))
        except (OSError, asyncio.IncompleteReadError, ConnectionError):
            client.close()
        finally:
            for writer in writers:
                writer.close()

    async def _encrypt(self, client: socket.socket, far: asyncio.StreamReader) -> Streams:
        """Read no more than the request for TLS: the handshake may follow at once."""
        loop = asyncio.get_running_loop()
        if self._dialect == "mysql":
            greeting = bytearray(await _packet(far))
            flags = greeting.index(0, 5) + 1 + 4 + 8 + 1  # behind version, thread and salt
            greeting[flags + 1] |= _CLIENT_SSL
            await loop.sock_sendall(client, greeting)
        if len(await loop.sock_recv(client, _SSL_REQUEST[self._dialect])) < _SSL_REQUEST[self._dialect]:
            raise ConnectionError("no request for TLS")
        if self._dialect == "postgresql":
            await loop.sock_sendall(client, b"S")
        reader = asyncio.StreamReader()
        transport, protocol = await loop.connect_accepted_socket(
            lambda: asyncio.StreamReaderProtocol(reader), client, ssl=self._context
        )
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


@asynccontextmanager
async def tls_server(dialect: str, context: ssl.SSLContext) -> AsyncIterator[TlsServer]:
    """A server with TLS on a port of loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        tls = TlsServer(dialect, context, listener)
        task = asyncio.create_task(tls.serve())
        try:
            yield tls
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def _log_in(near: Streams, far: Streams) -> None:
    """MySQL's packets are numbered, and the server has not seen the request for TLS."""
    response = bytearray(await _packet(near[0]))
    response[3] -= 1
    response[5] &= ~_CLIENT_SSL & 0xFF
    far[1].write(response)
    answer = bytearray(await _packet(far[0]))
    answer[3] += 1
    near[1].write(answer)


async def _packet(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(4)
    return head + await reader.readexactly(int.from_bytes(head[:3], "little"))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
