"""Configuration of a provider: connection, models, rates."""

import re
from collections.abc import Sequence
from copy import copy
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from typing import Literal, Self

import msgspec

from arbstr_asgi.config import validation
from arbstr_asgi.config.api_keys import ApiKey, check_api_key
from arbstr_asgi.config.section import ConfigSection
from arbstr_asgi.config.validation import rate
from arbstr_asgi.errors import ConfigError

RATES = ("input_rate", "output_rate", "base_fee", "cached_input_rate", "reasoning_rate")
_EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.-]{0,63}")


def in_usd(name: str) -> str:
    """The name of the setting for this rate in USD."""
    return f"{name}_usd"


class Charges(ConfigSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rates, each in sats or, with the suffix `_usd`, in USD; not both."""

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
        """The rates given in USD, by the name of the rate in sats."""
        return {name: usd for name in RATES if (usd := getattr(self, in_usd(name))) is not None}

    def in_sats(self, sats_per_usd: Decimal | None) -> Self:
        """A copy with the USD rates converted to sats, exactly. Raises ConfigError without an exchange rate."""
        if not self.usd:
            return self
        converted = copy(self)
        for name, usd in self.usd.items():
            if sats_per_usd is None:
                raise ConfigError(f"{in_usd(name)}: needs sats_per_usd, at the top of the configuration")
            converted._set(name, _EXACT.multiply(usd, sats_per_usd))
        return converted


class Rates(Charges, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rates for one model of a provider; a rate that is not set is that of the provider.

    Sats per 1,000,000 tokens; `base_fee` is sats per request. With the suffix `_usd` in USD, at `Config.sats_per_usd`.
    """


class Drain(ConfigSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits for reading replies to their end, for the usage, after the client has disconnected.

    At most `drain` seconds each, `at_once` at a time, `per_end_user` of them for one end user; beyond that replies are
    cancelled.
    """

    drain: float = 30.0
    at_once: int = 64
    per_end_user: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("drain")
        self._require_not_negative("at_once", "per_end_user")


Disconnect = Drain | Literal["drain", "cancel"]


class Provider(Charges, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A provider of chat completions below `url`, and its rates.

    Rates are sats per 1,000,000 tokens, `base_fee` is sats per request; a rate of None makes the cost unknown, 0 is
    free. Rates with the suffix `_usd` are in USD; a `Config` converts them to sats. `cached_input_rate` and
    `reasoning_rate` replace the rate for that part of the tokens; `model_rates` has the rates of single models. An
    empty `models` serves every model; `aliases` map model names to those of the provider. Timeouts are in seconds.
    `inject=False` never adds `stream_options`. `disconnect` decides what happens to a reply whose client has
    disconnected: "drain" is `Drain()`, "cancel" closes it at once. With `retry_sent` a request that was sent and not
    answered may go to another provider, although this one may bill it. `tier` is a label for the row.

    The key is `api_key` (in code also a function, sync or async, called for each request) or the first line of
    `api_key_file`, read again when the file changes. It is sent as `Bearer <key>`, or alone in another `auth_header`.
    `proxy` is an HTTP proxy, `ca_file` replaces the trusted certificate authorities, and at most `max_connections`
    requests are open at a time; others wait for `connect_timeout`.
    """

    name: str
    url: str
    api_key: ApiKey = None
    api_key_file: str | None = None
    auth_header: str = "authorization"
    models: Sequence[str] = ()
    base_fee: Decimal | int = 0
    model_rates: dict[str, Rates] = msgspec.field(default_factory=dict)
    aliases: dict[str, str] = msgspec.field(default_factory=dict)
    tier: Literal["local", "standard", "frontier"] | None = None
    inject: bool = True
    disconnect: Disconnect = "drain"
    retry_sent: bool = False
    proxy: str | None = None
    ca_file: str | None = None
    max_connections: int | None = None
    connect_timeout: float = 10.0
    first_byte_timeout: float = 600.0
    idle_timeout: float = 300.0
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    query: dict[str, str] = msgspec.field(default_factory=dict)
    forward_headers: Sequence[str] = ()
    return_headers: Sequence[str] = ()
    forward_authorization: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _NAME.fullmatch(self.name):
            raise ConfigError("name: use letters, digits, space, '_', '.' and '-', at most 64")
        self._set("url", validation.http_url(self.url))
        self._set("models", validation.strings("models", self.models))
        given = msgspec.convert(self.model_rates, dict[str, Rates])
        self._set("model_rates", {model: self._with_defaults(rates) for model, rates in given.items()})
        for name in ("forward_headers", "return_headers"):
            self._set(name, validation.header_names(name, getattr(self, name)))
        self._set("disconnect", msgspec.convert(self.disconnect, Disconnect))  # a mapping passes the check, too
        validation.check_headers(self.headers)
        check_api_key(self.api_key, self.api_key_file)
        self._set("auth_header", validation.auth_header(self.auth_header))
        self._check_connection()
        self._require_positive("connect_timeout", "first_byte_timeout", "idle_timeout")

    def _check_connection(self) -> None:
        if self.proxy is not None:
            validation.check_proxy_url(self.proxy)
        if self.ca_file is not None and not self.ca_file:
            raise ConfigError("ca_file: must name a file")
        if self.max_connections is not None:
            self._require_positive("max_connections")

    @property
    def has_key(self) -> bool:
        """Whether a key is configured."""
        return self.api_key is not None or self.api_key_file is not None

    @property
    def drain(self) -> Drain | None:
        """The limits for draining replies of disconnected clients; None: cancel them."""
        if isinstance(self.disconnect, Drain):
            return self.disconnect
        return Drain() if self.disconnect == "drain" else None

    def sends_own_credentials(self, *, client_authorizes: bool) -> bool:
        """Whether a 401 of this provider is about our credentials rather than the client's."""
        if self.forward_authorization and client_authorizes:
            return False
        return bool(self.has_key or self.headers or self.query)

    def serves(self, model: str) -> bool:
        """Whether this provider serves `model`."""
        return not self.models or model in self.models or model in self.aliases

    def rates(self, *models: str | None) -> "Rates | Provider":
        """The rates of the first of these models that has its own, else the provider's."""
        for model in models:
            if model in self.model_rates:
                return self.model_rates[model]
        return self

    def in_sats(self, sats_per_usd: Decimal | None) -> Self:
        """As `Charges.in_sats`, for the rates of single models too."""
        rates: dict[str, Rates] = {}
        for model, own in self.model_rates.items():
            try:
                rates[model] = own.in_sats(sats_per_usd)
            except ConfigError as error:
                raise ConfigError(f"model_rates.{model}.{error.message}") from None
        converted = super().in_sats(sats_per_usd)
        if all(rates[model] is own for model, own in self.model_rates.items()):
            return converted
        converted = copy(converted)
        converted._set("model_rates", rates)
        return converted

    def _with_defaults(self, rates: Rates) -> Rates:
        given: dict[str, Decimal | int | None] = {}
        for name in RATES:
            pair = (name, in_usd(name))
            source = self if all(getattr(rates, field) is None for field in pair) else rates
            given.update({field: getattr(source, field) for field in pair})
        return Rates(**given)
