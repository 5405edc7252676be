"""Size: what is large or slow passes in bounded memory, on servers of their own."""

import asyncio
import hashlib
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.fake_provider import JSON_TYPE, SSE_TYPE, USAGE, event
from tests.support.raw_http_client import PATH
from tests.support.servers import SECONDS, Spawned, spawned, until_rows

MIB = 1024 * 1024
PART = b"All of it is relayed. " * 2979  # some 64 KiB
PARTS = 1600  # so that it is 100 MiB
BEFORE = b'{"id":"c-1","object":"chat.completion","model":"m-1","choices":[{"index":0,"message":{"content":"'
BEHIND = b'"},"finish_reason":"stop"}],"usage":%b}' % json.dumps(USAGE).encode()
BODY_SIZE = len(BEFORE) + PARTS * len(PART) + len(BEHIND)
MAX_GROWTH_KB = 60 * 1024
MAX_TAKEN = 40 * MIB  # nearly all of it in the kernel's buffers of two connections
SERVERS = ["uvicorn", "hypercorn"]


class Large:
    """A provider that answers with one large reply, and knows how much of it was taken off its hands."""

    def __init__(self) -> None:
        self.url = ""
        self.taken = 0
        self.digest = hashlib.sha256()
        self.halfway = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
            asked = json.loads(await reader.readexactly(length))
            await (self._flood(writer) if asked.get("stream") else self._plain(writer, str(asked["model"])))
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            if not writer.is_closing():
                writer.transport.abort()
            self._tasks.discard(task)

    async def _plain(self, writer: asyncio.StreamWriter, model: str) -> None:
        chunked = model == "chunked"
        size = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % BODY_SIZE
        writer.write(b"HTTP/1.1 200 OK\r\n" + _lines(JSON_TYPE) + size + b"\r\nconnection: close\r\n\r\n")
        for number, part in enumerate([BEFORE, *[PART] * PARTS, BEHIND]):
            if number == PARTS // 2:
                await self.halfway.wait()
            self.digest.update(part)
            writer.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
            await writer.drain()
        if chunked:
            writer.write(b"0\r\n\r\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def _flood(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n" + _lines(SSE_TYPE) + b"connection: close\r\n\r\n")
        sent = event({"choices": [{"index": 0, "delta": {"content": PART.decode()}, "finish_reason": None}]})
        while True:
            writer.write(sent)
            await writer.drain()
            self.taken += len(sent)

    async def close(self) -> None:
        """End what still runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks)


def _lines(headers: dict[str, str]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()


@asynccontextmanager
async def large() -> AsyncIterator[Large]:
    """A running one."""
    it = Large()
    server = await asyncio.start_server(it.connected, "127.0.0.1", 0)
    it.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield it
    finally:
        server.close()
        await it.close()
        await server.wait_closed()


async def asked(url: str, body: dict[str, Any], *, receive_buffer: int = 0) -> tuple[Any, Any]:
    """A connection that has sent a request and read the reply's head."""
    at = urlsplit(url)
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, (at.hostname, at.port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=MIB if not receive_buffer else 1024)
    content = json.dumps(body).encode()
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n"
    writer.write(head.encode() + b"\r\n" + content)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    return reader, writer


async def parts(reader: asyncio.StreamReader, *, chunked: bool) -> AsyncIterator[bytes]:
    """The body, as it comes."""
    left = BODY_SIZE
    while not chunked and left:
        part = await reader.read(min(left, MIB))
        assert part
        left -= len(part)
        yield part
    while chunked and (size := int(await reader.readuntil(b"\r\n"), 16)):
        yield (await reader.readexactly(size + 2))[:-2]


def peak_kb(server: Spawned) -> int:
    """The most resident memory that a server has ever had."""
    status = Path(f"/proc/{server.process.pid}/status").read_text("ascii")
    return int(status.partition("VmHWM:")[2].split()[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", SERVERS)
def test_large_reply(kind: str, tmp_path: Path) -> None:
    """A plain reply of 100 MiB comes whole and from its beginning, is metered, and is nowhere held."""

    async def main() -> None:
        async with large() as provider, spawned(tmp_path, kind, provider.url) as server:
            for model in ("length", "chunked"):
                provider.digest, provider.halfway = hashlib.sha256(), asyncio.Event()
                before = peak_kb(server)
                got = hashlib.sha256()
                async with asyncio.timeout(3 * SECONDS):
                    reader, writer = await asked(server.url, {"model": model, "messages": []})
                    async for part in parts(reader, chunked=model == "chunked"):
                        got.update(part)
                        provider.halfway.set()  # until the client has something, the provider has no end of it
                assert got.digest() == provider.digest.digest()
                assert peak_kb(server) - before < MAX_GROWTH_KB
                writer.close()
                await writer.wait_closed()
            for row in await until_rows(tmp_path, "completed", "completed"):
                assert (row["input_tokens"], row["output_tokens"], row["usage_source"]) == (7, 2, "provider")
                assert (row["response_model"], row["finish_reason"]) == ("m-1", "stop")

    asyncio.run(main())


@pytest.mark.parametrize("kind", SERVERS)
def test_client_that_does_not_read(kind: str, tmp_path: Path) -> None:
    """A client that reads nothing stops the provider, and the server holds little of what was sent."""

    async def main() -> None:
        async with large() as provider, spawned(tmp_path, kind, provider.url) as server:
            before = peak_kb(server)
            async with asyncio.timeout(SECONDS):
                _, writer = await asked(server.url, {"model": "m", "stream": True}, receive_buffer=4096)
            taken = -1
            async with asyncio.timeout(SECONDS):
                while taken != provider.taken:  # in the whole of a second
                    taken = provider.taken
                    await asyncio.sleep(1.0)
            assert 0 < taken < MAX_TAKEN
            assert peak_kb(server) - before < 8 * 1024
            writer.transport.abort()

    asyncio.run(main())
