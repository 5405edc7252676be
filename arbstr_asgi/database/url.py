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
from urllib.parse import unquote, urlsplit

from databases import Database, DatabaseURL

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
_DRIVERS = {
    "sqlite": ("aiosqlite", ""),
    "postgresql": ("asyncpg", "[postgres]"),
    "mysql": ("aiomysql", "[mysql]"),
}
_PREFIX = re.compile(r"([A-Za-z_][A-Za-z0-9_]{0,30})?")


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """A validated database URL: `dialect` is sqlite, postgresql or mysql; `str()` hides the password."""

    dialect: str
    url: str = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> "DatabaseUrl":
        """Validate a URL and normalise its scheme for `databases`. Raises ConfigError."""
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError:
            # The parser's own words quote the password.
            message = "database.url can't be parsed; write special characters of user and password as %40 and so on"
            raise ConfigError(message) from None
        dialect = _SCHEMES.get(parts.scheme)
        if parts.fragment or url.endswith("#"):
            raise ConfigError("database.url: write # as %23")
        if dialect is None:
            raise ConfigError(f"database.url: unknown scheme {parts.scheme!r}; use {_choice()}")
        if dialect == "sqlite":
            _check_file(parts.netloc, unquote(parts.path[1:]), parts.query)
        elif len(parts.path) < 2:
            raise ConfigError(f"database.url names no database; write {dialect}://user:password@host/name")
        _check_driver(dialect)
        return cls(dialect, f"{dialect}:{url.partition(':')[2]}")

    def __str__(self) -> str:
        return str(DatabaseURL(self.url).obscure_password)

    def connectable(self, options: Mapping[str, Any]) -> Database:
        """A new `Database` with these options, not connected."""
        return Database(self.url, **options)

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


def spill_folder(url: DatabaseURL, dialect: str, prefix: str, base: str | None) -> Path:
    """The folder for rows that this database did not accept: below `base`, beside an SQLite file, or `arbstr-spill`.

    Each database and prefix has its own folder, so that no row is replayed into another database.
    """
    if dialect == "sqlite":
        file = Path(url.database).absolute()
        if base is None:
            return file.with_name(f"{file.name}-{prefix}spill")
        where = str(file)
    else:
        where = f"{url.hostname}:{url.port}/{url.database}"
    digest = hashlib.sha256(f"{dialect} {where} {prefix}".encode()).hexdigest()[:8]
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", Path(url.database).name)[:40]
    return Path(base or "arbstr-spill").absolute() / f"{name}-{digest}"


def check_prefix(prefix: str) -> str:
    """The prefix itself. Raises ConfigError if it can not be a part of an identifier."""
    if not _PREFIX.fullmatch(prefix):
        raise ConfigError("table_prefix: letters, digits and _ only, no digit first, at most 31 characters")
    return prefix


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
