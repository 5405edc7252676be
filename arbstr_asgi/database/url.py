"""The ledger's database URL: validated and normalised; opens nothing."""

import hashlib
import importlib
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from databases import Database, DatabaseURL

from arbstr_asgi.database.url_options import FILES, missing_files, mysql_options, postgresql_options, read_options
from arbstr_asgi.errors import ConfigError

_SCHEMES = {
    "sqlite": "sqlite",
    "sqlite+aiosqlite": "sqlite",
    "postgresql": "postgresql",
    "postgres": "postgresql",
    "postgresql+asyncpg": "postgresql",
    "mysql": "mysql",
    "mysql+aiomysql": "mysql",
    "mariadb": "mysql",
    "mariadb+aiomysql": "mysql",
}
Pairs = list[tuple[str, str]]
Places = list[tuple[str, int | None]]
_DRIVERS = {
    "sqlite": ("aiosqlite", ""),
    "postgresql": ("asyncpg", "[postgres]"),
    "mysql": ("aiomysql", "[mysql]"),
}
POSTGRESQL_PORT = 5432
_PREFIX = re.compile(r"([A-Za-z_][A-Za-z0-9_]{0,30})?")


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """A validated database URL: `dialect` is sqlite, postgresql or mysql; `str()` hides the password."""

    dialect: str
    url: str = field(repr=False)
    """For `databases`: without options, and with the first of several hosts."""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Arguments of the driver's pool, from the ?options and the hosts."""
    files: tuple[tuple[str, str], ...] = ()
    """The options that may name files."""
    hosts: str | None = None
    """All hosts and ports, where there is more or other than `url` says."""

    @classmethod
    def parse(cls, url: str) -> "DatabaseUrl":
        """Validate a URL and its options, and normalise its scheme for `databases`. Raises ConfigError."""
        try:
            parts = urlsplit(url)
            dialect = _SCHEMES.get(parts.scheme)
            user, _, hosts = parts.netloc.rpartition("@")
            places = [_place(host) for host in hosts.split(",")] if hosts else []
        except ValueError:
            # The parser's own words quote the password.
            message = "database.url can't be parsed; write special characters of user and password as %40 and so on"
            raise ConfigError(message) from None
        if parts.fragment or url.endswith("#"):
            raise ConfigError("database.url: write # as %23")
        if dialect is None:
            raise ConfigError(f"database.url: unknown scheme {parts.scheme!r}; use {_choice()}")
        if dialect == "sqlite":
            _check_file(parts.netloc, unquote(parts.path[1:]), parts.query)
            return cls(dialect, f"{dialect}:{url.partition(':')[2]}")
        if len(parts.path) < 2:
            raise ConfigError(f"database.url names no database; write {dialect}://user:password@host/name")
        _check_driver(dialect)
        pairs = read_options(parts.query)
        files = tuple(pair for pair in pairs if pair[0] in FILES)
        if dialect == "mysql":
            if len(places) > 1:
                raise ConfigError("database.url: several hosts: aiomysql connects to one")
            return cls(dialect, f"{dialect}://{parts.netloc}{parts.path}", mysql_options(pairs), files)
        user, pairs = _with_user(user, pairs)
        places, pairs = _with_places(places, pairs)
        options = postgresql_options(pairs)
        shown = None
        if places:
            options |= {"host": [host for host, _ in places], "port": [port or POSTGRESQL_PORT for _, port in places]}
            shown = ",".join(f"{host}:{port}" for host, port in places)
        first = hosts if "," not in hosts else hosts.split(",")[0]
        if "%" in first:  # a socket
            first = ""
        return cls(dialect, f"{dialect}://{user}{'@' if user else ''}{first}{parts.path}", options, files, shown)

    def __str__(self) -> str:
        shown, hosts = str(DatabaseURL(self.url).obscure_password), self.options.get("host", [])
        return shown if all(host in shown for host in hosts) else f"{shown} ({', '.join(hosts)})"

    def connectable(self, options: Mapping[str, Any]) -> Database:
        """A new `Database` with these options and the URL's, not connected. Raises OSError for a file of TLS."""
        options = {**options, **self.options}
        if self.dialect != "mysql":
            return Database(self.url, **options)
        if "ssl" in options:
            options["ssl"] = options["ssl"]()
        return _MysqlDatabase(self.url, **options)

    def check_options(self) -> str | None:
        """What is wrong with the files that the options name, or None; reads the file system."""
        return missing_files(self.files)

    def create_file(self) -> None:
        """Create the SQLite file with mode 0600, unless it is there; SQLite gives the files beside it the same mode."""
        if self.dialect == "sqlite":
            with suppress(OSError):  # SQLite says what is wrong
                os.close(os.open(DatabaseURL(self.url).database, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def check_folder(self) -> str | None:
        """What is wrong with the folder of an SQLite file, or None; reads the file system."""
        if self.dialect != "sqlite":
            return None
        folder = Path(DatabaseURL(self.url).database).absolute().parent
        return None if folder.is_dir() else f"the folder {folder} does not exist; create it"

    def check_file(self) -> str | None:
        """What is wrong with the SQLite file itself, or None; for readers, which must not create it."""
        if self.dialect != "sqlite" or Path(DatabaseURL(self.url).database).is_file():
            return None
        return "there is no such file"


def dialect_of(database: Database) -> str:
    """The dialect of a host's database. Raises ConfigError for one that is not supported."""
    url = database.url
    dialect = _SCHEMES.get(url.dialect)
    if dialect is None or url.driver in {"aiopg", "asyncmy"}:
        raise ConfigError(f"database: {url.scheme} is not supported; use {_choice()}")
    if dialect == "sqlite":
        _check_file("", url.database, "memory" if "memory" in url.components.query else "")
    return dialect


def spill_folder(url: DatabaseURL, dialect: str, prefix: str, base: str | None, hosts: str | None = None) -> Path:
    """The folder for rows that this database did not accept: below `base`, beside an SQLite file, or `arbstr-spill`.

    Each database and prefix has its own folder, so that no row is replayed into another database.
    """
    if dialect == "sqlite":
        file = Path(url.database).absolute()
        if base is None:
            return file.with_name(f"{file.name}-{prefix}spill")
        where = str(file)
    else:
        where = f"{hosts or f'{url.hostname}:{url.port}'}/{url.database}"
    digest = hashlib.sha256(f"{dialect} {where} {prefix}".encode()).hexdigest()[:8]
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", Path(url.database).name)[:40]
    return Path(base or "arbstr-spill").absolute() / f"{name}-{digest}"


def check_prefix(prefix: str) -> str:
    """The prefix itself. Raises ConfigError if it can not be a part of an identifier."""
    if not _PREFIX.fullmatch(prefix):
        raise ConfigError("table_prefix: letters, digits and _ only, no digit first, at most 31 characters")
    return prefix


class _MysqlDatabase(Database):
    """One on our own pool, whose connections have TLS where it is asked for, or are none."""

    SUPPORTED_BACKENDS = {"mysql": "arbstr_asgi.database.drivers.mysql:Backend"}  # noqa: RUF012 - as the base class has it


def _place(text: str) -> tuple[str, int | None]:
    """Host and port; a host may be in brackets (IPv6) or percent-encoded (the folder of a socket)."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
        if rest and not rest.startswith(":"):
            raise ValueError("not a host and a port")
    else:
        host, _, port = text.partition(":")
    if port and not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError("not a port")
    host = unquote(host)
    return host if host.startswith("/") else host.lower(), int(port) if port else None


def _with_user(user: str, pairs: Pairs) -> tuple[str, Pairs]:
    """The user and password of a PostgreSQL URL, quoted, and the options that are left."""
    given = {name: quote(value, safe="") for name, value in pairs if name in ("user", "password")}
    if not given:
        return user, pairs
    name, colon, password = user.partition(":")
    if (name and "user" in given) or (colon and "password" in given):
        raise ConfigError("database.url: user or password is said twice, in two ways")
    name, password = given.get("user", name), given.get("password", password)
    return f"{name}:{password}" if password else name, [pair for pair in pairs if pair[0] not in ("user", "password")]


def _with_places(places: Places, pairs: Pairs) -> tuple[Places, Pairs]:
    """The hosts and ports of a PostgreSQL URL, and the options that are left."""
    hosts = [host for name, value in pairs if name == "host" for host in value.split(",")]
    ports = [port for name, value in pairs if name == "port" for port in value.split(",")]
    if (hosts and places) or (ports and any(port for _, port in places)):
        raise ConfigError("database.url: ?host or ?port is said twice, in two ways")
    if not hosts and not ports:
        return places, pairs
    try:
        found = [(host, None) if host.startswith("/") else _place(host) for host in hosts] or places
        numbers = [_place(f":{port}")[1] for port in ports]
    except ValueError:
        raise ConfigError("database.url: ?host and ?port must be host names and numbers") from None
    if numbers and (any(port for _, port in found) or len(numbers) not in (1, len(found)) or not found):
        raise ConfigError("database.url: ?port must be one, or one for each host")
    if numbers:
        numbers *= len(found) if len(numbers) == 1 else 1
        found = [(host, port) for (host, _), port in zip(found, numbers, strict=True)]
    return found, [pair for pair in pairs if pair[0] not in ("host", "port")]


def _choice() -> str:
    return "sqlite+aiosqlite:///file.db, postgresql+asyncpg://user:password@host/name or mysql+aiomysql://…"


def _check_file(netloc: str, path: str, query: str) -> None:
    if netloc:
        raise ConfigError("database.url: an SQLite file is named after three slashes: sqlite+aiosqlite:///arbstr.db")
    if not path or path == ":memory:" or path.startswith("file:") or "memory" in query:
        message = "database.url: SQLite in memory keeps nothing for the next connection; "
        raise ConfigError(message + "name a file: sqlite+aiosqlite:///arbstr.db")
    if query:
        raise ConfigError("database.url: SQLite takes no ?options; they would become part of the file's name")


def _check_driver(dialect: str) -> None:
    module, extra = _DRIVERS[dialect]
    try:
        importlib.import_module(module)
    except ImportError:
        message = f'database.url needs {module}: pip install "arbstr-asgi{extra}"'
        raise ConfigError(message) from None
