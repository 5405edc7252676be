"""A client that costs little, and counts seconds."""

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from hosts import CHAT, CPU

CALLS_PER_CONNECTION = 500  # hypercorn closes one after 1,000


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


async def drive(port: int, asked: bytes, calls: int) -> list[Took]:
    """Make calls one after the other; gives how long each took."""
    took: list[Took] = []
    while len(took) < calls:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for _ in range(min(CALLS_PER_CONNECTION, calls - len(took))):
                began = time.perf_counter()
                _, first = await fetch(reader, writer, asked)
                took.append(Took(first, time.perf_counter() - began))
        finally:
            writer.close()
            await writer.wait_closed()
    return took


async def cpu(port: int) -> float:
    """The CPU seconds that the process of a host has used so far, with all its rows written."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return float((await fetch(reader, writer, request(None)))[0])
    finally:
        writer.close()
        await writer.wait_closed()


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share lies."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]
