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
    """A bearer token that identifies the end user `name`; an `operator` sees the usage of all end users."""

    name: str
    token: str
    operator: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name or not self.token:
            raise ConfigError("token: name and token must not be empty")
        token_bytes(self.token)
        if not is_name(self.name):
            message = f"name: at most {MAX_NAME_CHARACTERS} characters, no NUL and no lone surrogate"
            raise ConfigError(f"{message}; names are never cut, since they are who may read what")


class Server(ConfigSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Authentication, and which web pages may call; for `arbstr serve` its addresses, workers and times.

    `listen` is one host:port or several. `keep_alive` is how many seconds an idle connection is kept, `grace` how many
    running streams get at shutdown. `cors_origins` are the origins, such as https://app.example, whose pages may call
    the sub-app and `arbstr serve` from a browser, or `*` for any.
    """

    listen: str | Sequence[str] = "127.0.0.1:8080"
    auth_token: str | None = None
    tokens: Sequence[Token] = ()
    public: bool = False
    workers: int = 1
    grace: float = 25.0
    keep_alive: float = 75.0
    cors_origins: Sequence[str] = ()

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
    """The database of the ledger: a SQLAlchemy-style `url`, or `path` as the short form for an SQLite file.

    `spill` is the folder for rows that the database does not accept. With `durability="strict"` a response completes
    only when its row is on disk. At most `max_queued` entries (about `max_queued_bytes`) wait in memory, which takes a
    database and a spill that both fail; at the limit `on_full="serve"` loses rows, `"refuse"` refuses calls. Rows older
    than `retention_days` are deleted; their statistics by hour and day are kept.
    """

    url: str | None = None
    path: str | None = None
    table_prefix: str | None = None
    spill: str | None = None
    durability: Literal["relaxed", "strict"] = "relaxed"
    on_full: Literal["serve", "refuse"] = "serve"
    max_queued: int = 100_000
    max_queued_bytes: int = 128 * 1024 * 1024
    retention_days: float | None = None

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
    """Limits on request bodies: bytes per request, bytes of all requests at once, seconds to receive one."""

    max_body_bytes: int = 32 * 1024 * 1024
    max_body_bytes_in_flight: int = 256 * 1024 * 1024
    body_timeout: float = 30.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("max_body_bytes", "max_body_bytes_in_flight", "body_timeout")


class Failover(ConfigSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Retries when all providers of a request have failed: the last one is asked again, at most `retries` times.

    The pause is its `retry-after` or an exponential backoff with jitter; it must end within `deadline` seconds of the
    arrival of the request.
    """

    deadline: float = 30.0
    retries: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_not_negative("deadline", "retries")


class Logging(ConfigSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The log level of `arbstr serve`, and whether each finished call is logged at INFO.

    `level` is trace, debug, info, warn, warning or error, case-insensitive. `log_requests` uses the logger
    `arbstr_asgi.requests`.
    """

    level: str = "info"
    log_requests: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.level.lower() not in _LEVELS:
            raise ConfigError(f"level: must be one of {', '.join(_LEVELS)}")

    @property
    def number(self) -> int:
        """`level` as a level of Python's logging."""
        return _LEVELS[self.level.lower()]
