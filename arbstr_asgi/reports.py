"""What the sub-app tells of its ledger: figures, requests, and files of them; an end user only of its own."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp

from arbstr_asgi.answers import StatsService
from arbstr_asgi.callers import Caller
from arbstr_asgi.errors import LedgerError, ServerError
from arbstr_asgi.export import Export
from arbstr_asgi.gateway import Gateway
from arbstr_asgi.ledger.columns import COLUMNS
from arbstr_asgi.listing import to_json
from arbstr_asgi.stats.fields import QueryParams
from arbstr_asgi.stats.lines import row_format
from arbstr_asgi.stats.params import list_query

logger = logging.getLogger("arbstr_asgi")

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
