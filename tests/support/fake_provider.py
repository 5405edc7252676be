"""A provider on a real socket that does what it is told: the request's `model` names the script.

`model: "status:429"` runs the script `status` with the argument "429". One request a connection.
"""

import asyncio
import gzip
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

SECONDS = 30.0  # no script lasts longer
USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
RESPONSE_MODEL = "m-2024-01-01"
RESPONSE_ID = "chatcmpl-1"
SSE_TYPE = {"content-type": "text/event-stream; charset=utf-8"}
JSON_TYPE = {"content-type": "application/json"}
STATUS_HEADERS = {
    "retry-after": "7",
    "x-ratelimit-remaining-requests": "0",
    "x-ratelimit-reset-tokens": "6m0s",
    "x-request-id": "req_1",
}
REASONS = {200: "OK", 307: "Temporary Redirect"}


def event(value: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def chunk(content: str | None, finish: str | None = None, *, asked: bool = False) -> bytes:
    """One event of a completion; who asked for usage gets a null one in each."""
    delta = {} if content is None else {"role": "assistant", "content": content}
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return event({**_common("chat.completion.chunk"), "choices": choices, **({"usage": None} if asked else {})})


def hello(*, asked: bool = False) -> bytes:
    """The first event."""
    return chunk("Hello", asked=asked)


def ending(*, asked: bool = False) -> bytes:
    """The events after the first."""
    usage = event({**_common("chat.completion.chunk"), "choices": [], "usage": USAGE}) if asked else b""
    return chunk(None, "stop", asked=asked) + usage + b"data: [DONE]\n\n"


def stream(*, asked: bool = False) -> bytes:
    """All events of a good stream."""
    return hello(asked=asked) + ending(asked=asked)


def plain() -> bytes:
    """A good plain reply."""
    message = {"role": "assistant", "content": "Hello"}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return json.dumps(
        {**_common("chat.completion"), "choices": choices, "usage": USAGE}, separators=(",", ":")
    ).encode()


def _common(kind: str) -> dict[str, Any]:
    return {"id": RESPONSE_ID, "object": kind, "created": 1_700_000_000, "model": RESPONSE_MODEL}


class Line:
    """One request, and the connection that it came on. `closed` is set when the peer has closed its side."""

    def __init__(
        self,
        provider: "Provider",
        target: str,
        headers: list[tuple[str, str]],
        body: bytes,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.provider = provider
        self.target = target
        self.headers = dict(headers)
        self.body = body
        self.asked: dict[str, Any] = json.loads(body)
        self.argument = str(self.asked["model"]).partition(":")[2]
        self.closed = asyncio.Event()
        self._writer = writer

    @property
    def stream(self) -> bool:
        """Whether the request asked for a stream."""
        return self.asked.get("stream") is True

    @property
    def usage(self) -> bool:
        """Whether the request asked for the usage of a stream."""
        return (self.asked.get("stream_options") or {}).get("include_usage") is True

    async def send(self, data: bytes) -> None:
        """Bytes as they are."""
        self._writer.write(data)
        await self._writer.drain()

    async def head(self, headers: Mapping[str, str], status: int = 200, length: int | None = -1) -> None:
        """A status line and headers; `length` -1 is a chunked body, None one that the connection's end delimits."""
        lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Whatever')}", "connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if length is not None:
            lines.append("transfer-encoding: chunked" if length < 0 else f"content-length: {length}")
        await self.send("\r\n".join([*lines, "", ""]).encode("latin-1"))

    async def chunk(self, data: bytes) -> None:
        """One chunk of a chunked body."""
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def whole(self, body: bytes, headers: Mapping[str, str], status: int = 200) -> None:
        """A reply with a length."""
        await self.head(headers, status, len(body))
        await self.send(body)

    async def start(self) -> None:
        """The head of a stream, and its first event."""
        await self.head(SSE_TYPE)
        await self.chunk(hello(asked=self.usage))

    async def finish(self) -> None:
        """The rest of the stream."""
        await self.chunk(ending(asked=self.usage))
        await self.send(b"0\r\n\r\n")

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        connection = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def delivered(self) -> None:
        """Give the peer time to read what is on the way; a reset would take it back."""
        for _ in range(5):
            await asyncio.sleep(0.01)


Script = Callable[[Line], Awaitable[None]]
SCRIPTS: dict[str, Script] = {}


def script(function: Script) -> Script:
    """Make a function a script of its name."""
    SCRIPTS[function.__name__] = function
    return function


@script
async def good(line: Line) -> None:
    """What was asked for."""
    if line.stream:
        await line.start()
        await line.finish()
    else:
        await line.whole(plain(), JSON_TYPE)


@script
async def says(line: Line) -> None:
    """What the request's own `say` describes: a type, a status, and chunks, each on its own; with a length or not."""
    say = line.asked["say"]
    chunks = [text.encode() for text in say["chunks"]]
    await line.head({"content-type": say["type"]}, say["status"], sum(map(len, chunks)) if say["length"] else -1)
    for data in chunks:
        await (line.send(data) if say["length"] else line.chunk(data))
        await line.delivered()
    if not say["length"]:
        await line.send(b"0\r\n\r\n")


@script
async def gated(line: Line) -> None:
    """The beginning, and the rest once the test opens the gate."""
    if line.stream:
        await line.start()
        await line.provider.gate.wait()
        await line.finish()
    else:
        body = plain()
        await line.head(JSON_TYPE, length=len(body))
        await line.send(body[:20])
        await line.provider.gate.wait()
        await line.send(body[20:])


@script
async def gated_before(line: Line) -> None:
    """Nothing, and all of it once the test opens the gate."""
    await line.provider.gate.wait()
    await good(line)


@script
async def done_and_open(line: Line) -> None:
    """All events, but the body ends only once the test opens the gate."""
    await line.start()
    await line.chunk(ending(asked=line.usage))
    await line.provider.gate.wait()
    await line.send(b"0\r\n\r\n")


@script
async def slow(line: Line) -> None:
    """A stream of twenty slow events."""
    await line.start()
    for _ in range(20):
        await asyncio.sleep(0.02)
        await line.chunk(chunk(" and", asked=line.usage))
    await line.finish()


@script
async def endless(line: Line) -> None:
    """A stream without an end."""
    await line.start()
    while True:
        await asyncio.sleep(0.02)
        await line.chunk(chunk(" on", asked=line.usage))


@script
async def floods(line: Line) -> None:
    """A stream as fast as its reader takes it; `stuck` is set once that has not taken anything for a while."""
    await line.start()
    while True:
        writing = asyncio.ensure_future(line.chunk(chunk("x" * 60_000, asked=line.usage)))
        try:
            done, _ = await asyncio.wait({writing}, timeout=0.5)
            if not done:
                line.provider.stuck.set()
            await writing
        finally:
            writing.cancel()


@script
async def cumulative(line: Line) -> None:
    """A stream without an end that counts as it goes."""
    await line.head(SSE_TYPE)
    for count in range(1, 1000):
        choices = [{"index": 0, "delta": {"content": "on "}, "finish_reason": None}]
        usage = {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": 7 + count}
        await line.chunk(event({**_common("chat.completion.chunk"), "choices": choices, "usage": usage}))
        await asyncio.sleep(0.02)


@script
async def drips(line: Line) -> None:
    """For minutes an event now and then, which counts as it goes; with the argument "gate" it ends well once told."""
    gate = asyncio.ensure_future(line.provider.gate.wait() if line.argument == "gate" else line.closed.wait())
    try:
        await line.head(SSE_TYPE)
        for count in range(1, 1000):
            choices = [{"index": 0, "delta": {"content": "on "}, "finish_reason": None}]
            usage = {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": 7 + count}
            await line.chunk(event({**_common("chat.completion.chunk"), "choices": choices, "usage": usage}))
            await asyncio.wait({gate}, timeout=0.3)
            if gate.done():
                return await line.finish()
    finally:
        gate.cancel()


@script
async def silent(line: Line) -> None:
    """No answer at all."""
    await line.closed.wait()


@script
async def stalls(line: Line) -> None:
    """An event, and then nothing."""
    await line.start()
    await line.closed.wait()


@script
async def stalls_mid_event(line: Line) -> None:
    """An event and half of one, and then nothing."""
    await line.start()
    await line.chunk(ending(asked=line.usage)[:30])
    await line.closed.wait()


@script
async def closes_before_headers(line: Line) -> None:
    """The connection is closed."""


@script
async def resets_before_headers(line: Line) -> None:
    """The connection is reset."""
    line.reset()


@script
async def closes_within_headers(line: Line) -> None:
    """The connection is closed after a status line."""
    await line.send(b"HTTP/1.1 200 OK\r\ncontent-ty")


@script
async def closes_after_headers(line: Line) -> None:
    """The connection is closed where the body should begin."""
    await line.head(SSE_TYPE if line.stream else JSON_TYPE)


@script
async def resets_mid_chunk(line: Line) -> None:
    """Reset within a chunk, between two events."""
    await line.start()
    both = hello(asked=line.usage) + ending(asked=line.usage)
    await line.send(b"%x\r\n%b" % (len(both), hello(asked=line.usage)))
    await line.delivered()
    line.reset()


@script
async def resets_mid_event(line: Line) -> None:
    """Reset between two chunks, within an event."""
    await line.start()
    await line.chunk(ending(asked=line.usage)[:30])
    await line.delivered()
    line.reset()


@script
async def closes_chunked(line: Line) -> None:
    """A chunked body is closed without its last chunk: of a stream between events, of a plain reply half-way."""
    if line.stream:
        await line.start()
    else:
        await line.head(JSON_TYPE)
        await line.chunk(plain()[:50])


@script
async def cuts_length(line: Line) -> None:
    """Less than the content-length promised: of a stream within an event."""
    body = stream(asked=line.usage) if line.stream else plain()
    await line.head(SSE_TYPE if line.stream else JSON_TYPE, length=len(body))
    await line.send(body[: len(hello(asked=line.usage)) + 30 if line.stream else 50])


@script
async def close_delimited(line: Line) -> None:
    """A whole body that the connection's end delimits."""
    await line.head(SSE_TYPE if line.stream else JSON_TYPE, length=None)
    await line.send(stream(asked=line.usage) if line.stream else plain())


@script
async def close_delimited_cut(line: Line) -> None:
    """The same, ending too soon, which nobody can see: no finish reason and no [DONE], or half a JSON."""
    await line.head(SSE_TYPE if line.stream else JSON_TYPE, length=None)
    await line.send(hello(asked=line.usage) if line.stream else plain()[:50])


@script
async def close_delimited_finished(line: Line) -> None:
    """The same, ending with a finish reason and without [DONE]."""
    await line.head(SSE_TYPE, length=None)
    await line.send(hello(asked=line.usage) + chunk(None, "stop", asked=line.usage))


@script
async def error_event(line: Line) -> None:
    """An error inside a stream that began well."""
    await line.start()
    error = {"message": "the prompt said: secret", "type": "server_error", "param": None, "code": "overloaded"}
    await line.chunk(event({"error": error}))
    await line.send(b"0\r\n\r\n")


@script
async def status(line: Line) -> None:
    """An error in OpenAI's shape that quotes the prompt."""
    error = {"message": "the prompt said: secret", "type": "tokens", "param": None, "code": "rate_limit_exceeded"}
    await line.whole(json.dumps({"error": error}).encode(), {**JSON_TYPE, **STATUS_HEADERS}, int(line.argument))


@script
async def refuses_key(line: Line) -> None:
    """A 401 or 403 that echoes the key."""
    key = line.headers.get("authorization", "no key")
    error = {
        "message": f"Incorrect API key provided: {key}",
        "type": "invalid_request_error",
        "code": "invalid_api_key",
    }
    headers = {**JSON_TYPE, "www-authenticate": "Bearer"}
    await line.whole(json.dumps({"error": error}).encode(), headers, int(line.argument or 401))


@script
async def fails_first(line: Line) -> None:
    """The status and the `retry-after` that the argument names ("503,1"), so often ("503,1,2"), then what is good."""
    said = line.argument.split(",")
    if len(line.provider.lines) > int(said[2] if len(said) > 2 else 1):
        return await good(line)
    headers = {**JSON_TYPE, **({"retry-after": said[1]} if len(said) > 1 and said[1] else {})}
    return await line.whole(b'{"error":{"message":"busy","type":"busy"}}', headers, int(said[0]))


@script
async def fails_sometimes(line: Line) -> None:
    """A 503 to every third request."""
    if len(line.provider.lines) % 3 == 0:
        return await line.whole(b"{}", JSON_TYPE, 503)
    return await good(line)


@script
async def error_first(line: Line) -> None:
    """A stream that begins with an error; with the argument "slow" that comes in two parts."""
    await line.head(SSE_TYPE)
    error = event({"error": {"message": "the prompt said: secret", "type": "server_error", "code": "overloaded"}})
    if line.argument == "slow":
        await line.chunk(error[:20])
        await asyncio.sleep(0.1)
        error = error[20:]
    await line.chunk(error)
    await line.send(b"0\r\n\r\n")


@script
async def error_body(line: Line) -> None:
    """A JSON error as the whole body under 200; with the argument "slow" it comes in two parts."""
    error = b'{"error":{"message":"the prompt said: secret","type":"server_error","code":"overloaded"}}'
    await line.head(JSON_TYPE, length=len(error))
    if line.argument == "slow":
        await line.send(error[:20])
        await asyncio.sleep(0.1)
        error = error[20:]
    await line.send(error)


@script
async def says_nothing(line: Line) -> None:
    """A 200 without a byte; with the argument "done" a stream of `[DONE]` alone."""
    await line.whole(b"data: [DONE]\n\n" if line.argument == "done" else b"", SSE_TYPE if line.stream else JSON_TYPE)


@script
async def refusal_first(line: Line) -> None:
    """A stream that begins with an error which blames the request."""
    await line.head(SSE_TYPE)
    await line.chunk(event({"error": {"message": "no", "type": "invalid_request_error", "code": 400}}))
    await line.send(b"0\r\n\r\n")


@script
async def error_with_usage(line: Line) -> None:
    """A stream that begins with an error and what it has used."""
    await line.head(SSE_TYPE)
    error = {"message": "no", "type": "server_error", "code": "overloaded"}
    await line.chunk(event({**_common("chat.completion.chunk"), "error": error, "choices": [], "usage": USAGE}))
    await line.send(b"0\r\n\r\n")


@script
async def comment_first(line: Line) -> None:
    """A stream that begins with a comment, and then has an error."""
    await line.head(SSE_TYPE)
    await line.chunk(b": PROCESSING\n\n")
    await line.delivered()
    await line.chunk(event({"error": {"message": "too late", "type": "server_error"}}))
    await line.send(b"0\r\n\r\n")


@script
async def late_first(line: Line) -> None:
    """A stream whose first event is late, and an error."""
    await line.head(SSE_TYPE)
    await line.provider.gate.wait()
    await line.chunk(event({"error": {"message": "too late", "type": "server_error"}}))
    await line.send(b"0\r\n\r\n")


@script
async def html(line: Line) -> None:
    """A page of somebody in between."""
    await line.whole(b"<html>Welcome to the hotel</html>", {"content-type": "text/html"})


@script
async def zipped(line: Line) -> None:
    """A compressed reply, which nobody has asked for."""
    body = stream(asked=line.usage) if line.stream else plain()
    headers = {**(SSE_TYPE if line.stream else JSON_TYPE), "content-encoding": "gzip"}
    await line.whole(gzip.compress(body, mtime=0), headers)


@script
async def sets_cookie(line: Line) -> None:
    """A good plain reply that sets a cookie."""
    await line.whole(plain(), {**JSON_TYPE, "set-cookie": "session=first-user; Path=/"})


@script
async def redirects(line: Line) -> None:
    """A redirect to another provider."""
    await line.whole(b"", {"location": f"{line.provider.url}/elsewhere"}, 307)


@script
async def garbage(line: Line) -> None:
    """Not HTTP."""
    await line.send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


@script
async def reset_behind_done(line: Line) -> None:
    """All events; then the connection breaks instead of ending."""
    await line.start()
    await line.chunk(ending(asked=line.usage))
    await line.delivered()
    line.reset()


@script
async def pings_behind_done(line: Line) -> None:
    """All events; then comments without end."""
    await line.start()
    await line.chunk(ending(asked=line.usage))
    while True:
        await line.chunk(b": ping\n\n")
        await asyncio.sleep(0.05)


@script
async def silent_behind_done(line: Line) -> None:
    """All events; then nothing, and no end."""
    await line.start()
    await line.chunk(ending(asked=line.usage))
    await line.closed.wait()


@script
async def garbled(line: Line) -> None:
    """A good chunk, then one whose size is none, on a connection that stays open."""
    await line.start()
    await line.delivered()
    await line.send(b"zz\r\nrubbish\r\n")
    await line.closed.wait()


@script
async def two_members(line: Line) -> None:
    """A plain reply in two gzip members."""
    body = plain()
    packed = gzip.compress(body[:20]) + gzip.compress(body[20:])
    await line.whole(packed, {**JSON_TYPE, "content-encoding": "gzip"})


class Provider:
    """What it has received, newest last. `gate` is the test's to open; `stuck` says that nobody reads."""

    def __init__(self) -> None:
        self.url = ""
        self.lines: list[Line] = []
        self.gate = asyncio.Event()
        self.stuck = asyncio.Event()
        self._arrived = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    async def line(self, number: int = 0) -> Line:
        """A request, once it has come."""
        async with asyncio.timeout(SECONDS), self._arrived:
            await self._arrived.wait_for(lambda: len(self.lines) > number)
        return self.lines[number]

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with suppress(asyncio.CancelledError):
            await task

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        watcher: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(SECONDS):
                line = await self._receive(reader, writer)
                watcher = asyncio.create_task(_watch(reader, line.closed))
                async with self._arrived:
                    self.lines.append(line)
                    self._arrived.notify_all()
                await SCRIPTS[str(line.asked["model"]).partition(":")[0]](line)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            if watcher is not None:
                # A script may end before its peer does.
                await asyncio.wait({watcher}, timeout=5.0)
                watcher.cancel()

    async def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Line:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in head[1:-2])]
        body = await reader.readexactly(int(dict(pairs)["content-length"]))
        return Line(self, head[0].split(" ")[1], pairs, body, writer)

    async def close(self) -> None:
        """End what still runs."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _watch(reader: asyncio.StreamReader, closed: asyncio.Event) -> None:
    with suppress(OSError):
        while await reader.read(1024):
            pass
    closed.set()


@asynccontextmanager
async def provider(host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> AsyncIterator[Provider]:
    """A running provider; its `url` has the `host` in it."""
    it = Provider()
    server = await asyncio.start_server(it.connected, "127.0.0.1", 0, ssl=tls)
    it.url = f"{'https' if tls else 'http'}://{host}:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield it
    finally:
        server.close()
        await it.close()
        await server.wait_closed()
