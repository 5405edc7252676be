"""Parses and validates the query parameters of GET /v1/stats and GET /v1/requests. Raises RequestError (400)."""

import re
from collections.abc import Collection, Iterable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, NoReturn, get_args

from arbstr_asgi.database.records import EndReason
from arbstr_asgi.errors import RequestError, quotable
from arbstr_asgi.stats.query import GROUPS, SORTS, Cursor, Filters, RequestsQuery, StatsQuery
from arbstr_asgi.stats.timezones import NoTimeZones, zone_of

Pairs = Iterable[tuple[str, str]]
RANGES = {
    "last_1h": timedelta(hours=1),
    "last_24h": timedelta(days=1),
    "last_7d": timedelta(days=7),
    "last_30d": timedelta(days=30),
}
DEFAULT_RANGE = "last_7d"
TIME_PARAMS = ("range", "since", "until")
FILTERS = (*Filters.__struct_fields__,)
FOR_STATS = (*TIME_PARAMS, *FILTERS, "group_by", "tz", "limit")
FOR_REQUESTS = (*TIME_PARAMS, *FILTERS, "sort", "order", "page", "per_page", "cursor", "format")
FORMATS = ("json", "csv", "jsonl")
END_REASONS: tuple[str, ...] = get_args(EndReason)
MAX_GROUPS = 10_000
MAX_PAGE_DEPTH = 10_000  # rows
MAX_PER_PAGE = 100
_TEXT_FILTERS = ("model", "provider", "end_user", "tenant", "policy")
_ID_LENGTH = 36
_MAX_DIGITS = 18  # fits 64 bits
# An unescaped "+" is decoded as a space.
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:[Zz]|([+ -])(\d\d:\d\d))", re.ASCII)


class QueryParams:
    """Query parameters by name; its RequestError (400) names the parameter and never quotes the value."""

    def __init__(self, pairs: Pairs, allowed: Collection[str]) -> None:
        self._values: dict[str, str] = {}
        for name, value in pairs:
            if name not in allowed:
                valid = f"valid are {', '.join(sorted(allowed))}" if allowed else "there are none here"
                invalid(quotable(name), f"There is no such parameter; {valid}.")
            if name in self._values:
                invalid(name, f"{name} may be given once.")
            self._values[name] = value

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def raw(self, name: str) -> str | None:
        """The value as given, or None."""
        return self._values.get(name)

    def text(self, name: str, max_length: int) -> str | None:
        """A text of at most `max_length` characters, without NUL."""
        value = self._values.get(name)
        if value is not None and (len(value) > max_length or "\0" in value):
            invalid(name, f"{name} must have at most {max_length} characters, and no NUL.")
        return value

    def choice(self, name: str, valid: Collection[str]) -> str | None:
        """One of the `valid` words."""
        value = self._values.get(name)
        if value is not None and value not in valid:
            invalid(name, f"{name} must be one of {', '.join(valid)}.")
        return value

    def flag(self, name: str) -> bool | None:
        """`true` or `false`."""
        value = self.choice(name, ("true", "false"))
        return None if value is None else value == "true"

    def number(self, name: str, minimum: int, maximum: int | None = None) -> int | None:
        """An integer from `minimum` to `maximum`, in ASCII digits."""
        value = self._values.get(name)
        if value is None:
            return None
        number = int(value) if value.isascii() and value.isdigit() and len(value) <= _MAX_DIGITS else -1
        if number < minimum or (maximum is not None and number > maximum):
            invalid(
                name, f"{name} must be a whole number from {minimum} {'on' if maximum is None else f'to {maximum}'}."
            )
        return number


def invalid(name: str, message: str) -> NoReturn:
    """Raise the RequestError (400) for this parameter."""
    raise RequestError(400, message, param=name, code="invalid_parameter")


class ListQuery(NamedTuple):
    """A parsed GET /v1/requests: the query, its format, and the page number (None with a cursor or for an export)."""

    query: RequestsQuery
    format: str
    page: int | None


def stats_query(pairs: Pairs, now: datetime) -> StatsQuery:
    """Parse the query of GET /v1/stats; `now` in UTC."""
    params = QueryParams(pairs, FOR_STATS)
    since, until = time_range(params, now)
    return StatsQuery(
        since=since,
        until=until,
        filters=_filters(params),
        group_by=_groups(params),
        zone=_zone(params),
        limit=params.number("limit", 1, MAX_GROUPS) or 100,
    )


def list_query(pairs: Pairs, now: datetime) -> ListQuery:
    """Parse the query of GET /v1/requests; `now` in UTC. `limit` is the page size."""
    params = QueryParams(pairs, FOR_REQUESTS)
    since, until = time_range(params, now)
    sort = params.choice("sort", SORTS) or "timestamp"
    file_format = params.choice("format", FORMATS) or "json"
    cursor = _cursor(params, sort)
    page, per_page = _page(params, file_format)
    query = RequestsQuery(
        since=since,
        until=until,
        filters=_filters(params),
        sort=sort,
        descending=_descending(params),
        limit=per_page,
        offset=(page - 1) * per_page,
        after=cursor,
    )
    return ListQuery(query, file_format, None if cursor is not None or file_format != "json" else page)


def is_id(text: str) -> bool:
    """Whether this is a possible correlation id: 1 to 36 printable ASCII characters."""
    return text.isascii() and text.isprintable() and 0 < len(text) <= _ID_LENGTH and text == text.strip()


def _filters(params: QueryParams) -> Filters:
    call = params.raw("correlation_id")
    if call is not None and not is_id(call):
        invalid("correlation_id", f"correlation_id must be of 1 to {_ID_LENGTH} printable ASCII characters.")
    return Filters(
        correlation_id=call,
        end_reason=params.choice("end_reason", END_REASONS),
        status=params.number("status", 100, 599),
        success=params.flag("success"),
        streaming=params.flag("streaming"),
        **{name: params.text(name, 255) for name in _TEXT_FILTERS},
    )


def _groups(params: QueryParams) -> tuple[str, ...]:
    value = params.raw("group_by")
    if value is None:
        return ()
    names = tuple(value.split(","))
    if len(names) > 2 or len(set(names)) < len(names) or not set(names) <= set(GROUPS):
        invalid("group_by", f"group_by must be one or two (with a comma between them) of {', '.join(GROUPS)}.")
    return names


def _zone(params: QueryParams) -> str:
    name = params.raw("tz")
    try:
        zone_of(name := "UTC" if name is None else name)
    except NoTimeZones:
        invalid("tz", "The server has no time zone database but for UTC; it needs the Python package tzdata.")
    except ValueError:
        invalid("tz", "tz must be the IANA name of a time zone, as UTC or Europe/Zurich.")
    return name


def _descending(params: QueryParams) -> bool:
    order = params.raw("order")
    if order is None:
        return True
    if order.lower() not in ("asc", "desc"):
        invalid("order", "order must be asc or desc.")
    return order.lower() == "desc"


def _cursor(params: QueryParams, sort: str) -> Cursor | None:
    value = params.raw("cursor")
    if value is None:
        return None
    if "page" in params:
        invalid("cursor", "page and cursor can't be given both.")
    try:
        match = Cursor.decode(value)
    except ValueError:
        match = None
    if match is None or not match.matches_sort(sort):
        invalid("cursor", "cursor must be the next_cursor of a page with the same sort.")
    return match


def _page(params: QueryParams, file_format: str) -> tuple[int, int]:
    for name in ("page", "per_page"):
        if file_format != "json" and name in params:
            invalid(name, f"{name} means nothing for an export, which has no pages.")
    per_page = params.number("per_page", 1, MAX_PER_PAGE) or 20
    page = params.number("page", 1) or 1
    if page * per_page > MAX_PAGE_DEPTH:
        invalid(
            "page", f"Pages reach {MAX_PAGE_DEPTH:,} rows deep. For more, give next_cursor as cursor, or use a format."
        )
    return page, per_page


def time_range(params: QueryParams, now: datetime) -> tuple[datetime, datetime]:
    """The time range `since <= t < until` of `since`, `until` and `range`. Raises RequestError (400).

    `since` overrides `range`, which is the length of the range before `until`. `until` defaults to the end of the
    current second, so that rows that have just arrived are included.
    """
    now = now.replace(microsecond=now.microsecond // 1000 * 1000)
    length = RANGES[params.choice("range", RANGES) or DEFAULT_RANGE]
    until, since = _timestamp(params, "until"), _timestamp(params, "since")
    end = end_of_second(now) if until is None else until
    if since is None:
        try:
            since = (now if until is None else until) - length
        except OverflowError:
            invalid("until", "until is too early for the range.")
    if since > end:
        invalid("since", "since must not be after until (which is now, if not given).")
    return since, end


def _timestamp(params: QueryParams, name: str) -> datetime | None:
    value = params.raw(name)
    if value is None:
        return None
    try:
        return parse_timestamp(value)
    except ValueError:
        invalid(name, f"{name} must be a moment as in 2026-11-22T10:00:00Z or 2026-11-22T10:00:00.5+01:00 (RFC 3339).")


def parse_timestamp(text: str) -> datetime:
    """Parse RFC 3339 with `Z` or an offset, to UTC and microseconds. Raises ValueError."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError("not a moment in RFC 3339")
    day, time, fraction, sign, offset = match.groups()
    zone = f"{'-' if sign == '-' else '+'}{offset or '00:00'}"
    try:
        return datetime.fromisoformat(f"{day}T{time}.{(fraction or '0')[:6]:0<6}{zone}").astimezone(UTC)
    except OverflowError:
        raise ValueError("out of range") from None


def end_of_second(now: datetime) -> datetime:
    """The start of the next second, as an upper bound that includes all rows of the current one."""
    return now.replace(microsecond=0) + timedelta(seconds=1)


def format_timestamp(timestamp: datetime) -> str:
    """RFC 3339 in its own zone, in milliseconds, or in microseconds where it has those."""
    return timestamp.isoformat(timespec="microseconds" if timestamp.microsecond % 1000 else "milliseconds")
