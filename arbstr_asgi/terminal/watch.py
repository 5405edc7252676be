"""Requests as they finish, seen by looking again and again."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from arbstr_asgi.stats.moments import format_timestamp
from arbstr_asgi.terminal.recent import SeenRequests
from arbstr_asgi.terminal.source import REQUESTS, Pairs, Source

WINDOW = timedelta(minutes=10)  # from a request's arrival, in which its end is seen
_SWEEP = 5  # every so many looks go through the whole window
_MOST_PAGES = 10


class TailPoller:
    """Looks at a source with the filters of GET /v1/requests; `clock` gives the current time in UTC."""

    def __init__(self, source: Source, pairs: Pairs, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._source = source
        self._pairs = pairs
        self._clock = clock
        self._recent = SeenRequests()
        self._looks = 0

    async def poll(self) -> list[dict[str, Any]]:
        """What has finished since the last look, the oldest arrival first. Raises what the source does."""
        since = self._clock() - WINDOW
        whole = self._looks % _SWEEP == 0
        asked = [*self._pairs, ("since", format_timestamp(since)), ("per_page", "100")]
        news: list[dict[str, Any]] = []
        cursor: list[tuple[str, str]] = []
        for _ in range(_MOST_PAGES):
            page = await self._source.get(REQUESTS, [*asked, *cursor])
            found = self._recent.new(page["data"])
            news += found
            if page["next_cursor"] is None or not (found or whole):
                break
            cursor = [("cursor", page["next_cursor"])]
        self._recent.forget(format_timestamp(since - WINDOW))
        self._looks += 1
        return sorted(news, key=lambda row: str(row["timestamp"]))
