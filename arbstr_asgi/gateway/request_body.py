"""Receives a request's body within limits of size and time."""

from collections.abc import AsyncIterator
from typing import Self

from starlette.types import Receive

from arbstr_asgi.config.settings import Limits
from arbstr_asgi.errors import RequestError, ServerError
from arbstr_asgi.gateway.deadline import Deadline, DeadlineTimer
from arbstr_asgi.providers import headers as h


class ClientDisconnected(Exception):
    """The client hung up before its request was complete."""


class BodyReader:
    """Reads bodies, and knows how many bytes of them are held at this moment."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.in_flight = 0

    async def read(
        self, chunks: AsyncIterator[bytes], content_length: str | None, timer: DeadlineTimer | None = None
    ) -> bytes:
        """The whole body, which counts as held until `release`.

        Raises RequestError (413 too large, 408 too slow), ServerError (503, too much held over all),
        ClientDisconnected.
        """
        if content_length and content_length.isdecimal():
            self._check(int(content_length[:20]))
        parts: list[bytes] = []
        size = 0
        with Deadline(timer) as deadline:
            deadline.start(self._limits.body_timeout)
            try:
                async for chunk in chunks:
                    size += len(chunk)
                    self.in_flight += len(chunk)
                    parts.append(chunk)
                    self._check(size)
            except BaseException:
                self.in_flight -= size
                raise
        if deadline.reason is not None:
            raise RequestError(408, "The request body took too long to arrive.", code="request_timeout")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def held(self, size: int) -> "BodyRelease":
        """To be called when a body of `size` bytes may go."""
        return BodyRelease(self, size)

    def release(self, size: int) -> None:
        """Says that a body of `size` bytes is not held any more."""
        self.in_flight -= size

    def _check(self, size: int) -> None:
        if size > self._limits.max_body_bytes:
            message = f"The request body is larger than {self._limits.max_body_bytes} bytes."
            raise RequestError(413, message, code="request_too_large")
        if self.in_flight > self._limits.max_body_bytes_in_flight:
            message = "Too many request bytes are being held at this moment. Please retry."
            raise ServerError(message, code="overloaded", retry_after=1)


class BodyRelease:
    """Says once that a body is not held any more."""

    __slots__ = ("_reader", "_size")

    def __init__(self, reader: BodyReader, size: int) -> None:
        self._reader = reader
        self._size = size

    def __call__(self) -> None:
        size, self._size = self._size, 0
        self._reader.release(size)


class BodyChunks:
    """The chunks of a body as an ASGI server hands them over. Raises ClientDisconnected.

    An iterator rather than a generator, of which every event loop keeps a register.
    """

    __slots__ = ("_more", "_receive")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._more = True

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while self._more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            self._more = message.get("more_body", False)
            chunk: bytes = message.get("body", b"")
            if chunk:
                return chunk
        raise StopAsyncIteration


def check_headers(client_headers: h.Headers) -> None:
    """Raises RequestError (415) unless the body is said to be plain JSON."""
    named = [value for name, value in client_headers.raw if name.lower() == b"content-type"]
    if len(named) != 1 or not h.is_sendable(named[0]) or client_headers.media_type != "application/json":
        raise RequestError(415, "Content-Type must be application/json.", code="unsupported_media_type")
    if not client_headers.is_plain:
        raise RequestError(415, "A compressed request body is not accepted.", code="unsupported_content_encoding")
