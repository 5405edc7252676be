"""Types of queries and results of the statistics; the pagination cursor."""

import base64
import binascii
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

import msgspec

from arbstr_asgi._utils import MAX_NAME_CHARACTERS, is_name
from arbstr_asgi.stats.timezones import zone_of

GROUPS = ("model", "provider", "end_user", "tenant", "policy", "hour", "day")
SORTS = ("timestamp", "cost_sats", "latency_ms")
NAMES = ("end_user", "tenant")
TIMES = ("hour", "day")
SOURCES = ("provider", "provider_partial", "estimated")
ALL_TIME = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
Key = str | datetime | date | None
_MAX_CURSOR_LENGTH = 200
_MONEY_EXPONENT = -9  # decimals of money
_MONEY_LIMIT = Decimal(10) ** 15
_INTEGER_LIMIT = 2**63


class Filters(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows are counted; None: any. Values are compared exactly, case-sensitive.

    `status` is compared with `error_status`; 200 also matches a success without one. Raises ValueError for the name of
    an end user or a tenant that no row can have.
    """

    correlation_id: str | None = None
    model: str | None = None
    provider: str | None = None
    end_user: str | None = None
    tenant: str | None = None
    policy: str | None = None
    end_reason: str | None = None
    status: int | None = None
    success: bool | None = None
    streaming: bool | None = None

    def __post_init__(self) -> None:
        for column in NAMES:
            if getattr(self, column) is not None and not is_name(getattr(self, column)):
                raise ValueError(f"{column}: at most {MAX_NAME_CHARACTERS} characters, no NUL and no lone surrogate")

    @property
    def given(self) -> dict[str, Any]:
        """The filters that are set."""
        return {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not None}


class StatsQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Statistics of the rows that arrived in `since <= t < until` (both aware).

    `group_by` is up to two different `GROUPS`; hours and days are those of `zone`, an IANA name. At most `limit`
    groups: those with the most requests first or, grouped by hour or day, in order of time. Raises ValueError.
    """

    since: datetime
    until: datetime
    filters: Filters = Filters()
    group_by: tuple[str, ...] = ()
    zone: str = "UTC"
    limit: int = 100

    def __post_init__(self) -> None:
        _check_range(self.since, self.until)
        if len(self.group_by) > 2 or len(set(self.group_by)) < len(self.group_by):
            raise ValueError("group_by: at most two different ones")
        if not set(self.group_by) <= set(GROUPS):
            raise ValueError(f"group_by: use {', '.join(GROUPS)}")
        if self.limit < 0:
            raise ValueError("limit: must not be negative")
        zone_of(self.zone)


class Percentiles(msgspec.Struct, frozen=True):
    """Average and percentiles of a duration in milliseconds, over the rows that have it; None where none has.

    The average is exact; percentiles are off by at most 1.6 %, and exact below 64 ms.
    """

    average: float | None = None
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """Exact sums over rows.

    Rows in flight are neither success nor error. `tokens` has (input, output) by usage source, `priced` is the number
    of rows with a known cost, `savings_sats` the difference between the dearest candidate and the actual cost, over the
    rows where both are known.
    """

    total: int
    success: int
    error: int
    streaming: int
    input_tokens: int
    output_tokens: int
    tokens: dict[str, tuple[int, int]]
    cost_sats: Decimal
    priced: int
    savings_sats: Decimal
    latency_ms: Percentiles
    ttft_ms: Percentiles
    stream_duration_ms: Percentiles


class Group(msgspec.Struct, frozen=True):
    """Statistics of the rows that share `keys`, in the order of `group_by`.

    A datetime is the start of an hour, a date a day, both in the zone of the query; None is NULL.
    """

    keys: tuple[Key, ...]
    figures: Stats


class Summary(msgspec.Struct, frozen=True):
    """Statistics of all rows, and of each group."""

    whole: Stats
    groups: list[Group]


class Cursor(NamedTuple):
    """A position in sorted rows: the value of the sorted column, and the row id."""

    value: Any
    id: int

    def encode(self) -> str:
        """As URL-safe text."""
        kind, value = _encode_value(self.value)
        return base64.urlsafe_b64encode(msgspec.json.encode((kind, value, self.id))).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> "Cursor":
        """Parse the text of `encode`. Raises ValueError for anything else."""
        if not text.isascii() or len(text) > _MAX_CURSOR_LENGTH:
            raise ValueError("not a cursor")
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            kind, value, number = msgspec.json.decode(raw, type=tuple[str, str, int])
            cursor = cls(_decode_value(kind, value), number)
        except (ValueError, binascii.Error, msgspec.DecodeError, InvalidOperation, OverflowError):
            raise ValueError("not a cursor") from None
        if not 0 <= number < _INTEGER_LIMIT or cursor.encode() != text:
            raise ValueError("not a cursor")
        return cursor

    def matches_sort(self, sort: str) -> bool:
        """Whether the value can be one of this sort column."""
        kinds = {"timestamp": datetime, "cost_sats": Decimal, "latency_ms": int}
        if self.value is None:
            return sort != "timestamp"
        return isinstance(self.value, kinds[sort]) and not isinstance(self.value, bool)


class RequestsQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the rows that arrived in `since <= t < until`, sorted, ties by row id.

    Unknown costs and latencies come last. `after` is the `next` of another page of the same query; the page begins
    behind it, and `offset` is ignored. Raises ValueError.
    """

    since: datetime
    until: datetime
    filters: Filters = Filters()
    sort: str = "timestamp"
    descending: bool = True
    limit: int = 20
    offset: int = 0
    after: Cursor | None = None

    def __post_init__(self) -> None:
        _check_range(self.since, self.until)
        if self.sort not in SORTS:
            raise ValueError(f"sort: use {', '.join(SORTS)}")
        if self.limit < 0 or self.offset < 0:
            raise ValueError("limit and offset: must not be negative")
        if self.after is not None and not self.after.matches_sort(self.sort):
            raise ValueError("after: is of another sort")


class Page(msgspec.Struct, frozen=True):
    """Rows as dicts of all columns and `id`.

    `total` counts the rows on all pages; None where counting would take long. `next` is None on the last page.
    """

    rows: list[dict[str, Any]]
    total: int | None
    next: Cursor | None


class Rebuilt(NamedTuple):
    """Result of a rebuild: how many hours were recomputed, and how many differed."""

    hours: int
    differed: int


def _check_range(since: datetime, until: datetime) -> None:
    if since.utcoffset() is None or until.utcoffset() is None:
        raise ValueError("since and until: must have a time zone")


def _encode_value(value: Any) -> tuple[str, str]:
    if value is None:
        return "n", ""
    if isinstance(value, datetime):
        return "t", value.astimezone(UTC).isoformat(timespec="milliseconds")
    return ("m", f"{value:f}") if isinstance(value, Decimal) else ("i", str(value))


def _decode_value(kind: str, value: str) -> Any:
    match kind:
        case "n":
            return None
        case "t":
            timestamp = datetime.fromisoformat(value)
            if timestamp.utcoffset() is None:
                raise ValueError
            return timestamp.astimezone(UTC)
        case "m":
            amount = Decimal(value)
            if not amount.is_finite() or abs(amount) >= _MONEY_LIMIT:
                raise ValueError
            exponent = amount.as_tuple().exponent
            if (
                not isinstance(exponent, int) or not _MONEY_EXPONENT <= exponent <= 0
            ):  # a large exponent would expand to many digits
                raise ValueError
            return amount
        case "i":
            number = int(value)
            if not -_INTEGER_LIMIT <= number < _INTEGER_LIMIT:
                raise ValueError
            return number
    raise ValueError
