"""What the parameters of GET /v1/stats and GET /v1/requests ask; raises RequestError (400) for what makes no sense."""

from datetime import datetime
from typing import NamedTuple, get_args

from arbstr_asgi.entry import EndReason
from arbstr_asgi.stats.cursor import Cursor
from arbstr_asgi.stats.fields import QueryParams, Pairs, invalid
from arbstr_asgi.stats.query import GROUPS, SORTS, Filters, RequestsQuery, StatsQuery
from arbstr_asgi.stats.span import SPAN, time_range
from arbstr_asgi.stats.zones import zone_of

FILTERS = (*Filters.__struct_fields__,)
FOR_STATS = (*SPAN, *FILTERS, "group_by", "tz", "limit")
FOR_REQUESTS = (*SPAN, *FILTERS, "sort", "order", "page", "per_page", "cursor", "format")
FORMATS = ("json", "csv", "jsonl")
END_REASONS: tuple[str, ...] = get_args(EndReason)
MOST_GROUPS = 10_000
DEEPEST = 10_000  # rows that pages reach
MOST_PER_PAGE = 100

_TEXTS = ("model", "provider", "end_user", "tenant", "policy")
_ID_LENGTH = 36


class ListQuery(NamedTuple):
    """Which rows, and how they are told: `page` is None behind a cursor and for whatever is no page."""

    query: RequestsQuery
    format: str
    page: int | None


def stats_query(pairs: Pairs, now: datetime) -> StatsQuery:
    """The query of GET /v1/stats at a moment, in UTC."""
    fields = QueryParams(pairs, FOR_STATS)
    since, until = time_range(fields, now)
    return StatsQuery(
        since=since,
        until=until,
        filters=_filters(fields),
        group_by=_groups(fields),
        zone=_zone(fields),
        limit=fields.number("limit", 1, MOST_GROUPS) or 100,
    )


def list_query(pairs: Pairs, now: datetime) -> ListQuery:
    """The query of GET /v1/requests at a moment, in UTC; an export's has no limit."""
    fields = QueryParams(pairs, FOR_REQUESTS)
    since, until = time_range(fields, now)
    sort = fields.choice("sort", SORTS) or "timestamp"
    kind = fields.choice("format", FORMATS) or "json"
    cursor = _cursor(fields, sort)
    page, per_page = _page(fields, kind)
    query = RequestsQuery(
        since=since,
        until=until,
        filters=_filters(fields),
        sort=sort,
        descending=_descending(fields),
        limit=per_page,
        offset=(page - 1) * per_page,
        after=cursor,
    )
    return ListQuery(query, kind, None if cursor is not None or kind != "json" else page)


def is_id(text: str) -> bool:
    """Whether a correlation id can look like this."""
    return text.isascii() and text.isprintable() and 0 < len(text) <= _ID_LENGTH and text == text.strip()


def _filters(fields: QueryParams) -> Filters:
    call = fields.raw("correlation_id")
    if call is not None and not is_id(call):
        invalid("correlation_id", f"correlation_id must be of 1 to {_ID_LENGTH} printable ASCII characters.")
    return Filters(
        correlation_id=call,
        end_reason=fields.choice("end_reason", END_REASONS),
        status=fields.number("status", 100, 599),
        success=fields.flag("success"),
        streaming=fields.flag("streaming"),
        **{name: fields.text(name, 255) for name in _TEXTS},
    )


def _groups(fields: QueryParams) -> tuple[str, ...]:
    value = fields.raw("group_by")
    if value is None:
        return ()
    names = tuple(value.split(","))
    if len(names) > 2 or len(set(names)) < len(names) or not set(names) <= set(GROUPS):
        invalid("group_by", f"group_by must be one or two (with a comma between them) of {', '.join(GROUPS)}.")
    return names


def _zone(fields: QueryParams) -> str:
    name = fields.raw("tz")
    try:
        zone_of(name := "UTC" if name is None else name)
    except ValueError:
        invalid("tz", "tz must be the IANA name of a time zone, as UTC or Europe/Zurich.")
    return name


def _descending(fields: QueryParams) -> bool:
    order = fields.raw("order")
    if order is None:
        return True
    if order.lower() not in ("asc", "desc"):
        invalid("order", "order must be asc or desc.")
    return order.lower() == "desc"


def _cursor(fields: QueryParams, sort: str) -> Cursor | None:
    value = fields.raw("cursor")
    if value is None:
        return None
    if "page" in fields:
        invalid("cursor", "page and cursor can't be given both.")
    try:
        found = Cursor.decode(value)
    except ValueError:
        found = None
    if found is None or not found.fits(sort):
        invalid("cursor", "cursor must be the next_cursor of a page with the same sort.")
    return found


def _page(fields: QueryParams, kind: str) -> tuple[int, int]:
    for name in ("page", "per_page"):
        if kind != "json" and name in fields:
            invalid(name, f"{name} means nothing for an export, which has no pages.")
    per_page = fields.number("per_page", 1, MOST_PER_PAGE) or 20
    page = fields.number("page", 1) or 1
    if page * per_page > DEEPEST:
        invalid("page", f"Pages reach {DEEPEST:,} rows deep. For more, give next_cursor as cursor, or use a format.")
    return page, per_page
