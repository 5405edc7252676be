"""What the parameters of GET /v1/stats and GET /v1/requests ask; raises RequestError (400) for what makes no sense."""

import re
from collections.abc import Collection, Iterable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, NoReturn, get_args

from arbstr_asgi.database.records import EndReason
from arbstr_asgi.errors import RequestError, quotable
from arbstr_asgi.stats.query import GROUPS, SORTS, Cursor, Filters, RequestsQuery, StatsQuery
from arbstr_asgi.stats.timezones import zone_of

_LONGEST_NUMBER = 18  # digits, so that each fits 64 bits
DEFAULT_RANGE = "last_7d"
SPAN = ("range", "since", "until")
FORMATS = ("json", "csv", "jsonl")
MOST_GROUPS = 10_000
DEEPEST = 10_000  # rows that pages reach
MOST_PER_PAGE = 100
_TEXTS = ("model", "provider", "end_user", "tenant", "policy")
_ID_LENGTH = 36


Pairs = Iterable[tuple[str, str]]


class QueryParams:
    """Names and values; a `RequestError` (400) names the parameter and never quotes its value."""

    def __init__(self, pairs: Pairs, known: Collection[str]) -> None:
        self._given: dict[str, str] = {}
        for name, value in pairs:
            if name not in known:
                valid = f"valid are {', '.join(sorted(known))}" if known else "there are none here"
                invalid(quotable(name), f"There is no such parameter; {valid}.")
            if name in self._given:
                invalid(name, f"{name} may be given once.")
            self._given[name] = value

    def __contains__(self, name: str) -> bool:
        return name in self._given

    def raw(self, name: str) -> str | None:
        """The value as it came."""
        return self._given.get(name)

    def text(self, name: str, longest: int) -> str | None:
        """A value that a column of so many characters can hold."""
        value = self._given.get(name)
        if value is not None and (len(value) > longest or "\0" in value):
            invalid(name, f"{name} must have at most {longest} characters, and no NUL.")
        return value

    def choice(self, name: str, valid: Collection[str]) -> str | None:
        """One of these words."""
        value = self._given.get(name)
        if value is not None and value not in valid:
            invalid(name, f"{name} must be one of {', '.join(valid)}.")
        return value

    def flag(self, name: str) -> bool | None:
        """`true` or `false`."""
        value = self.choice(name, ("true", "false"))
        return None if value is None else value == "true"

    def number(self, name: str, lowest: int, highest: int | None = None) -> int | None:
        """A whole number between these two, in ASCII digits."""
        value = self._given.get(name)
        if value is None:
            return None
        number = int(value) if value.isascii() and value.isdigit() and len(value) <= _LONGEST_NUMBER else -1
        if number < lowest or (highest is not None and number > highest):
            invalid(
                name, f"{name} must be a whole number from {lowest} {'on' if highest is None else f'to {highest}'}."
            )
        return number


def invalid(name: str, message: str) -> NoReturn:
    """Raises the RequestError that says what is wrong with a parameter."""
    raise RequestError(400, message, param=name, code="invalid_parameter")


RANGES = {
    "last_1h": timedelta(hours=1),
    "last_24h": timedelta(days=1),
    "last_7d": timedelta(days=7),
    "last_30d": timedelta(days=30),
}

# A "+" that was not escaped reaches us as a space.
_FORM = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:[Zz]|([+ -])(\d\d:\d\d))", re.ASCII)


def parse_timestamp(text: str) -> datetime:
    """The moment, in UTC, that RFC 3339 text with `Z` or an offset names; microseconds at most. Raises ValueError."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError("not a moment in RFC 3339")
    day, time, fraction, sign, offset = found.groups()
    zone = f"{'-' if sign == '-' else '+'}{offset or '00:00'}"
    try:
        return datetime.fromisoformat(f"{day}T{time}.{(fraction or '0')[:6]:0<6}{zone}").astimezone(UTC)
    except OverflowError:
        raise ValueError("out of range") from None


def end_of_second(now: datetime) -> datetime:
    """The first moment after the second that `now` is in, so that all of its rows are before it."""
    return now.replace(microsecond=0) + timedelta(seconds=1)


def format_timestamp(moment: datetime) -> str:
    """As RFC 3339 in its own zone, to the millisecond or as exact as it is."""
    return moment.isoformat(timespec="microseconds" if moment.microsecond % 1000 else "milliseconds")


def time_range(fields: QueryParams, now: datetime) -> tuple[datetime, datetime]:
    """From when on and before when; raises RequestError (400).

    `since` goes before `range`, which counts back from `until`. Without that it ends with the current second, so that
    what has just arrived is in it.
    """
    now = now.replace(microsecond=now.microsecond // 1000 * 1000)
    length = RANGES[fields.choice("range", RANGES) or DEFAULT_RANGE]
    until, since = _moment(fields, "until"), _moment(fields, "since")
    end = end_of_second(now) if until is None else until
    if since is None:
        try:
            since = (now if until is None else until) - length
        except OverflowError:
            invalid("until", "until is too early for the range.")
    if since > end:
        invalid("since", "since must not be after until (which is now, if not given).")
    return since, end


def _moment(fields: QueryParams, name: str) -> datetime | None:
    value = fields.raw(name)
    if value is None:
        return None
    try:
        return parse_timestamp(value)
    except ValueError:
        invalid(name, f"{name} must be a moment as in 2026-11-22T10:00:00Z or 2026-11-22T10:00:00.5+01:00 (RFC 3339).")


FILTERS = (*Filters.__struct_fields__,)
FOR_STATS = (*SPAN, *FILTERS, "group_by", "tz", "limit")
FOR_REQUESTS = (*SPAN, *FILTERS, "sort", "order", "page", "per_page", "cursor", "format")
END_REASONS: tuple[str, ...] = get_args(EndReason)


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
