"""Answers statistics requests of an end user or an operator, for the endpoints and the terminal."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any, Literal, Protocol

import msgspec

from arbstr_asgi.config.provider import Provider
from arbstr_asgi.errors import RequestError
from arbstr_asgi.stats import serialize
from arbstr_asgi.stats.params import ListQuery, Pairs, is_id, stats_query
from arbstr_asgi.stats.query import ALL_TIME, Filters, Page, RequestsQuery, StatsQuery, Summary
from arbstr_asgi.stats.serialize import Json


class StatsStore(Protocol):
    """The queries of a ledger that the service needs; each raises LedgerError. See `Ledger`."""

    async def summary(self, query: StatsQuery) -> Summary:
        """Statistics of each group, and of all rows."""
        ...

    async def requests(self, query: RequestsQuery) -> Page:
        """One page of rows."""
        ...

    def export(self, query: RequestsQuery) -> AsyncIterator[dict[str, Any]]:
        """All rows from the page on."""
        ...

    async def distinct(self, column: Literal["model", "provider"]) -> list[str]:
        """The distinct names in this column."""
        ...

    async def attempts(self, correlation_id: str) -> list[dict[str, Any]]:
        """The attempts of one call, in order."""
        ...


class StatsService:
    """Queries a ledger and adds the models and providers of the configuration.

    `end_user` restricts every answer to that end user; None (an operator) sees all. All methods raise LedgerError, and
    RequestError: 400 for a parameter, 403 for another end user, 404 for a model, provider or request that does not
    exist.
    """

    def __init__(self, store: StatsStore, providers: Sequence[Provider], end_user: str | None = None) -> None:
        self._store = store
        self._end_user = end_user
        self._providers = {provider.name for provider in providers}
        self._models = [
            *dict.fromkeys(name for provider in providers for name in (*provider.models, *provider.aliases))
        ]

    async def stats(self, pairs: Pairs, now: datetime) -> Json:
        """The response of GET /v1/stats; `now` in UTC."""
        query = stats_query(pairs, now)
        query = msgspec.structs.replace(query, filters=await self.allowed(query.filters))
        summary = await self._store.summary(
            msgspec.structs.replace(query, limit=query.limit + 1)
        )  # one more, for `truncated`
        groups = summary.groups if query.group_by else []
        model = query.filters.model
        models = [name for name in self._models if model in (None, name)]
        return await asyncio.to_thread(
            serialize.stats, query, summary.whole, groups, models
        )  # may be thousands of groups

    async def requests(self, listing: ListQuery) -> Json:
        """The response of GET /v1/requests."""
        query = msgspec.structs.replace(listing.query, filters=await self.allowed(listing.query.filters))
        return serialize.requests(listing, await self._store.requests(query))

    async def detail(self, correlation_id: str) -> Json:
        """One request and its attempts."""
        since, until = ALL_TIME
        rows: list[dict[str, Any]] = []
        if is_id(correlation_id):
            filters = Filters(correlation_id=correlation_id, end_user=self._end_user)
            rows = (await self._store.requests(RequestsQuery(since=since, until=until, filters=filters, limit=1))).rows
        if not rows:
            raise RequestError(404, "There is no such request.", param="correlation_id", code="request_not_found")
        return serialize.detail(rows[0], await self._store.attempts(correlation_id))

    async def allowed(self, filters: Filters) -> Filters:
        """The filters restricted to what the caller may see. Raises RequestError.

        403 for the filter of another end user; for an operator 404 for a model or a provider that is neither configured
        nor in the ledger.
        """
        if self._end_user is not None and filters.end_user not in (None, self._end_user):
            message = "An end user may ask about itself only."
            raise RequestError(403, message, param="end_user", code="other_end_user")
        if self._end_user is not None:  # a 404 would reveal what others have used
            return msgspec.structs.replace(filters, end_user=self._end_user)
        if filters.model is not None and filters.model not in self._models:
            await self._check_exists("model", filters.model)
        if filters.provider is not None and filters.provider not in self._providers:
            await self._check_exists("provider", filters.provider)
        return filters

    async def _check_exists(self, column: Literal["model", "provider"], name: str) -> None:
        if name not in await self._store.distinct(column):
            message = f"There is no such {column}, neither in the configuration nor in the ledger."
            raise RequestError(404, message, param=column, code=f"{column}_not_found")
