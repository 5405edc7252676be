"""A client that costs little, and counts seconds."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

from harness.hosts import CHAT, CPU

WARM = 2  # calls that a connection has behind it before it counts; hypercorn closes one after 1,000


def request(body: dict[str, Any] | None) -> bytes:
    """The bytes of a chat completion, or of the question for the CPU."""
    if body is None:
        return f"GET {CPU} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()
    content = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


MESSAGES = [{"role": "user", "content": "What does a word of this cost? " * 20}]
PLAIN_REQUEST = request({"model": "gpt-4o", "messages": MESSAGES})


def stream_request(pace: float) -> bytes:
    """A streaming one; `pace` is for the provider."""
    return request({"model": "gpt-4o", "stream": True, "pace": pace, "messages": MESSAGES})


async def fetch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: bytes) -> tuple[bytes, float]:
    """Send a request and read its whole reply; gives its body and how long the first byte of that took, in seconds."""
    began = time.perf_counter()
    writer.write(asked)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if not head.startswith(b"http/1.1 200"):
        raise RuntimeError(f"unexpected reply: {head.decode('latin-1')}")
    _, found, length = head.partition(b"content-length:")
    if found:
        body = await reader.readexactly(int(length.split(b"\r\n", 1)[0]))
        return body, time.perf_counter() - began
    parts: list[bytes] = []
    first = 0.0
    while size := int(await reader.readuntil(b"\r\n"), 16):
        parts.append((await reader.readexactly(size + 2))[:-2])
        first = first or time.perf_counter() - began
    await reader.readexactly(2)
    return b"".join(parts), first


class Took(NamedTuple):
    """Seconds of one call, until the first byte of its body and until the end."""

    first: float
    whole: float


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def _connected(port: int) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


class Clients:
    """Connections to a server, all open, which make calls at the same time; `made` counts these."""

    def __init__(self, connections: Sequence[Streams]) -> None:
        self._connections = connections
        self.made = 0

    async def drive(self, asked: bytes, calls: int) -> list[Took]:
        """Make so many calls on each connection, one after the other; gives how long each took."""
        found = await asyncio.gather(*(self._drive(*one, asked, calls) for one in self._connections))
        return [call for one in found for call in one]

    async def _drive(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: bytes, calls: int
    ) -> list[Took]:
        took: list[Took] = []
        for _ in range(calls):
            began = time.perf_counter()
            _, first = await fetch(reader, writer, asked)
            took.append(Took(first, time.perf_counter() - began))
            self.made += 1
        return took


@asynccontextmanager
async def clients(port: int, connections: int) -> AsyncIterator[Clients]:
    """So many during the block; each has made some calls, so that the server is connected to its provider as well."""
    async with AsyncExitStack() as stack:
        found = Clients([await stack.enter_async_context(_connected(port)) for _ in range(connections)])
        await found.drive(PLAIN_REQUEST, WARM)
        yield found


async def cpu(port: int) -> float:
    """The CPU seconds that the process of a host has used so far, with all its rows written."""
    async with _connected(port) as (reader, writer):
        return float((await fetch(reader, writer, request(None)))[0])


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share lies."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]
