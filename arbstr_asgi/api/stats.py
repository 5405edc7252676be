"""Endpoints of the ledger: statistics, pages of requests, exports; an end user sees only its own."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from arbstr_asgi.database.columns import COLUMNS
from arbstr_asgi.errors import LedgerError, RequestError, ServerError
from arbstr_asgi.gateway.auth import Caller
from arbstr_asgi.gateway.disconnects import DisconnectListener
from arbstr_asgi.gateway.gateway import Gateway
from arbstr_asgi.stats.params import QueryParams, list_query
from arbstr_asgi.stats.serialize import RowFormat, row_format, to_json
from arbstr_asgi.stats.service import StatsService

logger = logging.getLogger("arbstr_asgi")
_CHUNK_BYTES = 16 * 1024  # bytes
_NAMES = ("id", *(column.name for column in COLUMNS))


async def stats(gateway: Gateway, request: Request, caller: Caller) -> bytes:
    """GET /v1/stats."""
    with _ledger_errors():
        service = await _service(gateway, caller)
        result = await service.stats(_pairs(request), datetime.now(UTC))
        return await asyncio.to_thread(to_json, result)


async def requests(gateway: Gateway, request: Request, caller: Caller) -> bytes | ASGIApp:
    """GET /v1/requests; with `format`, a file."""
    listing = list_query(_pairs(request), datetime.now(UTC))
    with _ledger_errors():
        service = await _service(gateway, caller)
        if listing.format == "json":
            return to_json(await service.requests(listing))
        query = msgspec.structs.replace(listing.query, filters=await service.allowed(listing.query.filters))
        return await Export(row_format(listing.format, _NAMES), gateway.ledger.export(query)).begin()


async def detail(gateway: Gateway, request: Request, caller: Caller) -> bytes:
    """GET /v1/requests/{correlation_id}."""
    QueryParams(_pairs(request), ())
    with _ledger_errors():
        service = await _service(gateway, caller)
        return to_json(await service.detail(request.path_params["correlation_id"]))


def _pairs(request: Request) -> list[tuple[str, str]]:
    """The query's parameters, none of them altered. Raises RequestError (400) for what is not UTF-8."""
    try:
        query = request.scope["query_string"].decode()
        return parse_qsl(query, keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise RequestError(400, "The query is not valid UTF-8.", code="invalid_parameter") from None


async def _service(gateway: Gateway, caller: Caller) -> StatsService:
    await gateway.ready()
    return StatsService(gateway.ledger, gateway.config.providers, None if caller.operator else caller.end_user)


@contextmanager
def _ledger_errors() -> Iterator[None]:
    """Log a LedgerError, and raise a ServerError without its details instead."""
    try:
        yield
    except LedgerError as error:
        logger.warning("a question to the ledger was not answered: %s", error)
        raise ServerError(
            "The usage ledger can't answer at this moment. Please retry.", code="ledger_unavailable", retry_after=5
        ) from None


class Export:
    """An ASGI application that streams rows as a file, and stops when its client disconnects.

    An error after the response has begun is raised, so that the server aborts the connection and no client takes a part
    for the whole.
    """

    def __init__(self, row_format_: RowFormat, rows: AsyncIterator[Mapping[str, Any]]) -> None:
        self._row_format = row_format_
        self._chunks = _chunks(row_format_, rows)
        self._first = b""

    async def begin(self) -> "Export":
        """Read the first rows, so that an early error can still become an error response."""
        self._first = await anext(self._chunks, b"")
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file."""
        task = asyncio.ensure_future(self._send(send, head=scope["method"] == "HEAD"))
        try:
            with DisconnectListener(receive, lambda: _cancel(task)):
                await asyncio.wait({task})
        finally:
            task.cancel()
            await asyncio.wait({task})
        if not task.cancelled():
            task.result()

    async def _send(self, send: Send, *, head: bool) -> None:
        name = f'attachment; filename="requests.{self._row_format.suffix}"'.encode()
        headers = [(b"content-type", self._row_format.media_type.encode()), (b"content-disposition", name)]
        async with aclosing(self._chunks) as chunks:
            try:
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                if not head:
                    await send({"type": "http.response.body", "body": self._first, "more_body": True})
                    async for chunk in chunks:
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            except OSError:  # raised by ASGI 2.4 servers after a disconnect
                return


def _cancel(task: "asyncio.Future[None]") -> None:
    task.cancel()


async def _chunks(row_format_: RowFormat, rows: AsyncIterator[Mapping[str, Any]]) -> AsyncGenerator[bytes, None]:
    chunk = bytearray(row_format_.head)
    try:
        async for row in rows:
            chunk += row_format_.encode_row(row)
            if len(chunk) >= _CHUNK_BYTES:
                yield bytes(chunk)
                chunk.clear()
    finally:
        if isinstance(rows, AsyncGenerator):
            await rows.aclose()
    if chunk:
        yield bytes(chunk)
