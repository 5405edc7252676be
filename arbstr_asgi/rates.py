"""What a provider charges."""

from decimal import Decimal

from arbstr_asgi.checks import rate
from arbstr_asgi.section import Section

RATES = ("input_rate", "output_rate", "base_fee", "cached_input_rate", "reasoning_rate")


class Rates(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rates for one model of a provider; what is not given is the provider's own.

    Sats per 1,000,000 tokens; `base_fee` is sats per request.
    """

    input_rate: Decimal | int | None = None
    output_rate: Decimal | int | None = None
    base_fee: Decimal | int | None = None
    cached_input_rate: Decimal | int | None = None
    reasoning_rate: Decimal | int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in RATES:
            value = getattr(self, name)
            self._set(name, None if value is None else rate(name, value))
