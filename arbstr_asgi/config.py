"""What an operator decides, as frozen values.

Build a `Config` in code, from a mapping with `parse`, or from a TOML file with `Config.load`. All three check the
same things and raise `ConfigError` with the path of what is wrong.
"""

import functools
import math
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, Self, get_type_hints
from urllib.parse import quote

import msgspec

from arbstr_asgi.checks import HEADER, OURS, header_names, http_url, printable, rate, strings
from arbstr_asgi.errors import ConfigError

RATES = ("input_rate", "output_rate", "base_fee", "cached_input_rate", "reasoning_rate")
_SECRET = frozenset({"api_key", "auth_token", "token", "headers", "query", "url"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.-]{0,63}")
_VARIABLE = re.compile(r"\$\{([^}]*)\}")


@functools.cache
def _kinds(section: type) -> dict[str, Any]:
    return get_type_hints(section)


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen part of the configuration whose repr shows no secret."""

    def __repr__(self) -> str:
        shown = (
            f"{name}={'***' if name in _SECRET and getattr(self, name) else repr(getattr(self, name))}"
            for name in self.__struct_fields__
        )
        return f"{type(self).__name__}({', '.join(shown)})"

    def __post_init__(self) -> None:
        """Check what was built in code as what comes from a file is checked."""
        for name, kind in _kinds(type(self)).items():
            try:
                msgspec.convert(getattr(self, name), kind)
            except msgspec.ValidationError as error:
                raise ConfigError(f"{name}: {str(error).partition(' - at ')[0]}") from None

    def _set(self, name: str, value: Any) -> None:
        msgspec.structs.force_setattr(self, name, value)

    def _require_positive(self, *names: str) -> None:
        for name in names:
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: must be a finite number greater than 0")


class Provider(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Somebody who answers chat completions below `url`, and what they charge.

    Rates are sats per 1,000,000 tokens, `base_fee` is sats per request; a rate of None makes the cost unknown, 0 is
    free. `cached_input_rate` and `reasoning_rate` replace the rate for their share of the tokens. An empty `models`
    serves every model. Time-outs are seconds. `inject=False` leaves `stream_options` to the client.
    """

    name: str
    url: str
    api_key: str | None = None
    models: Sequence[str] = ()
    input_rate: Decimal | int | None = None
    output_rate: Decimal | int | None = None
    base_fee: Decimal | int = 0
    cached_input_rate: Decimal | int | None = None
    reasoning_rate: Decimal | int | None = None
    inject: bool = True
    disconnect: Literal["drain", "cancel"] = "drain"
    connect_timeout: float = 10.0
    first_byte_timeout: float = 600.0
    idle_timeout: float = 300.0
    headers: dict[str, str] = {}
    query: dict[str, str] = {}
    forward_headers: Sequence[str] = ()
    return_headers: Sequence[str] = ()
    forward_authorization: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _NAME.fullmatch(self.name):
            raise ConfigError("name: use letters, digits, space, '_', '.' and '-', at most 64")
        self._set("url", http_url(self.url))
        self._set("models", strings("models", self.models))
        for name in RATES:
            self._set(name, rate(name, getattr(self, name)))
        for name in ("forward_headers", "return_headers"):
            self._set(name, header_names(name, getattr(self, name)))
        for name, value in self.headers.items():
            if not HEADER.fullmatch(name) or not printable(value) or name.lower() in OURS:
                raise ConfigError(f"headers.{name if printable(name) else '?'}: not a header that can be set")
        if self.api_key is not None and not (self.api_key and printable(self.api_key)):
            raise ConfigError("api_key: must be a non-empty string of printable ASCII characters")
        self._require_positive("connect_timeout", "first_byte_timeout", "idle_timeout")

    def sends_own_credentials(self, *, client_authorizes: bool) -> bool:
        """Whether a 401 from this provider is about something of ours rather than of the client's."""
        if self.forward_authorization and client_authorizes:
            return False
        return bool(self.api_key or self.headers or self.query)

    def serves(self, model: str) -> bool:
        """Whether `model` may be asked of this provider."""
        return not self.models or model in self.models


class Token(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A bearer token that makes its holder the end user `name`."""

    name: str
    token: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name or not self.token:
            raise ConfigError("token: name and token must not be empty")


class Server(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may call and, for `arbstr serve`, where it listens and how long running streams get at shutdown (seconds)."""

    listen: str = "127.0.0.1:8080"
    auth_token: str | None = None
    tokens: Sequence[Token] = ()
    public: bool = False
    workers: int = 1
    grace: float = 25.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("tokens", tuple(self.tokens))
        if self.auth_token is not None and not self.auth_token:
            raise ConfigError("auth_token: must not be empty; leave it out for none")
        names = [token.name for token in self.tokens]
        if len(set(names)) < len(names):
            raise ConfigError("tokens: two have the same name")
        secrets = [self.auth_token, *(token.token for token in self.tokens)]
        if len(set(secrets)) < len(secrets):
            raise ConfigError("tokens: two have the same token, so that it would not say who calls")
        if self.workers < 1:
            raise ConfigError("workers: must be at least 1")
        if not self.grace >= 0:
            raise ConfigError("grace: must not be negative")


class DatabaseConfig(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the ledger is: a SQLAlchemy-style `url`, or `path` as the short form for an SQLite file."""

    url: str | None = None
    path: str | None = None
    table_prefix: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.url and self.path:
            raise ConfigError("path: give url or path, not both")

    @property
    def resolved_url(self) -> str:
        """The URL to open; without any setting an SQLite file in the working directory."""
        return self.url or f"sqlite+aiosqlite:///{quote(self.path or 'arbstr.db')}"


class Limits(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds on what clients can make us hold: bytes, seconds, and provider streams read on after a hang-up."""

    max_body_bytes: int = 32 * 1024 * 1024
    max_body_bytes_in_flight: int = 256 * 1024 * 1024
    body_timeout: float = 30.0
    drain_timeout: float = 30.0
    max_drains: int = 64
    max_drains_per_user: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("max_body_bytes", "max_body_bytes_in_flight", "body_timeout", "drain_timeout")
        for name in ("max_drains", "max_drains_per_user"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: must not be negative")


class Config(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration.

    `metering="require"` overrides a client's `include_usage: false`; `"respect"` lets it opt out of being counted.
    `response_headers="full"` adds cost and latency headers to plain replies, which then wait for their body.
    `cost_comment=True` puts an SSE comment with the cost before `[DONE]`.
    """

    providers: Sequence[Provider]
    server: Server = Server()
    database: DatabaseConfig = DatabaseConfig()
    limits: Limits = Limits()
    metering: Literal["respect", "require"] = "respect"
    response_headers: Literal["basic", "full"] = "basic"
    cost_comment: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("providers", tuple(self.providers))
        if not self.providers:
            raise ConfigError("providers: at least one is needed")
        seen: set[str] = set()
        for index, provider in enumerate(self.providers):
            if provider.name in seen:
                raise ConfigError(f"providers[{index}].name: {provider.name!r} is used twice")
            seen.add(provider.name)
            if provider.forward_authorization and (self.server.auth_token or self.server.tokens):
                raise ConfigError(
                    f"providers[{index}].forward_authorization: clients' Authorization holds the server's own token, "
                    "which must not reach a provider; use one or the other"
                )
            if self.metering == "require" and not provider.inject:
                raise ConfigError(f"providers[{index}].inject: must be true where metering is required")

    @classmethod
    def load(cls, path: str | os.PathLike[str], environ: Mapping[str, str] | None = None) -> Self:
        """Read a TOML file. `environ` (default: the process's) fills in ${VARIABLES} and provider keys."""
        try:
            mapping = tomllib.loads(Path(path).read_text("utf-8"), parse_float=Decimal)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or 'cannot be read'}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not valid TOML: {error}") from None
        return cls.parse(mapping, os.environ if environ is None else environ)

    @classmethod
    def parse(cls, mapping: Mapping[str, Any], environ: Mapping[str, str]) -> Self:
        """Check `mapping`, with `${NAME}` filled in from `environ`.

        A provider without `api_key` takes `ARBSTR_<NAME>_API_KEY`, its name in capitals with `_` for everything else.
        """
        filled = _expand(mapping, environ, "")
        for provider in _dicts(filled.get("providers")):
            variable = f"ARBSTR_{re.sub('[^A-Z0-9]', '_', str(provider.get('name', '')).upper())}_API_KEY"
            if "api_key" not in provider and environ.get(variable):
                provider["api_key"] = environ[variable]
        try:
            return msgspec.convert(filled, cls)
        except msgspec.ValidationError as error:
            raise ConfigError(_with_path(str(error))) from None


def _dicts(value: object) -> Iterable[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _expand(value: Any, environ: Mapping[str, str], path: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _expand(item, environ, f"{path}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_expand(item, environ, f"{path}[{index}]") for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def look_up(match: re.Match[str]) -> str:
        name = match.group(1)
        if not environ.get(name):
            raise ConfigError(f"{path}: environment variable {name or '(no name)'} is not set")
        return environ[name]

    return _VARIABLE.sub(look_up, value)


def _with_path(message: str) -> str:
    """msgspec's "<what> - at `$.<path>`" as "<path>: <what>"; a path inside <what> continues the outer one."""
    what, found, where = message.rpartition(" - at `$")
    if not found:
        return message
    path = where.rstrip("`").lstrip(".").replace("[...]", "")
    inner, separator, rest = what.partition(": ")
    if separator and re.fullmatch(r"[a-z_]+(\[\d+\])?(\.[A-Za-z_?-]+)*", inner):
        return f"{path}.{inner}: {rest}".lstrip(".")
    return f"{path}: {what}"
