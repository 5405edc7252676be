"""Polls for finished requests, for `arbstr tail`."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from arbstr_asgi.cli.sources import REQUESTS, Pairs, Source
from arbstr_asgi.stats.params import format_timestamp

IN_FLIGHT = "in_flight"
WINDOW = timedelta(minutes=10)  # after a request's arrival
_FULL_SCAN_EVERY = 5  # polls
_MAX_PAGES = 10


class TailPoller:
    """Polls a source with the filters of GET /v1/requests; `clock` returns the current time in UTC."""

    def __init__(self, source: Source, pairs: Pairs, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._source = source
        self._pairs = pairs
        self._clock = clock
        self._seen_requests = SeenRequests()
        self._polls = 0

    async def poll(self) -> list[dict[str, Any]]:
        """The requests that have finished since the last poll, by arrival. Raises what the source raises."""
        since = self._clock() - WINDOW
        full_scan = self._polls % _FULL_SCAN_EVERY == 0
        asked = [*self._pairs, ("since", format_timestamp(since)), ("per_page", "100")]
        finished: list[dict[str, Any]] = []
        cursor: list[tuple[str, str]] = []
        for _ in range(_MAX_PAGES):
            page = await self._source.get(REQUESTS, [*asked, *cursor])
            new = self._seen_requests.new(page["data"])
            finished += new
            if page["next_cursor"] is None or not (new or full_scan):
                break
            cursor = [("cursor", page["next_cursor"])]
        self._seen_requests.forget(format_timestamp(since - WINDOW))
        self._polls += 1
        return sorted(finished, key=lambda row: str(row["timestamp"]))


class SeenRequests:
    """The ids of finished requests that were shown already."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}  # arrival by id

    def new(self, page: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """The finished requests of a page that were not seen before."""
        new = [row for row in page if row["end_reason"] != IN_FLIGHT and row["correlation_id"] not in self._seen]
        self._seen |= {row["correlation_id"]: str(row["timestamp"]) for row in new}
        return new

    def forget(self, before: str) -> None:
        """Drop requests that arrived before this timestamp (as responses format it, without its zone)."""
        self._seen = {name: timestamp for name, timestamp in self._seen.items() if timestamp >= before}
