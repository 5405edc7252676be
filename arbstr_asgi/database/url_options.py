"""The ?options of a database URL: each is honoured by the driver, or refused by its name, and none is dropped."""

import math
import ssl
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from arbstr_asgi.errors import ConfigError

_DEFAULT_POOL = 5  # the most connections of the drivers' own options
MIN_POOL = 2  # connections: the writer's, and one for roll-ups and questions
FILES = (
    *("sslrootcert", "sslcert", "sslkey", "sslcrl", "passfile", "servicefile"),
    *("ssl_ca", "ssl_cert", "ssl_key", "read_default_file"),
)

_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_ATTRS = ("any", "primary", "standby", "prefer-standby", "read-write", "read-only")
# asyncpg reads these in a DSN only, or there as in its arguments.
_IN_DSN = frozenset(
    (
        *("sslcert", "sslkey", "sslrootcert", "sslcrl", "sslpassword", "sslnegotiation"),
        *("ssl_min_protocol_version", "ssl_max_protocol_version", "passfile", "service", "krbsrvname", "gsslib"),
    )
)
# What a server is told of a session; anything else can be said as options=-c name=value.
_SERVER_SETTINGS = frozenset(
    (
        *("application_name", "options", "search_path", "timezone", "datestyle", "statement_timeout", "lock_timeout"),
        *("idle_in_transaction_session_timeout", "idle_session_timeout", "transaction_timeout", "synchronous_commit"),
        *("work_mem", "jit", "tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count"),
    )
)
_VERIFIED = ("require", "verify-ca", "verify-full")
_MYSQL_SSL_MODES = ("DISABLED", "REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY")
_MYSQL_MODES = ("ssl", "ssl_mode", "ssl-mode")
_MYSQL_TLS = (*_MYSQL_MODES, "ssl_ca", "ssl_capath", "ssl_cert", "ssl_key", "ssl_check_hostname")

Options = dict[str, Any]


def read_options(query: str) -> list[tuple[str, str]]:
    """Names and values of a URL's query. Raises ConfigError for one that is empty or given twice (a host may be)."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict")
    except ValueError:
        raise ConfigError("database.url: the ?options can't be parsed; write name=value&name=value") from None
    names = [name for name, _ in pairs]
    for name, value in pairs:
        if not value:
            raise _wrong(name, "is empty")
        if names.count(name) > 1 and name != "host":
            raise _wrong(name, "is given twice")
    return pairs


def postgresql_options(pairs: Iterable[tuple[str, str]]) -> Options:
    """Arguments of `asyncpg.create_pool`. Raises ConfigError for an option that it does not know."""
    given, result, settings = dict(pairs), Options(), Options()
    in_dsn = {name: given.pop(name) for name in _IN_DSN & given.keys()}
    for name, value in given.items():
        if name in _POSTGRESQL:
            key, convert = _POSTGRESQL[name]
            if key in result:
                raise _wrong(name, "is said twice, in two ways")
            result[key] = convert(name, value)
        elif name.lower() in _SERVER_SETTINGS or "." in name:
            settings[name] = value
        else:
            raise _wrong(
                name, "is not an option of asyncpg's; a setting of the server is said as options=-c name=value"
            )
    for name in in_dsn.keys() & {"sslrootcert", "sslcrl"}:
        if result.get("ssl") not in _VERIFIED:
            raise _wrong(name, "needs sslmode=verify-full, verify-ca or require")
    if in_dsn:
        result["dsn"] = f"postgresql:///?{urlencode(in_dsn)}"
    if settings:
        result["server_settings"] = settings
    return _checked_pool(result)


def mysql_options(pairs: Iterable[tuple[str, str]]) -> Options:
    """Arguments of `aiomysql.create_pool`; `ssl` is a function that makes the context, since that reads files.

    Raises ConfigError for an option that is not known.
    """
    given, result = dict(pairs), Options()
    tls = {name: given.pop(name) for name in [*given] if name.startswith("ssl")}
    for name, value in given.items():
        if name not in _MYSQL:
            raise _wrong(name, "is not an option that can be given to aiomysql here")
        key, convert = _MYSQL[name]
        if key in result:
            raise _wrong(name, "is said twice, in two ways")
        result[key] = convert(name, value)
    mode = _mysql_ssl_mode(tls)
    if mode != "DISABLED":
        result["ssl"] = lambda: _mysql_context(mode, tls)
    return _checked_pool(result)


def missing_files(pairs: Iterable[tuple[str, str]]) -> str | None:
    """Which option names a file that is not there, or None; reads the file system."""
    for name, value in pairs:
        if name in FILES and not Path(value).is_file():
            return f"{name}: there is no file {value}"
    return None


def _mysql_ssl_mode(tls: Mapping[str, str]) -> str:
    """One of MySQL's modes; what is given without a mode means the strictest."""
    for name in tls:
        if name not in _MYSQL_TLS:
            raise _wrong(name, "is not an option that can be given to aiomysql here")
    modes = [_one_of(name, tls[name].upper(), _MYSQL_SSL_MODES) for name in ("ssl_mode", "ssl-mode") if name in tls]
    if "ssl" in tls:
        modes.append("VERIFY_IDENTITY" if _flag("ssl", tls["ssl"]) else "DISABLED")
    if len(modes) > 1:
        raise _wrong("ssl_mode", "is said twice, in two ways")
    mode = modes[0] if modes else "VERIFY_IDENTITY" if tls else "DISABLED"
    if mode == "DISABLED" and len(tls) > len(modes):
        raise _wrong(next(name for name in tls if name not in _MYSQL_MODES), "means nothing without TLS")
    if mode == "REQUIRED" and tls.keys() & {"ssl_ca", "ssl_capath"}:
        mode = "VERIFY_CA"
    if "ssl_check_hostname" not in tls:
        return mode
    if _flag("ssl_check_hostname", tls["ssl_check_hostname"]):
        return "VERIFY_IDENTITY"
    return "VERIFY_CA" if mode == "VERIFY_IDENTITY" else mode


def _mysql_context(mode: str, tls: Mapping[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tls.get("ssl_ca"), capath=tls.get("ssl_capath"))
    context.check_hostname = mode == "VERIFY_IDENTITY"
    if mode == "REQUIRED":
        context.verify_mode = ssl.CERT_NONE
    if "ssl_cert" in tls:
        context.load_cert_chain(tls["ssl_cert"], tls.get("ssl_key"))
    return context


def _checked_pool(options: Options) -> Options:
    smallest, largest = options.get("min_size", 0), options.get("max_size")
    if largest is not None and (largest < MIN_POOL or largest < smallest):
        raise _wrong("max_size", f"must be at least {max(MIN_POOL, smallest)}")
    if largest is None and smallest > _DEFAULT_POOL:
        options["max_size"] = smallest
    return options


def _wrong(name: str, what: str) -> ConfigError:
    return ConfigError(f"database.url: ?{name} {what}")


def _one_of(name: str, value: str, valid: Iterable[str]) -> str:
    if value not in valid:
        raise _wrong(name, f"must be one of {', '.join(valid)}")
    return value


def _flag(name: str, value: str) -> bool:
    return _one_of(name, value.lower(), ("true", "false")) == "true"


def _number(name: str, value: str) -> int:
    if not (value.isascii() and value.isdecimal() and len(value) < 10):
        raise _wrong(name, "must be a whole number")
    return int(value)


def _seconds(name: str, value: str) -> float | None:
    """None for 0, which means without limit."""
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise _wrong(name, "must be a number of seconds")
    return seconds or None


def _ssl(name: str, value: str) -> str | bool:
    """`ssl` of `databases`, true: a certificate is needed that the system trusts, for this host; or an sslmode."""
    flags = {"true": True, "false": False}
    return flags[value.lower()] if value.lower() in flags else _one_of(name, value.lower(), _SSL_MODES)


def _utf8mb4(name: str, value: str) -> str:
    return _one_of(name, value.lower(), ("utf8mb4",))


def _as_it_is(name: str, value: str) -> str:
    return value


_Converter = Callable[[str, str], Any]
_POOL: dict[str, tuple[str, _Converter]] = {"min_size": ("min_size", _number), "max_size": ("max_size", _number)}
_POSTGRESQL: dict[str, tuple[str, _Converter]] = {
    **_POOL,
    "max_queries": ("max_queries", _number),
    "max_inactive_connection_lifetime": ("max_inactive_connection_lifetime", lambda n, v: _seconds(n, v) or 0.0),
    "connect_timeout": ("timeout", _seconds),
    "timeout": ("timeout", _seconds),
    "command_timeout": ("command_timeout", _seconds),
    "statement_cache_size": ("statement_cache_size", _number),
    "max_cached_statement_lifetime": ("max_cached_statement_lifetime", _number),
    "max_cacheable_statement_size": ("max_cacheable_statement_size", _number),
    "sslmode": ("ssl", lambda n, v: _one_of(n, v, _SSL_MODES)),
    "ssl": ("ssl", _ssl),
    "direct_tls": ("direct_tls", _flag),
    "target_session_attrs": ("target_session_attrs", lambda n, v: _one_of(n, v, _ATTRS)),
    "servicefile": ("servicefile", _as_it_is),
}
_MYSQL: dict[str, tuple[str, _Converter]] = {
    **_POOL,
    "minsize": ("min_size", _number),
    "maxsize": ("max_size", _number),
    "pool_recycle": ("pool_recycle", _number),
    "connect_timeout": ("connect_timeout", _seconds),
    "unix_socket": ("unix_socket", _as_it_is),
    "charset": ("charset", _utf8mb4),
    "init_command": ("init_command", _as_it_is),
    "program_name": ("program_name", _as_it_is),
    "auth_plugin": ("auth_plugin", _as_it_is),
    "read_default_file": ("read_default_file", _as_it_is),
    "read_default_group": ("read_default_group", _as_it_is),
}
