"""Statistics of the ledger: queries and their results, roll-ups, pagination, serialisation."""

from arbstr_asgi.stats.query import (
    GROUPS,
    SORTS,
    Cursor,
    Filters,
    Group,
    Page,
    Percentiles,
    Rebuilt,
    RequestsQuery,
    Stats,
    StatsQuery,
    Summary,
)

__all__ = [
    "GROUPS",
    "SORTS",
    "Cursor",
    "Filters",
    "Group",
    "Page",
    "Percentiles",
    "Rebuilt",
    "RequestsQuery",
    "Stats",
    "StatsQuery",
    "Summary",
]
