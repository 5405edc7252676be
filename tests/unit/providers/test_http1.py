"""Reading replies and writing requests on one connection, without a socket."""

import asyncio
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbstr_asgi.providers.http1 import (
    MAX_HEAD_BYTES,
    MAX_UNREAD_BYTES,
    READ_BYTES,
    Http1Connection,
    MalformedReply,
    without_repeated_length,
)

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
SHORT = OK + b"content-length: 2\r\n\r\nok"


class Transport:
    """What an event loop would do for a connection."""

    def __init__(self, room: int = 1 << 40) -> None:
        self.written: list[bytes] = []
        self.room = room
        self.aborted = False
        self.paused = False
        self.reader: Http1Connection

    def write(self, data: bytes | memoryview) -> None:
        """Take it, and say so when there is no more room."""
        self.written.append(bytes(data))
        self.room -= len(data)
        if self.room <= 0:
            self.reader.pause_writing()

    def abort(self) -> None:
        """Note it; the loop tells the connection later."""
        self.aborted = True

    def is_closing(self) -> bool:
        """Whether it was aborted."""
        return self.aborted

    def pause_reading(self) -> None:
        """No more bytes."""
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        """Bytes again."""
        assert self.paused
        self.paused = False


def connection(room: int = 1 << 40, loop: Any = None) -> tuple[Http1Connection, Transport]:
    """An open connection."""
    transport = Transport(room)
    transport.reader = reader = Http1Connection(loop, memoryview(bytearray(READ_BYTES)))
    reader.connection_made(transport)
    return reader, transport


def asked() -> tuple[Http1Connection, Transport]:
    """A connection that has sent a request."""
    reader, transport = connection()
    reader.send(HEAD, b"{}")
    return reader, transport


def feed(reader: Http1Connection, data: bytes) -> None:
    """What has come at once, as far as it fits."""
    while data:
        buffer = reader.get_buffer(-1)
        part, data = data[: len(buffer)], data[len(buffer) :]
        buffer[: len(part)] = part
        reader.buffer_updated(len(part))


def taken(reader: Http1Connection) -> bytes:
    """What can be had of the body now."""
    found = b""
    while chunk := reader.take():
        found += chunk
    return found


class Reply(NamedTuple):
    """A reply as bytes, and what it says."""

    raw: bytes
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    ends_with_connection: bool
    keeps: bool


NAMES = st.sampled_from([b"Content-Type", b"x-request-id", b"X-Ratelimit-Remaining", b"set-cookie", b"x"])
VALUES = st.binary(max_size=40).map(lambda raw: bytes(97 if byte < 33 or byte == 127 else byte for byte in raw))
PAIRS = st.lists(st.tuples(NAMES, VALUES), max_size=6)
INTERIM = st.lists(
    st.sampled_from([b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"]), max_size=3
)


def lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Headers as they are sent."""
    return b"".join(b"%b: %b\r\n" % header for header in headers)


@st.composite
def replies(draw: st.DrawFn) -> Reply:
    """Replies with each way to say where they end."""
    headers = draw(PAIRS)
    version, connection_says = draw(
        st.sampled_from([(b"1.1", b""), (b"1.1", b"close"), (b"1.0", b""), (b"1.0", b"keep-alive")])
    )
    said = [(b"connection", connection_says)] if connection_says else []
    keeps = connection_says == b"keep-alive" or (version == b"1.1" and not connection_says)
    framing = draw(st.sampled_from(["length", "chunked", "both", "twice", "close", "none"]))
    body = draw(st.binary(max_size=300))
    status = (
        draw(st.sampled_from([204, 304])) if framing == "none" else draw(st.sampled_from([200, 201, 400, 500, 599]))
    )
    length, rest = (b"Content-Length", b"%d" % len(body)), body
    frames: list[tuple[bytes, bytes]] = []
    if framing in ("chunked", "both"):
        frames.append((b"Transfer-Encoding", draw(st.sampled_from([b"chunked", b"Chunked"]))))
        rest = chunked(draw, body)
    if framing in ("length", "both", "twice"):
        frames.append(length)
    if framing == "twice":
        frames.append((b"content-length", b"%d" % len(body)))
    frames = draw(st.permutations(frames))
    raw = b"".join(draw(INTERIM)) + b"HTTP/%b %d Whatever\r\n" % (version, status)
    raw += lines([*headers, *said, *frames]) + b"\r\n" + (b"" if framing == "none" else rest)
    counts = frames[:1] if framing == "twice" else [f for f in frames if framing != "both" or f[0] != b"Content-Length"]
    expected = [(name.lower(), value) for name, value in [*headers, *said, *counts]]
    ends = framing == "close"
    return Reply(raw, status, expected, b"" if framing == "none" else body, ends, keeps and not ends)


def chunked(draw: st.DrawFn, body: bytes) -> bytes:
    """A body in chunks, perhaps with extensions and trailers."""
    size = draw(st.integers(1, 100))
    extension = draw(st.sampled_from([b"", b";a=b", b';name="va;lue"']))
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    sent = b"".join(b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts)
    trailers = draw(st.sampled_from([b"", b"x-trailer: late\r\n", b"etag: 7\r\nserver-timing: a\r\n"]))
    return sent + b"0\r\n" + trailers + b"\r\n"


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """`data` in pieces, cut at these places modulo its length."""
    at = sorted({place % (len(data) or 1) for place in places} | {0, len(data)})
    return [data[begin:end] for begin, end in pairwise(at)]


CUTS = st.lists(st.integers(0, 5000), max_size=12)


@given(reply=replies(), places=CUTS, reads_at_once=st.booleans())
def test_any_cuts(reply: Reply, places: list[int], reads_at_once: bool) -> None:
    """However a reply is cut into reads, it is the same; and the connection is used again only where it may be."""
    reader, transport = asked()
    found = b""
    for piece in cut(reply.raw, places):
        feed(reader, piece)
        if reads_at_once and reader.status:
            found += taken(reader)
    assert (reader.status, reader.headers) == (reply.status, reply.headers)
    found += taken(reader)
    assert found == reply.body
    assert reader.complete is not reply.ends_with_connection
    assert reader.should_close is not reply.keeps
    if reply.ends_with_connection:
        assert reader.take() is None
        reader.connection_lost(None)
    assert reader.take() == b""
    assert not transport.aborted


@given(reply=replies(), places=CUTS, at=st.integers(0, 5000))
def test_cut_off(reply: Reply, places: list[int], at: int) -> None:
    """A reply of which something is missing never ends well, unless only the connection's end could say so."""
    reader, _ = asked()
    for piece in cut(reply.raw[: at % len(reply.raw)], places):
        feed(reader, piece)
    reader.connection_lost(None)
    if reader.status and reply.ends_with_connection:
        assert reply.body.startswith(taken(reader))
        return
    with pytest.raises(aiohttp.ServerDisconnectedError):
        taken(reader)


@given(first=replies().filter(lambda reply: reply.keeps), second=replies(), places=CUTS)
def test_one_after_the_other(first: Reply, second: Reply, places: list[int]) -> None:
    """Nothing of one reply is left for the next on the same connection."""
    reader, _ = asked()
    feed(reader, first.raw)
    assert taken(reader) == first.body
    assert not reader.should_close
    reader.send(HEAD, b"{}")
    assert (reader.status, reader.reused, reader.received) == (0, True, False)
    for piece in cut(second.raw, places):
        feed(reader, piece)
    assert (reader.status, reader.headers, taken(reader)) == (second.status, second.headers, second.body)


SURPLUS = st.integers(1, len(SHORT)).map(lambda size: SHORT[:size]) | st.binary(max_size=50).map(lambda raw: b"x" + raw)


@given(reply=replies().filter(lambda reply: reply.keeps), surplus=SURPLUS, places=CUTS)
def test_bytes_behind_the_end(reply: Reply, surplus: bytes, places: list[int]) -> None:
    """Who sends more than a reply is not asked again on that connection, and the reply is whole."""
    reader, _ = asked()
    for piece in cut(reply.raw + surplus, places):
        feed(reader, piece)
    assert taken(reader) == reply.body
    assert reader.take() == b""
    assert reader.should_close


MALFORMED = {
    "no http": b"SSH-2.0-OpenSSH_9.2\r\n",
    "status": b"HTTP/1.1 abc OK\r\n\r\n",
    "status 000": b"HTTP/1.1 000 OK\r\n\r\n",
    "another protocol": b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\nbytes",
    "another protocol, unnamed": b"HTTP/1.1 101 Switching\r\n\r\nbytes",
    "length": OK + b"content-length: -2\r\n\r\nok",
    "two lengths": OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\nok!",
    "two lengths in one": OK + b"content-length: 2, 3\r\n\r\nok!",
    "length of no number": OK + b"content-length: 2\r\ncontent-length: x\r\n\r\nok",
    "a coding that nobody asked for": OK + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunk size": OK + b"transfer-encoding: chunked\r\n\r\nxyz\r\n",
    "chunk size overflows": OK + b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff1\r\n",
    "chunk without its end": OK + b"transfer-encoding: chunked\r\n\r\n2\r\nokk\r\n",
}


@given(name=st.sampled_from(sorted(MALFORMED)), places=CUTS)
def test_malformed(name: str, places: list[int]) -> None:
    """What is no HTTP is an error, wherever it is cut, and closes the connection."""
    reader, transport = asked()
    for piece in cut(MALFORMED[name], places):
        feed(reader, piece)
    assert transport.aborted
    assert reader.should_close
    with pytest.raises(MalformedReply):
        taken(reader)


def test_bytes_that_answer_nothing() -> None:
    """What comes on a connection that waits in the pool closes it."""
    reader, transport = asked()
    feed(reader, SHORT)
    assert taken(reader) == b"ok"
    assert reader.is_connected()
    feed(reader, b"H")
    assert transport.aborted
    assert not reader.is_connected()


def test_second_reply_at_once() -> None:
    """A second reply behind the first is not the answer to the next request."""
    reader, _ = asked()
    feed(reader, SHORT + SHORT)
    assert taken(reader) == b"ok"
    assert reader.should_close


def test_reset_is_no_end() -> None:
    """A body that the connection's end delimits is whole only where that end was in order."""
    reader, _ = asked()
    feed(reader, OK + b"\r\nsome")
    reader.connection_lost(ConnectionResetError(104, "reset"))
    assert reader.take() == b"some"
    with pytest.raises(aiohttp.ClientOSError) as caught:
        reader.take()
    assert caught.value.errno == 104


def test_closing_is_no_end() -> None:
    """Closing the connection ourselves does not make the body that it delimits a whole one."""
    reader, transport = asked()
    feed(reader, OK + b"\r\nsome")
    reader.close()
    assert transport.aborted
    reader.connection_lost(None)
    assert reader.take() == b"some"
    with pytest.raises(aiohttp.ClientConnectionError):
        reader.take()


@pytest.mark.parametrize("size", [120 * 1024, 128 * 1024 - 2000])
@pytest.mark.parametrize("count", [1, 150, 2000])
def test_large_head(size: int, count: int) -> None:
    """Heads may have 128 KiB, in a few long headers or in many."""
    value = b"v" * (size // count - 12)
    head = OK + b"".join(b"x-%05d: %b\r\n" % (number, value) for number in range(count)) + b"content-length: 2\r\n\r\n"
    reader, _ = asked()
    feed(reader, head + b"ok")
    assert (reader.status, len(reader.headers), taken(reader)) == (200, count + 1, b"ok")


ENDLESS = {
    "header": OK + b"x: ",
    "name": OK + b"x",
    "reason": b"HTTP/1.1 200 O",
    "headers": OK,
    "trailer": OK + b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx: ",
    "extension": OK + b"transfer-encoding: chunked\r\n\r\n2;x=",
    "lengths": OK + b"content-length: 2\r\ncontent-length: 2\r\nx: ",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_head(name: str) -> None:
    """What has no end and is no body is given up: nobody fills the memory with it."""
    reader, transport = asked()
    feed(reader, ENDLESS[name])
    more = b"a: b\r\n" * 1000 if name == "headers" else b"x" * 8192
    for _ in range(2 * MAX_HEAD_BYTES // len(more)):
        feed(reader, more)
    assert transport.aborted
    with pytest.raises(MalformedReply, match="too large"):
        taken(reader)


def test_interim_replies_without_end() -> None:
    """Replies that only say that another follows count for the head."""
    reader, transport = asked()
    feed(reader, b"HTTP/1.1 100 Continue\r\n\r\n" * 6000)
    assert transport.aborted


def test_reading_pauses() -> None:
    """What nobody takes is a few 10 KB; reading goes on when it is taken."""
    reader, transport = asked()
    feed(reader, OK + b"content-length: 1000000\r\n\r\n")
    size = 0
    while not transport.paused and size < 500_000:
        feed(reader, b"x" * READ_BYTES)
        size += READ_BYTES
    assert size <= MAX_UNREAD_BYTES + READ_BYTES
    assert reader.take() == b"x" * size
    assert not transport.paused


def test_large_body_is_written_as_it_is_taken() -> None:
    """Of a large request no more is handed to the transport than it has room for, and all of it in the end."""
    reader, transport = connection(room=300_000)
    body = bytes(range(256)) * 40_000
    reader.send(HEAD, body)
    most = -transport.room
    while sum(map(len, transport.written)) < len(HEAD) + len(body):
        assert reader.should_close
        transport.room = 300_000
        reader.resume_writing()
        most = max(most, -transport.room)
    assert most < 128 * 1024
    assert b"".join(transport.written) == HEAD + body
    feed(reader, SHORT)
    assert taken(reader) == b"ok"
    assert not reader.should_close


def test_answer_before_the_request_is_whole() -> None:
    """A provider may refuse a request that it has not read; its connection is not used again."""
    reader, transport = connection(room=100_000)
    reader.send(HEAD, bytes(1_000_000))
    feed(reader, b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
    assert (reader.status, taken(reader)) == (413, b"no")
    assert reader.should_close
    reader.close()
    transport.room = 10_000_000
    reader.resume_writing()
    assert sum(map(len, transport.written)) < 300_000


def test_not_sent_where_it_is_lost() -> None:
    """A connection that was lost as soon as it was made says so."""
    reader, transport = connection()
    reader.connection_lost(ConnectionResetError(104, "reset"))
    with pytest.raises(aiohttp.ClientOSError):
        reader.send(HEAD, b"{}")
    assert transport.written == []


def test_who_waits_is_woken() -> None:
    """Bytes, the end of the connection and closing it wake who waits, and a waiter that has gone harms nobody."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for event in (lambda r: feed(r, OK), lambda r: r.connection_lost(None), lambda r: r.close()):
            reader, _ = connection(loop=loop)
            reader.send(HEAD, b"{}")
            waiter = reader.more()
            assert not waiter.done()
            event(reader)
            assert waiter.done()
            reader.more().cancel()
            reader.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("said", "counts"),
    [
        (b"A\r\nContent-Length: 5\r\nb: c\r\ncontent-length:5", b"A\r\nContent-Length: 5\r\nb: c"),
        (b"A\r\ncontent-length: 5, 5", b"A\r\ncontent-length: 5"),
        (b"A\r\ncontent-length: 5\r\ncontent-length: 6", b"A\r\ncontent-length: 5\r\ncontent-length: 6"),
        (b"A\r\nb: c", b"A\r\nb: c"),
    ],
)
def test_repeated_length(said: bytes, counts: bytes) -> None:
    """The same length said twice is one; different ones are left for the parser to refuse."""
    assert without_repeated_length(said) == counts
