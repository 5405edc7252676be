"""Configuration of the server, tokens, database, limits, failover and logging."""

import logging
import re
from collections.abc import Sequence
from typing import Literal
from urllib.parse import quote

from arbstr_asgi._utils import MAX_NAME_CHARACTERS, is_name
from arbstr_asgi.config.section import ConfigSection
from arbstr_asgi.config.validation import origin, strings
from arbstr_asgi.errors import ConfigError

_LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


_AROUND_HEADERS = b" \t"  # what does not belong to a header's value
_HEADER_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]+")
LONGEST_RETENTION = 36_500  # days


def token_bytes(token: str) -> bytes:
    """A bearer token as it comes in a header: UTF-8, or the bytes of an environment variable that are none.

    Raises ConfigError for one that no request can bring.
    """
    try:
        sent = token.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ConfigError("token: must not have a lone surrogate") from None
    if sent != sent.strip(_AROUND_HEADERS) or not _HEADER_VALUE.fullmatch(sent):
        raise ConfigError(
            "token: no request can bring one that is empty, begins or ends with a space, a tab or a line end, or has a "
            "control character"
        )
    return sent


class Token(ConfigSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A bearer token and whom it stands for."""

    name: str
    """The end user that the token stands for."""
    token: str
    """The token that clients send as `Authorization: Bearer …`."""
    operator: bool = False
    """Whether it may ask the ledger about all end users."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name or not self.token:
            raise ConfigError("token: name and token must not be empty")
        token_bytes(self.token)
        if not is_name(self.name):
            message = f"name: at most {MAX_NAME_CHARACTERS} characters, no NUL and no lone surrogate"
            raise ConfigError(f"{message}; names are never cut, since they are who may read what")


class Server(ConfigSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may call, from which web pages, and the process of `arbstr serve`."""

    listen: str | Sequence[str] = "127.0.0.1:8080"
    """The address and port of `arbstr serve`, or several of them."""
    auth_token: str | None = None
    """A bearer token that guards the endpoints and names no end user."""
    tokens: Sequence[Token] = ()
    """Bearer tokens that each name an end user."""
    public: bool = False
    """Says that everybody may call, which ends the warning that nobody guards the server."""
    workers: int = 1
    """How many processes `arbstr serve` runs."""
    grace: float = 25.0
    """How long running streams may go on at shutdown. Unit: seconds."""
    keep_alive: float = 75.0
    """How long `arbstr serve` keeps an idle connection of a client. Unit: seconds."""
    cors_origins: Sequence[str] = ()
    """Origins whose pages may call the sub-app and `arbstr serve` from a browser; `*` is any."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("tokens", tuple(self.tokens))
        self._set("cors_origins", tuple(origin(each) for each in strings("cors_origins", self.cors_origins)))
        if not isinstance(self.listen, str):
            self._set("listen", tuple(self.listen))
        if not self.addresses or len(set(self.addresses)) < len(self.addresses):
            raise ConfigError("listen: must be one host:port, or several that differ")
        if self.auth_token is not None and not self.auth_token:
            raise ConfigError("auth_token: must not be empty; leave it out for none")
        if self.auth_token is not None:
            try:
                token_bytes(self.auth_token)
            except ConfigError as error:
                raise ConfigError(f"auth_{error.message}") from None
        names = [token.name for token in self.tokens]
        if len(set(names)) < len(names):
            raise ConfigError("tokens: two have the same name")
        given = [self.auth_token, *(token.token for token in self.tokens)]
        secrets = [token_bytes(token) for token in given if token is not None]
        if len(set(secrets)) < len(secrets):
            raise ConfigError("tokens: two have the same token, so that it would not say who calls")
        if self.workers < 1:
            raise ConfigError("workers: must be at least 1")
        self._require_not_negative("grace")
        self._require_positive("keep_alive")

    @property
    def addresses(self) -> tuple[str, ...]:
        """`listen` as a tuple."""
        return (self.listen,) if isinstance(self.listen, str) else tuple(self.listen)


class DatabaseConfig(ConfigSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The database of the ledger, and what happens when it fails."""

    url: str | None = None
    """The database, as `postgresql+asyncpg://user:password@host/name`; without `url` and `path`: `arbstr.db`."""
    path: str | None = None
    """An SQLite file: short for `url`; not both."""
    table_prefix: str | None = None
    """What names of our tables begin with; None: `arbstr_` in a handed-over database, nothing elsewhere."""
    spill: str | None = None
    """The folder for rows that the database does not accept in time."""
    durability: Literal["relaxed", "strict"] = "relaxed"
    """`"strict"` completes a response only when its row is on disk."""
    on_full: Literal["serve", "refuse"] = "serve"
    """When database and spill fail and the queue is full, `"serve"` loses rows and `"refuse"` refuses calls."""
    max_queued: int = 100_000
    """How many entries may wait in memory. Unit: entries."""
    max_queued_bytes: int = 128 * 1024 * 1024
    """About how much memory they may take. Unit: bytes."""
    retention_days: float | None = None
    """Older rows are deleted, their figures by hour and day kept; None keeps rows. Unit: days."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.retention_days is not None:
            self._require_positive("retention_days")
            if self.retention_days > LONGEST_RETENTION:
                raise ConfigError(f"retention_days: must be at most {LONGEST_RETENTION}; leave it out to keep rows")
        if self.url and self.path:
            raise ConfigError("path: give url or path, not both")
        if self.spill is not None and not self.spill:
            raise ConfigError("spill: must name a folder")
        self._require_positive("max_queued", "max_queued_bytes")

    @property
    def resolved_url(self) -> str:
        """The URL to open; by default an SQLite file in the working directory."""
        return self.url or f"sqlite+aiosqlite:///{quote(self.path or 'arbstr.db')}"


class Limits(ConfigSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits on request bodies."""

    max_body_bytes: int = 32 * 1024 * 1024
    """The size of one request's body, beyond which it gets a 413. Unit: bytes."""
    max_body_bytes_in_flight: int = 256 * 1024 * 1024
    """The size of all bodies that are held at once, beyond which requests get a 503. Unit: bytes."""
    body_timeout: float = 30.0
    """How long a body may take to arrive, after which the request gets a 408. Unit: seconds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("max_body_bytes", "max_body_bytes_in_flight", "body_timeout")


class Failover(ConfigSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Retries when all providers of a request have failed: the last one is asked again.

    The pause is its `retry-after` or an exponential backoff with jitter.
    """

    deadline: float = 30.0
    """The last pause before another try must end within this time of the request's arrival. Unit: seconds."""
    retries: int = 2
    """How often the last provider is asked again when all have failed. Unit: requests."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_not_negative("deadline", "retries")


class Logging(ConfigSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is logged."""

    level: str = "info"
    """`trace`, `debug`, `info`, `warn`, `warning` or `error`, in any case; for `arbstr serve`."""
    log_requests: bool = False
    """Whether each finished call is a line at INFO, by the logger `arbstr_asgi.requests`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.level.lower() not in _LEVELS:
            raise ConfigError(f"level: must be one of {', '.join(_LEVELS)}")

    @property
    def number(self) -> int:
        """`level` as a level of Python's logging."""
        return _LEVELS[self.level.lower()]
