"""A file made of rows while it is being sent; it is never in memory as a whole."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.types import Receive, Scope, Send

from arbstr_asgi.stats.lines import RowFormat
from arbstr_asgi.watching import DisconnectListener

_PIECE = 16 * 1024  # bytes


class Export:
    """An ASGI application that answers with one line for each row, and ends when its client leaves.

    What the rows raise when the answer has begun comes out, so that the server aborts the connection and no client
    takes a part for the whole.
    """

    def __init__(self, lines: RowFormat, rows: AsyncIterator[Mapping[str, Any]]) -> None:
        self._lines = lines
        self._pieces = _pieces(lines, rows)
        self._first = b""

    async def begin(self) -> "Export":
        """Read the first rows, so that what fails at once can still be told."""
        self._first = await anext(self._pieces, b"")
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file."""
        sending = asyncio.ensure_future(self._send(send, head=scope["method"] == "HEAD"))
        try:
            with DisconnectListener(receive, lambda: _cancel(sending)):
                await asyncio.wait({sending})
        finally:
            sending.cancel()
            await asyncio.wait({sending})
        if not sending.cancelled():
            sending.result()

    async def _send(self, send: Send, *, head: bool) -> None:
        name = f'attachment; filename="requests.{self._lines.suffix}"'.encode()
        headers = [(b"content-type", self._lines.media_type.encode()), (b"content-disposition", name)]
        async with aclosing(self._pieces) as pieces:
            try:
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                if not head:
                    await send({"type": "http.response.body", "body": self._first, "more_body": True})
                    async for piece in pieces:
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            except OSError:  # what servers of ASGI spec 2.4 raise after a hang-up
                return


def _cancel(task: "asyncio.Future[None]") -> None:
    task.cancel()


async def _pieces(lines: RowFormat, rows: AsyncIterator[Mapping[str, Any]]) -> AsyncGenerator[bytes, None]:
    piece = bytearray(lines.head)
    try:
        async for row in rows:
            piece += lines.line(row)
            if len(piece) >= _PIECE:
                yield bytes(piece)
                piece.clear()
    finally:
        if isinstance(rows, AsyncGenerator):
            await rows.aclose()
    if piece:
        yield bytes(piece)
