"""Our own connections to providers, over sockets: reuse, races, cancellation, TLS, size; what was closed, and when."""

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from arbstr_asgi import Provider
from arbstr_asgi.errors import UpstreamError, UpstreamUnreachable
from arbstr_asgi.providers import direct_client
from arbstr_asgi.providers.client import ProviderReply
from arbstr_asgi.providers.direct_client import DirectClient
from arbstr_asgi.providers.httpx_client import HttpxClient
from arbstr_asgi.providers.tls import TlsContexts
from tests.support.certificates import Authority
from tests.support.fake_provider import JSON_TYPE, SCRIPTS, USAGE, Line, plain, provider
from tests.support.raw_http_client import ask, eventually
from tests.support.servers import gateway, no_task_left

SOON = 10.0
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
on_each_loop = pytest.mark.parametrize("loop", LOOPS)


def run(main: Any, loop: str = "asyncio") -> Any:
    """Run a coroutine on this kind of loop, and look that nothing is left of it."""

    async def whole() -> Any:
        async with asyncio.timeout(3 * SOON):
            found = await main
        await no_task_left()
        return found

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        return runner.run(whole())


class Connection:
    """One connection that the server has: `number` counts from 0."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.reader = reader
        self.writer = writer
        self.heads: list[bytes] = []
        self.ended = asyncio.Event()

    async def request(self) -> bytes:
        """The body of the next request."""
        self.heads.append(await self.reader.readuntil(b"\r\n\r\n"))
        length = int(self.heads[-1].lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        return await self.reader.readexactly(length)

    async def write(self, data: bytes) -> None:
        """Bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    async def until_closed(self) -> None:
        """Wait for the client to go."""
        while await self.reader.read(65536):
            pass


Serve = Callable[[Connection], Awaitable[None]]


@asynccontextmanager
async def server(
    serve: Serve, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[str, list[Connection]]]:
    """A server that treats each connection so, its URL, and the connections it has had."""
    connections: list[Connection] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(len(connections), reader, writer)
        connections.append(connection)
        try:
            await serve(connection)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            connection.ended.set()
            writer.transport.abort()

    listening = await asyncio.start_server(connected, host, 0, ssl=tls)
    port = listening.sockets[0].getsockname()[1]
    at = f"[{host}]" if ":" in host else host
    try:
        yield f"{'https' if tls else 'http'}://{at}:{port}/v1", connections
    finally:
        listening.close()
        for connection in connections:
            connection.writer.transport.abort()
        for connection in connections:
            await connection.ended.wait()


@asynccontextmanager
async def client(url: str, **facts: Any) -> AsyncIterator[Callable[..., Awaitable[ProviderReply]]]:
    """A way to send a body to the provider at `url`."""
    one, it = Provider(name="p", url=url, **facts), DirectClient(TlsContexts())

    async def send(body: bytes = b"{}", headers: Any = ()) -> ProviderReply:
        return await it.send(one, body, headers)

    try:
        yield send
    finally:
        await it.close()


async def whole(reply: ProviderReply) -> bytes:
    """A reply's body, read to its end."""
    chunks: list[bytes] = []
    async with aclosing(reply):
        while chunk := await reply.read():
            chunks.append(chunk)
    return b"".join(chunks)


async def answers(connection: Connection) -> None:
    """One request after the other."""
    while True:
        await connection.request()
        await connection.write(OK)


async def closes_at_second(connection: Connection) -> None:
    """Answers one request; closes, as what has idled for too long, when the next is on its way."""
    await connection.request()
    await connection.write(OK)
    if connection.number < 3:
        await connection.reader.read(1)
    else:
        await answers(connection)


@on_each_loop
def test_reuse(loop: str) -> None:
    """One request after the other goes over one connection, whose replies are read to their ends."""

    async def main() -> None:
        async with server(answers) as (url, connections), client(url) as send:
            for _ in range(3):
                assert await whole(await send()) == b"ok"
            assert [len(connection.heads) for connection in connections] == [3]

    run(main(), loop)


def test_free_as_soon_as_read() -> None:
    """The connection of a reply that has been read is free before that is closed, and closing it then hurts nobody."""

    async def main() -> None:
        async with server(answers) as (url, connections), client(url) as send:
            first = await send()
            assert (await first.read(), first.ended) == (b"ok", True)
            second = await send()
            await first.aclose()
            assert await first.read() == b""
            assert (await second.read(), second.ended) == (b"ok", True)
            assert len(connections) == 1

    run(main())


@on_each_loop
def test_closed_while_idle(loop: str) -> None:
    """A request that meets the closing of idle connections is sent once more, on a new one, and is answered."""

    async def main() -> None:
        async with server(closes_at_second) as (url, connections), client(url) as send:
            replies = [await send() for _ in range(3)]
            for reply in replies:
                assert await whole(reply) == b"ok"
            assert await whole(await send()) == b"ok"
            assert [len(connection.heads) for connection in connections] == [1, 1, 1, 1]

    run(main(), loop)


def test_closed_again() -> None:
    """It is sent once more and not again: where a new connection is closed, too, that is the error."""

    async def serve(connection: Connection) -> None:
        await connection.request()
        if connection.number == 0:
            await connection.write(OK)
            await connection.request()

    async def main() -> None:
        async with server(serve) as (url, connections), client(url) as send:
            assert await whole(await send()) == b"ok"
            with pytest.raises(UpstreamError) as caught:
                await send()
            assert (caught.value.code, caught.value.sent) == ("upstream_disconnected", True)
            assert caught.value.__context__ is None
            assert len(connections) == 2

    run(main())


@pytest.mark.parametrize("how", ["a byte of the reply", "late", "malformed", "unused connection"])
def test_not_sent_twice(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the provider may have worked on is not sent again: it had said something, or had it for a while."""
    monkeypatch.setattr(direct_client, "KEEPALIVE_RACE_SECONDS", 0.1)

    async def serve(connection: Connection) -> None:
        await connection.request()
        if how == "unused connection":
            return
        await connection.write(OK)
        await connection.request()
        if how == "a byte of the reply":
            await connection.write(b"H")
        elif how == "malformed":
            await connection.write(b"garbage\r\n")
        else:
            await asyncio.sleep(0.3)

    async def main() -> None:
        async with server(serve) as (url, connections), client(url) as send:
            if how != "unused connection":
                await whole(await send())
            with pytest.raises(UpstreamError) as caught:
                await send()
            assert caught.value.sent is True
            assert caught.value.code == ("upstream_protocol_error" if how == "malformed" else "upstream_disconnected")
            assert len(connections) == 1

    run(main())


@pytest.mark.parametrize(("keepalive", "count"), [(0.0, 3), (0.05, 3), (5.0, 1)])
def test_keepalive_timeout(keepalive: float, count: int) -> None:
    """An idle connection is used again for so long, and then closed; 0 keeps none."""

    async def main() -> None:
        async with server(answers) as (url, connections), client(url, keepalive_timeout=keepalive) as send:
            for _ in range(3):
                await whole(await send())
                await asyncio.sleep(0.1)
            assert len(connections) == count
            if keepalive < 5:
                await eventually(lambda: all(connection.ended.is_set() for connection in connections))

    run(main())


def test_keepalive_is_shorter_than_uvicorns() -> None:
    """Idle connections are closed before servers on uvicorn do it, after 5 seconds."""
    assert 0 < Provider(name="p", url="http://h").keepalive_timeout <= 4.5


async def reads_slowly(connection: Connection) -> None:
    """Reads none of the first body for a while."""
    await connection.reader.readuntil(b"\r\n\r\n")
    connection.writer.transport.pause_reading()
    await asyncio.sleep(0.3)
    connection.writer.transport.resume_reading()


async def is_silent(connection: Connection) -> None:
    """Reads a request, and that is all."""
    await connection.request()


async def begins(connection: Connection) -> None:
    """Sends the beginning of a body."""
    await connection.request()
    await connection.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nsome")


CANCELLED = {"writing": reads_slowly, "waiting for the head": is_silent, "in the body": begins}


@on_each_loop
@pytest.mark.parametrize("state", CANCELLED)
def test_cancelled(state: str, loop: str) -> None:
    """Who is cancelled, wherever that is, leaves no connection behind, and none that somebody else is given."""

    async def serve(connection: Connection) -> None:
        if connection.number > 0:
            await answers(connection)
        await CANCELLED[state](connection)
        await connection.until_closed()

    async def main() -> None:
        async with server(serve) as (url, connections), client(url, max_connections=1, connect_timeout=5.0) as send:

            async def call() -> None:
                await whole(await send(bytes(30_000_000) if state == "writing" else b"{}"))

            task = asyncio.create_task(call())
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await whole(await send()) == b"ok"
            await asyncio.wait_for(connections[0].ended.wait(), SOON)

    run(main(), loop)


@on_each_loop
@pytest.mark.parametrize("state", ["waiting for a connection", "tls handshake"])
def test_cancelled_without_a_connection(state: str, loop: str) -> None:
    """Who is cancelled before there is a connection leaves its place to the next."""

    async def serve(connection: Connection) -> None:
        if state == "tls handshake":
            await connection.until_closed()
        await answers(connection)

    async def main() -> None:
        async with server(serve) as (url, connections):
            scheme = "https" if state == "tls handshake" else "http"
            at = url.replace("http", scheme)
            async with client(at, max_connections=1, connect_timeout=0.5) as send:
                held = await send() if scheme == "http" else None
                task = asyncio.create_task(send())
                await asyncio.sleep(0.2)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                if held is None:
                    await asyncio.wait_for(connections[0].ended.wait(), SOON)
                else:
                    assert await whole(held) == b"ok"
                    assert await whole(await send()) == b"ok"

    run(main(), loop)


@on_each_loop
def test_reply_that_is_not_read(loop: str) -> None:
    """A reply that is closed before its end closes the connection, and reading it then is no end either."""

    async def serve(connection: Connection) -> None:
        await connection.request()
        await connection.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nsome"[:-1])
        await connection.until_closed()

    async def main() -> None:
        async with server(serve) as (url, connections), client(url) as send:
            reply = await send()
            assert await reply.read() == b"som"
            await reply.aclose()
            await reply.aclose()
            await asyncio.wait_for(connections[0].ended.wait(), SOON)
            with pytest.raises(UpstreamError):
                await reply.read()

    run(main(), loop)


@on_each_loop
@pytest.mark.parametrize("state", ["head", "body", "body until the end"])
def test_closing_wakes_who_waits(state: str, loop: str) -> None:
    """Closing the client ends those who wait for a head or for more of a body, with an error."""

    async def serve(connection: Connection) -> None:
        await connection.request()
        if state != "head":
            length = b"" if state == "body until the end" else b"content-length: 9\r\n"
            await connection.write(b"HTTP/1.1 200 OK\r\n" + length + b"\r\nsome")
        await connection.until_closed()

    async def main() -> None:
        one = DirectClient(TlsContexts())
        async with server(serve) as (url, connections):

            async def call() -> None:
                await whole(await one.send(Provider(name="p", url=url), b"{}", []))

            task = asyncio.create_task(call())
            await eventually(lambda: bool(connections and connections[0].heads))
            await asyncio.sleep(0.1)
            await one.close()
            with pytest.raises(UpstreamError):
                await asyncio.wait_for(task, SOON)
            await asyncio.wait_for(connections[0].ended.wait(), SOON)

    run(main(), loop)


@pytest.mark.parametrize("value", [b"a\r\nx-evil: 1", b"a\nb", b"a\rb", b"a\0b"])
@pytest.mark.parametrize("where", ["name", "value"])
def test_header_that_breaks_the_line(where: str, value: bytes) -> None:
    """A header with a line end or a NUL is refused, with an error that says so, and nothing is sent."""

    async def main() -> None:
        async with server(answers) as (url, connections), client(url) as send:
            header = (b"x", value) if where == "value" else (value, b"x")
            with pytest.raises(UpstreamError, match="line end or a NUL") as caught:
                await send(b"{}", [(b"a", b"b"), header])
            assert caught.value.sent is False
            assert connections == []

    run(main())


@on_each_loop
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_large_request(tls: bool, loop: str, tmp_path: Path) -> None:
    """A request of 30 MB reaches a provider that reads slowly, as it is."""
    body = bytes(range(256)) * 120_000
    authority = Authority(tmp_path)
    found: list[str] = []

    async def serve(connection: Connection) -> None:
        await asyncio.sleep(0.2)
        found.append(hashlib.sha256(await connection.request()).hexdigest())
        await connection.write(OK)
        await answers(connection)

    async def main() -> None:
        async with (
            server(serve, tls=authority.server() if tls else None) as (url, connections),
            client(url, ca_file=str(authority.file)) as send,
        ):
            for _ in range(2):
                assert await whole(await send(body)) == b"ok"
            assert len(connections) == 1
        assert found == [hashlib.sha256(body).hexdigest()]

    run(main(), loop)


@on_each_loop
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_large_head_and_reply(tls: bool, loop: str, tmp_path: Path) -> None:
    """A head of 120 KiB with 200 headers and a reply of 30 MB, whose reader is slow at first, come whole."""
    body = bytes(range(256)) * 120_000
    authority = Authority(tmp_path)
    headers = b"".join(b"x-%03d: %b\r\n" % (number, b"v" * 600) for number in range(200))

    async def serve(connection: Connection) -> None:
        await connection.request()
        await connection.write(b"HTTP/1.1 200 OK\r\n%bcontent-length: %d\r\n\r\n" % (headers, len(body)))
        await connection.write(body)
        await answers(connection)

    async def main() -> None:
        async with (
            server(serve, tls=authority.server() if tls else None) as (url, connections),
            client(url, ca_file=str(authority.file)) as send,
        ):
            reply = await send()
            assert len(reply.headers.raw) == 201
            await asyncio.sleep(0.2)
            assert await whole(reply) == body
            assert await whole(await send()) == b"ok"
            assert len(connections) == 1

    run(main(), loop)


def test_ipv6() -> None:
    """A provider may have an IPv6 address."""

    async def main() -> None:
        async with server(answers, "::1") as (url, connections), client(url) as send:
            assert await whole(await send()) == b"ok"
            assert b"\r\nhost: [::1]:" in connections[0].heads[0]

    run(main())


@on_each_loop
def test_name_in_tls(loop: str, tmp_path: Path) -> None:
    """The provider is told the name that is wanted, and must show a certificate for it."""
    authority = Authority(tmp_path)
    context, wanted = authority.server(), list[str | None]()
    context.sni_callback = lambda connection, name, _: wanted.append(name)

    async def main() -> None:
        async with (
            server(answers, "127.0.0.1", context) as (url, _),
            client(url.replace("127.0.0.1", "localhost"), ca_file=str(authority.file)) as send,
        ):
            assert await whole(await send()) == b"ok"
        async with (
            server(answers, "127.0.0.2", context) as (url, connections),
            client(url, ca_file=str(authority.file)) as send,
        ):
            with pytest.raises(UpstreamUnreachable):
                await send()
            assert not any(connection.heads for connection in connections)
        assert wanted[0] == "localhost"

    run(main(), loop)


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/v1", {}),
        ("/v1/", {"api-version": "2024-05-01-preview"}),
        ("/a;b=c/%2f%20x/~x/..//y", {"k": "ü/&=%41 +", "empty": ""}),
        ("", {"q": "a:b@c/d?e,f;g'()*!"}),
    ],
)
def test_target(path: str, query: dict[str, str]) -> None:
    """The path and the query are those that httpx over aiohttp would send."""

    async def main() -> None:
        async with server(answers) as (url, connections):
            one = Provider(name="p", url=url.removesuffix("/v1") + path, query=query, keepalive_timeout=0)
            for it in (HttpxClient(TlsContexts()), DirectClient(TlsContexts())):
                assert await whole(await it.send(one, b"{}", [(b"x-a", b"\xc3\xbc")])) == b"ok"
                await it.close()
            theirs, ours = (connection.heads[0].split(b"\r\n") for connection in connections)
            assert ours[0] == theirs[0]
            assert set(ours) - {b"connection: close"} <= set(theirs)

    run(main())


@pytest.mark.parametrize("both_first", [True, False])
def test_both_lengths(both_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a length and chunks the chunks count, and the same length twice is one; the call is answered and counted."""

    async def both(line: Line) -> None:
        body = plain()
        await line.head({**JSON_TYPE, "content-length": str(len(body) if both_first else 3)})
        await line.chunk(body)
        await line.send(b"0\r\n\r\n")

    async def twice(line: Line) -> None:
        body = plain()
        await line.head({**JSON_TYPE, "Content-Length": str(len(body))}, length=len(body))
        await line.send(body)

    monkeypatch.setitem(SCRIPTS, "both", both)
    monkeypatch.setitem(SCRIPTS, "twice", twice)

    async def main() -> None:
        async with provider() as upstream, gateway(tmp_path, upstream.url) as gate:
            for model in ("both", "twice"):
                wire = await ask(gate.url, {"model": model, "messages": []})
                assert (wire.status, wire.clean, wire.body) == (200, True, plain())
            for row in await gate.rows(2):
                assert (row["end_reason"], row["input_tokens"]) == ("completed", USAGE["prompt_tokens"])

    run(main())
