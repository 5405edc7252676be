"""The other parts of the configuration: the server, its tokens, the database, the limits, the log."""

import logging
from collections.abc import Sequence
from typing import Literal
from urllib.parse import quote

from arbstr_asgi.config.section import ConfigSection
from arbstr_asgi.errors import ConfigError

_LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


LONGEST_RETENTION = 36_500  # days


class Token(ConfigSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A bearer token that makes its holder the end user `name`; an `operator` may ask about everybody's usage."""

    name: str
    token: str
    operator: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name or not self.token:
            raise ConfigError("token: name and token must not be empty")


class Server(ConfigSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
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
        self._require_not_negative("grace")


class DatabaseConfig(ConfigSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the ledger is: a SQLAlchemy-style `url`, or `path` as the short form for an SQLite file.

    Below `spill`, a folder, rows wait that the database can't take. With `durability="strict"` an answer is complete
    for its client only when its row is on disk. In memory at most `max_queued` entries wait (about `max_queued_bytes`),
    which takes a database and a spill that both fail; then `on_full="serve"` loses rows, `"refuse"` refuses calls.
    Rows older than `retention_days` are deleted; their statistics by hour and day stay.
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
        """The URL to open; without any setting an SQLite file in the working directory."""
        return self.url or f"sqlite+aiosqlite:///{quote(self.path or 'arbstr.db')}"


class Limits(ConfigSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds on what clients can make us hold: bytes and seconds."""

    max_body_bytes: int = 32 * 1024 * 1024
    max_body_bytes_in_flight: int = 256 * 1024 * 1024
    body_timeout: float = 30.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("max_body_bytes", "max_body_bytes_in_flight", "body_timeout")


class Failover(ConfigSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a request may go to several providers: how often the last of them is asked again when all have failed.

    That comes after its `retry-after` or a growing, jittered pause, `retries` times at most, and if the pause ends
    within `deadline` seconds of the request's arrival.
    """

    deadline: float = 30.0
    retries: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_not_negative("deadline", "retries")


class Logging(ConfigSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is logged: from which `level` on `arbstr serve` does, and whether each finished call is one line at INFO.

    `level` is trace, debug, info, warn, warning or error, in any case. The lines of `log_requests` are those of the
    logger `arbstr_asgi.requests`.
    """

    level: str = "info"
    log_requests: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.level.lower() not in _LEVELS:
            raise ConfigError(f"level: must be one of {', '.join(_LEVELS)}")

    @property
    def number(self) -> int:
        """`level` as Python's logging counts."""
        return _LEVELS[self.level.lower()]
