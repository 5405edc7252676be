"""Questions to the ledger and their answers, as values; `arbstr_asgi.ledger` answers them."""

from arbstr_asgi.stats.cursor import Cursor
from arbstr_asgi.stats.query import (
    GROUPS,
    SORTS,
    Stats,
    Filters,
    Group,
    Page,
    Rebuilt,
    RequestsQuery,
    Percentiles,
    StatsQuery,
    Summary,
)

__all__ = [
    "GROUPS",
    "SORTS",
    "Cursor",
    "Stats",
    "Filters",
    "Group",
    "Page",
    "Rebuilt",
    "RequestsQuery",
    "Percentiles",
    "StatsQuery",
    "Summary",
]
