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
KEEPALIVE_TIMEOUT = 4.0  # seconds; uvicorn, and so many model servers, closes idle connections after 5
_EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.-]{0,63}")


def in_usd(name: str) -> str:
    """The name of the setting for this rate in USD."""
    return f"{name}_usd"


class Charges(ConfigSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rates, each in sats or, with the suffix `_usd`, in USD, which a `Config` converts to sats; not both.

    A rate of None makes the cost unknown, 0 is free.
    """

    input_rate: Decimal | int | None = None
    """The price of input tokens. Unit: sats per 1,000,000 tokens."""
    output_rate: Decimal | int | None = None
    """The price of output tokens. Unit: sats per 1,000,000 tokens."""
    base_fee: Decimal | int | None = None
    """The price of a request beside its tokens. Unit: sats per request."""
    cached_input_rate: Decimal | int | None = None
    """Replaces `input_rate` for cached tokens. Unit: sats per 1,000,000 tokens."""
    reasoning_rate: Decimal | int | None = None
    """Replaces `output_rate` for reasoning tokens. Unit: sats per 1,000,000 tokens."""
    input_rate_usd: Decimal | int | None = None
    """`input_rate` in USD; one of the two. Unit: USD per 1,000,000 tokens."""
    output_rate_usd: Decimal | int | None = None
    """`output_rate` in USD; one of the two. Unit: USD per 1,000,000 tokens."""
    base_fee_usd: Decimal | int | None = None
    """`base_fee` in USD; one of the two. Unit: USD per request."""
    cached_input_rate_usd: Decimal | int | None = None
    """`cached_input_rate` in USD; one of the two. Unit: USD per 1,000,000 tokens."""
    reasoning_rate_usd: Decimal | int | None = None
    """`reasoning_rate` in USD; one of the two. Unit: USD per 1,000,000 tokens."""

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
    """Rates for one model of a provider; a rate that is not set is that of the provider."""


class Drain(ConfigSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits for reading replies to their end, for the usage, after the client has disconnected.

    Beyond them replies are cancelled.
    """

    drain: float = 30.0
    """How long one reply is read on. Unit: seconds."""
    at_once: int = 64
    """How many replies are read on at a time; others are cancelled. Unit: replies."""
    per_end_user: int = 4
    """How many of them for one end user. Unit: replies."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("drain")
        self._require_not_negative("at_once", "per_end_user")


Disconnect = Drain | Literal["drain", "cancel"]


class Provider(Charges, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A provider of chat completions: where it is, what it serves, and what it charges."""

    name: str
    """What rows, headers and metrics call it: letters, digits, space, `_`, `.` and `-`, at most 64."""
    url: str
    """The base URL, up to and without `/chat/completions`."""
    api_key: ApiKey = None
    """The key; in code also a function, sync or async, that is called for each request."""
    api_key_file: str | None = None
    """A file with the key on its first line, read again when it changes; instead of `api_key`."""
    auth_header: str = "authorization"
    """The header that carries the key: `authorization` as `Bearer <key>`, any other the bare key."""
    models: Sequence[str] = ()
    """The models that it serves; none listed: every model."""
    base_fee: Decimal | int = 0
    """The price of a request beside its tokens. Unit: sats per request."""
    model_rates: dict[str, Rates] = msgspec.field(default_factory=dict)
    """Rates of single models, by name."""
    aliases: dict[str, str] = msgspec.field(default_factory=dict)
    """Models by the names they are asked by here, and what they are called there."""
    tier: Literal["local", "standard", "frontier"] | None = None
    """A label for the row."""
    inject: bool = True
    """Whether streams may be asked for their usage by `stream_options`; False never adds it."""
    disconnect: Disconnect = "drain"
    """What happens to a reply whose client has left: `"drain"` is `Drain()`, `"cancel"` closes it at once."""
    retry_sent: bool = False
    """Whether a request that was sent and not answered may go to another provider, although this one may bill it."""
    proxy: str | None = None
    """An HTTP proxy for this provider."""
    ca_file: str | None = None
    """A PEM file of certificate authorities that are trusted instead of the public ones."""
    max_connections: int | None = None
    """How many requests each process may have open; others wait for `connect_timeout`. Unit: requests."""
    keepalive_timeout: float = KEEPALIVE_TIMEOUT
    """How long an idle connection is kept (0: not at all); less than the provider keeps it. Unit: seconds."""
    connect_timeout: float = 10.0
    """How long connecting may take. Unit: seconds."""
    first_byte_timeout: float = 600.0
    """How long the answer may take to begin. Unit: seconds."""
    idle_timeout: float = 300.0
    """How long a reply may pause. Unit: seconds."""
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    """Headers that each request to it gets."""
    query: dict[str, str] = msgspec.field(default_factory=dict)
    """Parameters that each request to it gets in its URL."""
    forward_headers: Sequence[str] = ()
    """Headers of clients that pass to it, beside those of the allow-list."""
    return_headers: Sequence[str] = ()
    """Headers of its replies that pass to clients, beside those of the allow-list."""
    forward_authorization: bool = False
    """Whether clients' own `Authorization` passes to it."""

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
        self._require_not_negative("keepalive_timeout")

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
