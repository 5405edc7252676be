"""Asking the ledger: questions, their answers, and the roll-ups that make them quick."""

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
