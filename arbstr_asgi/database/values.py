"""Normalises values before they reach a driver, and converts stored values back.

Each driver fails on different values (NUL, a lone surrogate, text that is too long, a UTC offset, NaN). Normalised
values are accepted by all three databases and mean the same in each.
"""

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation
from operator import attrgetter
from typing import Any, NamedTuple

from arbstr_asgi._utils import is_name
from arbstr_asgi.database.columns import ATTEMPT_COLUMNS, COLUMNS, Column, Columns, Kind
from arbstr_asgi.database.records import AttemptEntry, LedgerEntry, derived_attempt

Row = tuple[Any, ...]
_MIN_INTEGER, _MAX_INTEGER = -(2**63), 2**63 - 1
_WITHIN_A_MILLISECOND = [timedelta(microseconds=number) for number in range(1000)]
_NANO = Decimal("1e-9")
_ZERO = Decimal("0.000000000")
# A context of our own, since the host may change the thread's. More digits than NUMERIC(24, 9) has are refused.
_MONEY = Context(prec=24, rounding=ROUND_HALF_EVEN, traps=[InvalidOperation])


class Record(NamedTuple):
    """One normalised state of a call: its row in `requests`, and the rows of its attempts that this one doesn't tell.

    Where the row has `sent_ms`, it tells the call's only attempt, unless there is a row of a finished state of it.
    """

    row: Row
    attempts: tuple[Row, ...] = ()

    @property
    def correlation_id(self) -> str:
        """The call's id."""
        return str(self.row[0])


def identifier(value: Any, length: int = 36) -> str:
    """A correlation id as it is stored: printable ASCII, any other character becomes `?`."""
    text = str(value)
    if not (text.isascii() and text.isprintable()):
        text = "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
    return text[:length]


def text(value: Any, length: int) -> str:
    """At most `length` characters; NUL and lone surrogates become U+FFFD."""
    clean = value if type(value) is str else str(value)
    if not clean.isascii():
        clean = clean[: 2 * length].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return clean[:length].replace("\0", "\ufffd")


def name(value: Any) -> str | None:
    """The name of an end user or a tenant as it is; None for one that would have to be altered."""
    return str.__str__(value) if is_name(value) else None


def document(value: Any, length: int) -> str:
    """As `text`, at most `length` bytes of UTF-8."""
    clean = text(value, length)
    return clean.encode()[:length].decode(errors="ignore")


def integer(value: Any) -> int | None:
    """A signed 64-bit int, or None for anything else; a bool is not a number."""
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return int(value) if _MIN_INTEGER <= value <= _MAX_INTEGER else None


def real(value: Any) -> float | None:
    """A finite float, or None."""
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def money(value: Any) -> Decimal | None:
    """An amount with nine decimals, rounded half to even; None unless finite and below 10**15."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = Decimal(value)
    if not isinstance(value, Decimal) or value.is_nan():
        return None
    try:
        return _MONEY.quantize(value, _NANO) or _ZERO  # databases drop the sign of zero
    except InvalidOperation:
        return None


def timestamp(value: datetime) -> datetime:
    """Aware UTC, truncated to milliseconds (one driver would round up, into the next day); naive means UTC."""
    try:
        utc = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError:
        utc = value.replace(tzinfo=UTC)
    return utc - _WITHIN_A_MILLISECOND[utc.microsecond % 1000]  # ten times as fast as `replace`; nor is it folded


def _converter(column: Column) -> Callable[[Any], Any]:
    match column.kind:
        case Kind.IDENTIFIER:
            return lambda value: identifier(value, column.length)
        case Kind.TEXT | Kind.DOCUMENT:
            convert = text if column.kind is Kind.TEXT else document
            return lambda value: _default(column) if value is None else convert(value, column.length)
        case Kind.NAME:
            return name
        case Kind.INTEGER:
            return lambda value: _default(column) if (number := integer(value)) is None else number
    others: dict[Kind, Callable[[Any], Any]] = {Kind.REAL: real, Kind.MONEY: money, Kind.BOOLEAN: bool}
    return others.get(column.kind, timestamp)


def _default(column: Column) -> Any:
    """What a text or an integer that is unknown is stored as."""
    return None if not column.required else 0 if column.kind is Kind.INTEGER else ""


_TEXTS = (Kind.TEXT, Kind.NAME, Kind.DOCUMENT)


def _row_converter(columns: Columns) -> Callable[[Any], list[Any]]:
    """A function that takes an entry with these columns as attributes, and returns them normalised.

    Nearly all texts and integers are valid as they are, and no function is called for those.
    """
    facts = attrgetter(*(column.name for column in columns))
    plan = [(place, column, _default(column), _converter(column)) for place, column in enumerate(columns)]
    texts = [(n, c.length, default, f) for n, c, default, f in plan if c.kind in _TEXTS]
    integers = [(n, default, f) for n, c, default, f in plan if c.kind is Kind.INTEGER]
    others = [(n, f) for n, c, _, f in plan if c.kind not in (*_TEXTS, Kind.INTEGER)]

    def convert(entry: Any) -> list[Any]:
        row = list(facts(entry))
        for place, length, default, convert_value in texts:
            value = row[place]
            if value is None:
                row[place] = default
            elif type(value) is not str or len(value) > length or not value.isascii() or "\0" in value:
                row[place] = convert_value(value)
        for place, default, convert_value in integers:
            value = row[place]
            if value is None:
                row[place] = default
            elif type(value) is not int or not _MIN_INTEGER <= value <= _MAX_INTEGER:
                row[place] = convert_value(value)
        for place, convert_value in others:
            row[place] = convert_value(row[place])
        return row

    return convert


_NAMES = tuple(column.name for column in COLUMNS)
_SENT_MS = _NAMES.index("sent_ms")
_convert = _row_converter(COLUMNS)
_convert_attempt = _row_converter(ATTEMPT_COLUMNS[1:])


def record(entry: LedgerEntry) -> Record:
    """The row of an entry and those of its attempts, but for an only one that can be derived from the entry's."""
    row = normalise(entry)
    if entry.sent_ms is not None:
        if entry.tries == (derived_attempt(entry),):
            return Record(row)
        row = without_derived(row)
    return Record(row, tuple([normalise_attempt(row[0], attempt) for attempt in entry.tries]))


def without_derived(row: Row) -> Row:
    """The same row, which does not stand for an attempt any more."""
    return (*row[:_SENT_MS], None, *row[_SENT_MS + 1 :])


def derived(row: Row) -> tuple[Row, ...]:
    """The attempt that a normalised row stands for, or nothing."""
    if row[_SENT_MS] is None:
        return ()
    attempt = derived_attempt(LedgerEntry(**dict(zip(_NAMES, row, strict=True))))
    return () if attempt is None else (normalise_attempt(row[0], attempt),)


def normalise(entry: LedgerEntry) -> Row:
    """The normalised row of an entry, in the order of `COLUMNS`."""
    return tuple(_convert(entry))


def normalise_attempt(correlation_id: str, attempt: AttemptEntry) -> Row:
    """The row of an attempt, in the order of `ATTEMPT_COLUMNS`."""
    return (correlation_id, *_convert_attempt(attempt))


def salvage(entry: LedgerEntry, now: datetime) -> Row:
    """The row of an entry that `record` fails on: a column that fails becomes NULL, a required one gets a default."""
    substitutes: dict[Kind, Any] = {Kind.TIMESTAMP: timestamp(now), Kind.BOOLEAN: False, Kind.INTEGER: 0}
    row: list[Any] = []
    for column in COLUMNS:
        try:
            row.append(_converter(column)(getattr(entry, column.name)))
        except Exception:  # noqa: BLE001 - whatever it is, the other columns are fine
            row.append(substitutes.get(column.kind, "?") if column.required else None)
    return without_derived(tuple(row))


def read_timestamp(value: Any) -> datetime:
    """A stored timestamp as aware UTC."""
    result = datetime.fromisoformat(value) if isinstance(value, str) else value
    return result.replace(tzinfo=UTC) if result.tzinfo is None else result.astimezone(UTC)


def _read_money(value: Any) -> Decimal:
    return (value if isinstance(value, Decimal) else Decimal(str(value))).quantize(_NANO, context=_MONEY)


_READERS: dict[Kind, Callable[[Any], Any]] = {
    Kind.TIMESTAMP: read_timestamp,
    Kind.MONEY: _read_money,
    Kind.BOOLEAN: bool,
}


def read_row(row: Sequence[Any], columns: Columns = COLUMNS) -> Row:
    """A stored row as normalised values."""
    return tuple(read(row, columns).values())


def read(row: Sequence[Any], columns: Columns = COLUMNS) -> dict[str, Any]:
    """A stored row as a dict of Python values, equal on every database."""
    result: dict[str, Any] = {}
    for column, value in zip(columns, row, strict=True):
        reader = _READERS.get(column.kind)
        result[column.name] = value if value is None or reader is None else reader(value)
    return result
