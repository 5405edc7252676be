"""Requests as they finish, seen by looking again and again."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from arbstr_asgi.cli.sources import REQUESTS, Pairs, Source
from arbstr_asgi.stats.params import format_timestamp

IN_FLIGHT = "in_flight"
_FULL_SCAN_EVERY = 5  # every so many looks go through the whole window
_MAX_PAGES = 10


class SeenRequests:
    """Remembers the finished requests of the time that is looked at, by their ids."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}  # when they arrived

    def new(self, page: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """The requests of a page that have finished and were not on one before."""
        new = [row for row in page if row["end_reason"] != IN_FLIGHT and row["correlation_id"] not in self._seen]
        self._seen |= {row["correlation_id"]: str(row["timestamp"]) for row in new}
        return new

    def forget(self, before: str) -> None:
        """Those that arrived earlier (as answers write it, but for the zone) will not be on a page any more."""
        self._seen = {name: timestamp for name, timestamp in self._seen.items() if timestamp >= before}


WINDOW = timedelta(minutes=10)  # from a request's arrival, in which its end is seen


class TailPoller:
    """Looks at a source with the filters of GET /v1/requests; `clock` gives the current time in UTC."""

    def __init__(self, source: Source, pairs: Pairs, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._source = source
        self._pairs = pairs
        self._clock = clock
        self._seen_requests = SeenRequests()
        self._polls = 0

    async def poll(self) -> list[dict[str, Any]]:
        """What has finished since the last look, the oldest arrival first. Raises what the source does."""
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
