"""What the sub-app tells of its ledger: figures, requests, and files of them; an end user only of its own."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from arbstr_asgi.api.providers import to_json
from arbstr_asgi.database.columns import COLUMNS
from arbstr_asgi.errors import LedgerError, ServerError
from arbstr_asgi.gateway.auth import Caller
from arbstr_asgi.gateway.disconnects import DisconnectListener
from arbstr_asgi.gateway.gateway import Gateway
from arbstr_asgi.stats.params import QueryParams, list_query
from arbstr_asgi.stats.serialize import RowFormat, row_format
from arbstr_asgi.stats.service import StatsService

logger = logging.getLogger("arbstr_asgi")
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


_NAMES = ("id", *(column.name for column in COLUMNS))


async def stats(gateway: Gateway, request: Request, caller: Caller) -> bytes:
    """GET /v1/stats."""
    with _answering():
        answers = await _answers(gateway, caller)
        found = await answers.stats(request.query_params.multi_items(), datetime.now(UTC))
        return await asyncio.to_thread(to_json, found)


async def requests(gateway: Gateway, request: Request, caller: Caller) -> bytes | ASGIApp:
    """GET /v1/requests; with `format`, a file."""
    asked = list_query(request.query_params.multi_items(), datetime.now(UTC))
    with _answering():
        answers = await _answers(gateway, caller)
        if asked.format == "json":
            return to_json(await answers.requests(asked))
        query = msgspec.structs.replace(asked.query, filters=await answers.allowed(asked.query.filters))
        return await Export(row_format(asked.format, _NAMES), gateway.ledger.export(query)).begin()


async def detail(gateway: Gateway, request: Request, caller: Caller) -> bytes:
    """GET /v1/requests/{correlation_id}."""
    QueryParams(request.query_params.multi_items(), ())
    with _answering():
        answers = await _answers(gateway, caller)
        return to_json(await answers.detail(request.path_params["correlation_id"]))


async def _answers(gateway: Gateway, caller: Caller) -> StatsService:
    await gateway.ready()
    return StatsService(gateway.ledger, gateway.config.providers, None if caller.operator else caller.end_user)


@contextmanager
def _answering() -> Iterator[None]:
    """Says in no more than general words that the ledger can't answer; the log has the details."""
    try:
        yield
    except LedgerError as error:
        logger.warning("a question to the ledger was not answered: %s", error)
        raise ServerError(
            "The usage ledger can't answer at this moment. Please retry.", code="ledger_unavailable", retry_after=5
        ) from None
