"""Values for the ledger: made fit for every database once, before any driver sees them; and read back.

Each driver bites differently (a NUL, a lone surrogate, an over-long text, an offset, NaN). What comes out of here is
taken by all three and means the same in each.
"""

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation
from typing import Any, NamedTuple

from arbstr_asgi.entry import Attempt, Entry
from arbstr_asgi.ledger.columns import ATTEMPT_COLUMNS, COLUMNS, Column, Columns, Kind

Row = tuple[Any, ...]


class Record(NamedTuple):
    """One state of a call as it is stored: its row, and one for each of its attempts."""

    row: Row
    attempts: tuple[Row, ...] = ()

    @property
    def correlation_id(self) -> str:
        """Which call it is."""
        return str(self.row[0])


_NANO = Decimal("1e-9")
_MONEY_LIMIT = Decimal(10) ** 15  # NUMERIC(24,9) leaves 15 digits in front of the point
_MONEY = Context(prec=40, rounding=ROUND_HALF_EVEN)  # our own: the host may have changed the thread's


def identifier(value: Any, length: int = 36) -> str:
    """A correlation id as it is stored: printable ASCII, anything else becomes `?`."""
    text = str(value)
    if not (text.isascii() and text.isprintable()):
        text = "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
    return text[:length]


def text(value: Any, length: int) -> str:
    """Without NUL and lone surrogates (they become U+FFFD), at most `length` characters."""
    clean = value if type(value) is str else str(value)
    if not clean.isascii():
        clean = clean[: 2 * length].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return clean[:length].replace("\0", "\ufffd")


def document(value: Any, length: int) -> str:
    """The same, at most `length` bytes of UTF-8."""
    clean = text(value, length)
    return clean.encode()[:length].decode(errors="ignore")


def integer(value: Any) -> int | None:
    """An int of 64 bits, or None; a bool is not a number."""
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return int(value) if -(2**63) <= value < 2**63 else None


def real(value: Any) -> float | None:
    """A finite float, or None."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def money(value: Any) -> Decimal | None:
    """Nine decimals, the even neighbour at a tie; None when it isn't a finite amount below 10**15."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = Decimal(value)
    if not isinstance(value, Decimal) or not value.is_finite() or value.adjusted() >= 15:
        return None
    try:
        amount = value.quantize(_NANO, context=_MONEY)
    except InvalidOperation:
        return None
    if not amount:
        return amount.copy_abs()  # no database keeps the sign of a zero
    return amount if amount.copy_abs() < _MONEY_LIMIT else None


def moment(value: datetime) -> datetime:
    """Aware UTC, cut to milliseconds (one driver would round up, into the next day); naive means UTC."""
    try:
        utc = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError:
        utc = value.replace(tzinfo=UTC)
    return utc.replace(microsecond=utc.microsecond // 1000 * 1000, fold=0)


def _optional(convert: Callable[..., Any], *arguments: Any) -> Callable[[Any], Any]:
    return lambda value: None if value is None else convert(value, *arguments)


def _converter(column: Column) -> Callable[[Any], Any]:
    match column.kind:
        case Kind.IDENTIFIER:
            return lambda value: identifier(value, column.length)
        case Kind.TEXT:
            convert = _optional(text, column.length)
        case Kind.DOCUMENT:
            convert = _optional(document, column.length)
        case Kind.INTEGER:
            convert = integer
        case Kind.REAL:
            convert = real
        case Kind.MONEY:
            convert = money
        case Kind.FLAG:
            return bool
        case Kind.MOMENT:
            return moment
    if not column.required:
        return convert
    return lambda value: (0 if column.kind is Kind.INTEGER else "") if (v := convert(value)) is None else v


_CONVERTERS = tuple((column.name, _converter(column)) for column in COLUMNS)
_OF_ATTEMPTS = tuple((column.name, _converter(column)) for column in ATTEMPT_COLUMNS[1:])


def normalise(entry: Entry) -> Row:
    """The row of an entry, in the order of `COLUMNS`, in Python values that fit every database."""
    return tuple([convert(getattr(entry, name)) for name, convert in _CONVERTERS])


def normalise_attempt(correlation_id: str, attempt: Attempt) -> Row:
    """The row of an attempt, in the order of `ATTEMPT_COLUMNS`."""
    return (correlation_id, *[convert(getattr(attempt, name)) for name, convert in _OF_ATTEMPTS])


def record(entry: Entry) -> Record:
    """The row of an entry and those of its attempts."""
    row = normalise(entry)
    return Record(row, tuple([normalise_attempt(row[0], attempt) for attempt in entry.tries]))


def salvage(entry: Entry, now: datetime) -> Row:
    """The row of an entry that can't be normalised: what of it can be, with `now` for an arrival that is none."""
    substitutes: dict[Kind, Any] = {Kind.MOMENT: moment(now), Kind.FLAG: False, Kind.INTEGER: 0}
    row: list[Any] = []
    for column, (name, convert) in zip(COLUMNS, _CONVERTERS, strict=True):
        try:
            row.append(convert(getattr(entry, name)))
        except Exception:  # noqa: BLE001 - whatever it is, the other columns are fine
            row.append(substitutes.get(column.kind, "?") if column.required else None)
    return tuple(row)


def read_moment(value: Any) -> datetime:
    """A stored moment as aware UTC."""
    found = datetime.fromisoformat(value) if isinstance(value, str) else value
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def _read_money(value: Any) -> Decimal:
    return (value if isinstance(value, Decimal) else Decimal(str(value))).quantize(_NANO, context=_MONEY)


_READERS: dict[Kind, Callable[[Any], Any]] = {Kind.MOMENT: read_moment, Kind.MONEY: _read_money, Kind.FLAG: bool}


def read_row(row: Sequence[Any], columns: Columns = COLUMNS) -> Row:
    """A stored row as it was normalised."""
    return tuple(read(row, columns).values())


def read(row: Sequence[Any], columns: Columns = COLUMNS) -> dict[str, Any]:
    """A stored row in Python values, equal on every database."""
    found: dict[str, Any] = {}
    for column, value in zip(columns, row, strict=True):
        reader = _READERS.get(column.kind)
        found[column.name] = value if value is None or reader is None else reader(value)
    return found
