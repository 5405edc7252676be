"""Values of rows as JSON has them: amounts exact, moments in UTC."""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Context, Decimal
from typing import Any

_EXACT = Context(prec=200)


def record(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with all its columns as they are called in the table."""
    return {name: to_json_value(value) for name, value in row.items()}


def to_json_value(value: Any) -> Any:
    """One value; what JSON has itself stays as it is."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return plain(value) if isinstance(value, Decimal) else value


def plain(amount: Decimal) -> Decimal:
    """The same amount without zeros at its end."""
    shortest = amount.normalize(_EXACT)
    _, _, exponent = shortest.as_tuple()
    return shortest.quantize(Decimal(1), context=_EXACT) if isinstance(exponent, int) and exponent > 0 else shortest
