"""Validation of single settings; each function raises ConfigError with the name of the setting."""

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from arbstr_asgi.errors import ConfigError

_FRAMING = frozenset(
    (
        *("connection", "content-encoding", "content-length", "host", "idempotency-key", "keep-alive", "te"),
        *("trailer", "transfer-encoding", "upgrade"),
    )
)
# Headers that frame the message or carry credentials; never forwarded in either direction.
UNFORWARDABLE = _FRAMING | {
    *("authorization", "cookie", "location", "proxy-authenticate", "proxy-authorization", "refresh", "set-cookie"),
}
OURS = _FRAMING | {"accept-encoding"}  # headers that we set ourselves
HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


def http_url(url: str) -> str:
    """`url` without trailing slashes; it must be an HTTP URL that a path can be appended to."""
    parts = _split(url)
    if parts is None:
        raise ConfigError("url: must be http:// or https:// with a host, such as https://api.openai.com/v1")
    if parts.username or parts.password:
        raise ConfigError("url: must not hold credentials; use api_key or headers")
    if parts.query or parts.fragment:
        raise ConfigError("url: must not have a query or fragment; use query")
    return url.rstrip("/")


def check_proxy_url(url: str) -> None:
    """Raises ConfigError unless `url` is the URL of an HTTP proxy, with optional credentials."""
    parts = _split(url)
    if parts is None:
        raise ConfigError("proxy: must be http:// or https:// with a host, such as http://user:password@127.0.0.1:3128")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ConfigError("proxy: must end with its host and port")
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if ":" in user or not printable(user + password):
        raise ConfigError("proxy: its user and password must be printable ASCII, the user without a colon")


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        return None
    return parts if valid and printable(url) and " " not in url else None


def rate(name: str, value: Any) -> Decimal | None:
    """`value` as an exact Decimal; None (unknown) is allowed for all but a base fee."""
    if value is None and name != "base_fee":
        return None
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        raise ConfigError(f"{name}: must be a number") from None
    if isinstance(value, bool) or not amount.is_finite() or amount < 0:
        raise ConfigError(f"{name}: must be a number that is not negative")
    return amount


def strings(name: str, values: Iterable[str]) -> tuple[str, ...]:
    """`values` as a tuple; a single string is rejected."""
    if isinstance(values, str):
        raise ConfigError(f"{name}: must be a list of strings")
    return tuple(values)


def header_names(name: str, values: Iterable[str]) -> tuple[str, ...]:
    """Header names in lower case; rejects those that carry credentials or frame the message."""
    names = tuple(value.lower() for value in strings(name, values))
    for header in names:
        if not HEADER.fullmatch(header):
            raise ConfigError(f"{name}: {header!r} is not a header name")
        if header in UNFORWARDABLE:
            raise ConfigError(f"{name}: {header} never passes between your clients and a provider")
    return names


def check_headers(headers: Mapping[str, str]) -> None:
    """Raises ConfigError unless all of these headers can be sent beside our own."""
    for name, value in headers.items():
        if not HEADER.fullmatch(name) or not printable(value) or name.lower() in OURS:
            raise ConfigError(f"headers.{name if printable(name) else '?'}: not a header that can be set")


def auth_header(name: str) -> str:
    """The name of the header for the key, in lower case."""
    name = name.lower()
    if not HEADER.fullmatch(name) or name in OURS or name == "content-type":
        raise ConfigError("auth_header: must be the name of a header that can be set, such as api-key")
    return name


def printable(value: str) -> bool:
    """Whether `value` is printable ASCII, safe in a header and on a log line."""
    return value.isascii() and value.isprintable()


def check_listen(addresses: Iterable[str]) -> None:
    """Raises ConfigError unless each address is host:port."""
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
            raise ConfigError("server.listen: must be host:port, such as 127.0.0.1:8080")


def origin(value: str) -> str:
    """The origin of a web page as browsers send it, or `*`. Raises ConfigError."""
    scheme, _, host = value.lower().partition("://")
    parts = _split(f"http://{host}")
    bare = parts is not None and parts.netloc == host and "@" not in host and "*" not in host
    if value == "*" or (bare and re.fullmatch("[a-z][a-z0-9+.-]*", scheme)):
        return value.lower()
    raise ConfigError("cors_origins: must be * or origins, such as https://app.example, without a path")
