"""Which requests somebody who watches has not been shown yet."""

from collections.abc import Iterable
from typing import Any

IN_FLIGHT = "in_flight"


class SeenRequests:
    """Remembers the finished requests of the time that is looked at, by their ids."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}  # when they arrived

    def new(self, page: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """The requests of a page that have finished and were not on one before."""
        found = [row for row in page if row["end_reason"] != IN_FLIGHT and row["correlation_id"] not in self._seen]
        self._seen |= {row["correlation_id"]: str(row["timestamp"]) for row in found}
        return found

    def forget(self, before: str) -> None:
        """Those that arrived earlier (as answers write it, but for the zone) will not be on a page any more."""
        self._seen = {name: moment for name, moment in self._seen.items() if moment >= before}
