"""Questions to the ledger and their answers, as values; `arbstr_asgi.ledger` answers them."""

from arbstr_asgi.stats.cursor import Cursor
from arbstr_asgi.stats.query import (
    GROUPS,
    SORTS,
    Figures,
    Filters,
    Group,
    Page,
    Rebuilt,
    RequestsQuery,
    Spread,
    StatsQuery,
    Summary,
)

__all__ = [
    "GROUPS",
    "SORTS",
    "Cursor",
    "Figures",
    "Filters",
    "Group",
    "Page",
    "Rebuilt",
    "RequestsQuery",
    "Spread",
    "StatsQuery",
    "Summary",
]
