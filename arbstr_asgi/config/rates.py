"""What a provider charges."""

from copy import copy
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from typing import Self

from arbstr_asgi.config.checks import rate
from arbstr_asgi.config.section import ConfigSection
from arbstr_asgi.errors import ConfigError

RATES = ("input_rate", "output_rate", "base_fee", "cached_input_rate", "reasoning_rate")
_EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)


def in_usd(name: str) -> str:
    """The name under which the rate `name` is given in USD."""
    return f"{name}_usd"


class Charges(ConfigSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rates, each in sats or, under a name that ends in `_usd`, in USD; never both."""

    input_rate: Decimal | int | None = None
    output_rate: Decimal | int | None = None
    base_fee: Decimal | int | None = None
    cached_input_rate: Decimal | int | None = None
    reasoning_rate: Decimal | int | None = None
    input_rate_usd: Decimal | int | None = None
    output_rate_usd: Decimal | int | None = None
    base_fee_usd: Decimal | int | None = None
    cached_input_rate_usd: Decimal | int | None = None
    reasoning_rate_usd: Decimal | int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in RATES:
            usd = in_usd(name)
            for field in (name, usd):
                value = getattr(self, field)
                self._set(field, None if value is None else rate(field, value))
            given = getattr(self, name) or None if name == "base_fee" else getattr(self, name)
            if given is not None and getattr(self, usd) is not None:
                raise ConfigError(f"{usd}: give {name} or {usd}, not both")

    @property
    def usd(self) -> dict[str, Decimal]:
        """What is given in USD, by the name of the rate in sats."""
        return {name: usd for name in RATES if (usd := getattr(self, in_usd(name))) is not None}

    def in_sats(self, sats_per_usd: Decimal | None) -> Self:
        """The same, where what is given in USD is there in sats too, exactly. Raises ConfigError without a price."""
        if not self.usd:
            return self
        known = copy(self)
        for name, usd in self.usd.items():
            if sats_per_usd is None:
                raise ConfigError(f"{in_usd(name)}: needs sats_per_usd, at the top of the configuration")
            known._set(name, _EXACT.multiply(usd, sats_per_usd))
        return known


class Rates(Charges, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rates for one model of a provider; what is not given is the provider's own.

    Sats per 1,000,000 tokens; `base_fee` is sats per request. The same with `_usd` is USD, at `Config.sats_per_usd`.
    """
