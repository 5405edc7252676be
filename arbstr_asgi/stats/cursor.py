"""Where a page ended, so that the next one can begin behind it."""

import base64
import binascii
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

import msgspec

_LONGEST = 200
_MONEY_LIMIT = Decimal(10) ** 15
_FINEST = -9  # money has so many decimals
_BIGGEST = 2**63


class Cursor(NamedTuple):
    """The value of the sorted column, and the number of the row."""

    value: Any
    id: int

    def encode(self) -> str:
        """As text that is safe in a URL."""
        kind, value = _written(self.value)
        return base64.urlsafe_b64encode(msgspec.json.encode((kind, value, self.id))).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> "Cursor":
        """What `encode` wrote. Raises ValueError for anything else."""
        if not text.isascii() or len(text) > _LONGEST:
            raise ValueError("not a cursor")
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            kind, value, number = msgspec.json.decode(raw, type=tuple[str, str, int])
            found = cls(_read(kind, value), number)
        except (ValueError, binascii.Error, msgspec.DecodeError, InvalidOperation, OverflowError):
            raise ValueError("not a cursor") from None
        if not 0 <= number < _BIGGEST or found.encode() != text:
            raise ValueError("not a cursor")
        return found

    def fits(self, sort: str) -> bool:
        """Whether it can be of a page sorted by this column."""
        kinds = {"timestamp": datetime, "cost_sats": Decimal, "latency_ms": int}
        if self.value is None:
            return sort != "timestamp"
        return isinstance(self.value, kinds[sort]) and not isinstance(self.value, bool)


def _written(value: Any) -> tuple[str, str]:
    if value is None:
        return "n", ""
    if isinstance(value, datetime):
        return "t", value.astimezone(UTC).isoformat(timespec="milliseconds")
    return ("m", f"{value:f}") if isinstance(value, Decimal) else ("i", str(value))


def _read(kind: str, value: str) -> Any:
    match kind:
        case "n":
            return None
        case "t":
            moment = datetime.fromisoformat(value)
            if moment.utcoffset() is None:
                raise ValueError
            return moment.astimezone(UTC)
        case "m":
            amount = Decimal(value)
            if not amount.is_finite() or abs(amount) >= _MONEY_LIMIT:
                raise ValueError
            exponent = amount.as_tuple().exponent
            if not isinstance(exponent, int) or not _FINEST <= exponent <= 0:  # to write it out takes so many digits
                raise ValueError
            return amount
        case "i":
            number = int(value)
            if not -_BIGGEST <= number < _BIGGEST:
                raise ValueError
            return number
    raise ValueError
