"""A small HTTP proxy: CONNECT, and requests with a whole URL."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit


class Proxy:
    """What it was asked, newest last. `status` is what CONNECT gets; None: no answer."""

    def __init__(self, login: str = "") -> None:
        self.port = 0
        self.asked: list[str] = []
        self.status: int | None = 200
        self._wanted = f"Basic {b64encode(login.encode()).decode()}" if login else ""
        self._tasks: set[asyncio.Task[None]] = set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        with suppress(asyncio.CancelledError, ConnectionError, asyncio.IncompleteReadError):
            await task
        writer.close()

    async def close(self) -> None:
        """End what still runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        self.asked.append(f"{method} {target}")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if headers.get("proxy-authorization", "") != self._wanted:
            writer.write(b"HTTP/1.1 407 No\r\nproxy-authenticate: Basic\r\ncontent-length: 6\r\n\r\nLog in")
            await writer.drain()
            return
        if method == "CONNECT":
            if self.status is None:
                await reader.read()
                return
            writer.write(b"HTTP/1.1 %d Whatever\r\n\r\n" % self.status)
            host, _, port = target.rpartition(":")
            if self.status == 200:
                await self._relay(reader, writer, host, int(port), b"")
            return
        at = urlsplit(target)
        passed = [line for line in lines if not line.lower().startswith("proxy-")]
        start = f"{method} {at.path}?{at.query} HTTP/1.1".replace("? ", " ")
        await self._relay(reader, writer, str(at.hostname), int(at.port or 80), "\r\n".join([start, *passed]).encode())

    async def _relay(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int, head: bytes
    ) -> None:
        theirs, ours = await asyncio.open_connection(host, port)
        ours.write(head)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
            sink.close()

        try:
            await asyncio.gather(pump(reader, ours), pump(theirs, writer))
        finally:
            ours.close()


@asynccontextmanager
async def proxy(login: str = "") -> AsyncIterator[Proxy]:
    """A running proxy, which wants this `user:password`."""
    it = Proxy(login)
    server = await asyncio.start_server(it.connected, "127.0.0.1", 0)
    it.port = server.sockets[0].getsockname()[1]
    try:
        yield it
    finally:
        server.close()
        await it.close()
        await server.wait_closed()
