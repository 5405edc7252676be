"""The client side of an HTTP/1.1 connection: writes requests and parses responses with llhttp.

aiohttp's connector opens and pools the connections (DNS, TLS, keep-alive). The objects that an HTTP client library
builds for each request and chunk cost more CPU than the rest of a call.
"""

import asyncio
from typing import Any

import aiohttp
import httptools

RawHeader = tuple[bytes, bytes]

# Bytes received in a row without any of a body: the head (including 1xx responses before it), trailers, extensions.
MAX_HEAD_BYTES = 128 * 1024
# Bounds the memory of a stream whose client does not read; event loops would read 256 KiB at once.
READ_BYTES = 16 * 1024
MAX_UNREAD_BYTES = 16 * 1024  # above this, reading is paused until `take`
WRITE_BYTES = 64 * 1024
FRAMING = frozenset({b"content-length", b"transfer-encoding"})


class MalformedReply(aiohttp.ClientError):
    """The response is not valid HTTP/1.1."""


class Http1Connection(asyncio.BufferedProtocol):
    """A connection for one request at a time, with the interface that aiohttp's connector needs to pool it.

    `send` a request, await `wait_head`, then read the body: `take` returns what has arrived, `more` waits. Errors are
    those of aiohttp.
    """

    __slots__ = (
        *("_bytes_without_body", "_closed", "_failure", "_head", "_is_interim", "_keep_alive", "_loop", "_parser"),
        *("_read_buffer", "_reading_paused", "_repairing", "_unread", "_unread_bytes", "_unsent", "_until_eof"),
        *("_waiter", "_writing_paused", "complete", "headers", "received", "reused", "status", "transport", "used"),
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, read_buffer: memoryview) -> None:
        """`read_buffer` may be shared by all connections of a loop: it is parsed before the next read."""
        self._loop = loop
        self._read_buffer = read_buffer
        self._parser = _parser(self)
        self.transport: Any = None
        self._waiter: asyncio.Future[None] | None = None
        self._closed: asyncio.Future[None] | None = None
        self._failure: tuple[type[aiohttp.ClientError], tuple[Any, ...]] | None = None
        self.used = False
        self._keep_alive = False
        self._unsent: memoryview | None = None
        self._writing_paused = False
        self._reading_paused = False
        self._unread: list[bytes] = []
        self._unread_bytes = 0
        self._head = bytearray()  # of a head that arrives in several reads
        self._begin_reply()
        self.complete = True

    def _begin_reply(self) -> None:
        self.status = 0
        """0 until the head has been received."""
        self.headers: list[RawHeader] = []
        """Names in lower case."""
        self.complete = False
        """Whether the end of the response has been received."""
        self.received = False
        """Whether any byte of the response has been received."""
        self.reused = self.used
        """Whether the connection was used for an earlier request."""
        self._head.clear()
        self._is_interim = False
        self._repairing = False
        self._until_eof = False
        self._bytes_without_body = 0

    # The interface for aiohttp's connector.

    @property
    def closed(self) -> "asyncio.Future[None] | None":
        """A future that is done when the connection is closed; None if it is closed already."""
        if self._closed is None and self.transport is not None:
            self._closed = self._loop.create_future()
        return self._closed

    @property
    def should_close(self) -> bool:
        """Whether the connection must not be reused."""
        return not (self._keep_alive and self._failure is None and self._unsent is None and not self._unread)

    def is_connected(self) -> bool:
        """Whether the connection is open."""
        return self._failure is None and self.transport is not None and not self.transport.is_closing()

    def close(self) -> None:
        """Abort the connection; a pending read fails."""
        self._fail(aiohttp.ClientConnectionError, "Connection closed")
        self._unsent = None
        if self.transport is not None:
            self.transport.abort()

    abort = close

    # asyncio.BufferedProtocol.

    def connection_made(self, transport: Any) -> None:
        """Called by the event loop."""
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail a pending read, or end a body delimited by the close of the connection."""
        self.transport = self._unsent = None
        if self._until_eof and exc is None and self._failure is None:
            self.complete = True
        if exc is None:
            self._fail(aiohttp.ServerDisconnectedError)
        else:
            self._fail(aiohttp.ClientOSError, *exc.args)
        if self._closed is not None and not self._closed.done():
            self._closed.set_result(None)
        del self._parser  # it references this object

    def get_buffer(self, sizehint: int) -> memoryview:
        """The buffer for the next read."""
        return self._read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Parse what was read."""
        if self._failure is not None:
            return
        if self.complete:  # unsolicited
            self.close()
            return
        self.received = True
        unread_bytes = self._unread_bytes
        data = self._read_buffer[:nbytes]
        if not self._repairing:
            self._parse(data)
        if not self.status:
            self._head += data
        if self._repairing:
            self._repair()
        if self._unread_bytes != unread_bytes:
            self._bytes_without_body = 0
        else:
            self._bytes_without_body += nbytes
            if self._bytes_without_body > MAX_HEAD_BYTES and not self.complete:
                self._malformed("head too large")
        if self._unread_bytes > MAX_UNREAD_BYTES and not self._reading_paused and self._failure is None:
            self._reading_paused = True
            self.transport.pause_reading()
        self._wake()

    def pause_writing(self) -> None:
        """The write buffer is full."""
        self._writing_paused = True

    def resume_writing(self) -> None:
        """The write buffer has room: continue with the body."""
        self._writing_paused = False
        self._write_rest()

    # Callbacks of llhttp.

    def on_message_begin(self) -> None:
        """Refuse a response that was not asked for."""
        if self.complete:
            self._keep_alive = False
            raise MalformedReply("unsolicited response")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header; trailers are dropped."""
        if not self.status:
            self.headers.append((name.strip().lower(), value))

    def on_headers_complete(self) -> None:
        """Determine the framing of the body; 1xx responses are dropped."""
        status = self._parser.get_status_code()
        if 100 <= status < 200 and status != 101:
            self._is_interim = True
            self.headers = []
            return
        if status < 200:
            raise MalformedReply("status")
        framing = [header for header in self.headers if header[0] in FRAMING]
        codings = {value.strip().lower() for name, value in framing if name != b"content-length"}
        if codings - {b"chunked", b"identity"}:
            raise MalformedReply("transfer-encoding")  # TE was not sent
        self._until_eof = b"chunked" not in codings if codings else not framing
        if codings and len(framing) > 1:  # RFC 9112 6.3: it overrides the length, which must not be forwarded
            self.headers = [header for header in self.headers if header[0] != b"content-length"]
        self.status = status

    def on_body(self, data: bytes) -> None:
        """Collect bytes of the body."""
        self._unread.append(data)
        self._unread_bytes += len(data)

    def on_message_complete(self) -> None:
        """The response is complete, unless it is a 1xx."""
        if self._is_interim:
            self._is_interim = False
        else:
            self.complete = True
            self._keep_alive = self._parser.should_keep_alive()

    # One request.

    def send(self, head: bytes, body: bytes) -> None:
        """Write a request. A large body is written as the transport has room, without waiting here.

        Raises errors of aiohttp if the connection is closed.
        """
        if not self.is_connected():
            raise self._error()
        self._begin_reply()
        self.used = True
        self._keep_alive = False
        if len(body) <= WRITE_BYTES:
            self.transport.write(head + body)
        else:
            self.transport.write(head)
            self._unsent = memoryview(body)
            self._write_rest()

    async def wait_head(self) -> None:
        """Wait for `status` and `headers`. Raises errors of aiohttp."""
        while not self.status:
            if self._failure is not None:
                raise self._error()
            await self.more()

    def take(self) -> bytes | None:
        """The bytes of the body received so far: b"" at its end, None if there are none yet (await `more`).

        Raises errors of aiohttp if the body is truncated.
        """
        unread = self._unread
        if not unread:
            if self.complete:
                return b""
            if self._failure is not None:
                raise self._error()
            return None
        chunk = unread[0] if len(unread) == 1 else b"".join(unread)
        unread.clear()
        self._unread_bytes = 0
        if self._reading_paused:
            self._reading_paused = False
            if self._failure is None:
                self.transport.resume_reading()
        return chunk

    def more(self) -> "asyncio.Future[None]":
        """A future that is done after the next event."""
        self._waiter = self._loop.create_future()
        return self._waiter

    def _write_rest(self) -> None:
        while self._unsent is not None and not self._writing_paused:
            self.transport.write(self._unsent[:WRITE_BYTES])
            self._unsent = self._unsent[WRITE_BYTES:] or None

    def _parse(self, data: bytes | memoryview) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if self.complete:  # the response was complete before
                self.close()
            elif self.status or self._repairing or "Content-Length" not in str(error):
                self._malformed(str(error.__context__ or error))
            else:
                self._parser, self.headers, self._repairing = _parser(self), [], True

    def _repair(self) -> None:
        """Parse a head that llhttp refuses for its content-length, which may be the same value twice."""
        while not self.status and self._failure is None and (end := self._head.find(b"\r\n\r\n") + 4) > 3:
            head = bytes(self._head[:end])
            del self._head[:end]
            self._parse(without_repeated_length(head))
        if self.status and self._failure is None:
            self._repairing = False
            self._parse(bytes(self._head))

    def _malformed(self, what: str) -> None:
        self._fail(MalformedReply, what)
        self.close()

    def _fail(self, kind: type[aiohttp.ClientError], *arguments: Any) -> None:
        if self._failure is None:
            self._failure = kind, arguments
        self._wake()

    def _error(self) -> aiohttp.ClientError:
        """A new exception each time: a stored one would form a cycle through its traceback."""
        assert self._failure is not None
        kind, arguments = self._failure
        return kind(*arguments)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def without_repeated_length(head: bytes) -> bytes:
    """The head with only the first of identical content-length values (RFC 9110 8.6); different ones are left."""
    lines, values = [], set[bytes]()
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            lengths = {length.strip() for length in value.split(b",")}
            if lengths == values:
                continue
            values |= lengths
            if len(values) == 1:
                line = name + b": " + min(values)  # noqa: PLW2901
        lines.append(line)
    return b"\r\n".join(lines)


def _parser(reader: Http1Connection) -> httptools.HttpResponseParser:
    """With the leniencies of aiohttp's parser, and for content-length beside transfer-encoding."""
    parser = httptools.HttpResponseParser(reader)
    parser.set_dangerous_leniencies(
        lenient_headers=True,
        lenient_chunked_length=True,
        lenient_optional_cr_before_lf=True,
        lenient_spaces_after_chunk_size=True,
    )
    return parser
