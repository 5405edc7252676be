"""What a provider's key may be, and how much of one is ever shown."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeGuard

from arbstr_asgi.config.checks import printable
from arbstr_asgi.errors import ConfigError

if TYPE_CHECKING:
    ApiKey = str | Callable[[], str | Awaitable[str]] | None
else:
    ApiKey = Any  # msgspec takes no union of these; `check_api_key` looks at what it is

SHOWN = 6  # characters of a key
MIN_LENGTH = 16  # of a key of which any are shown


def is_key(value: object) -> TypeGuard[str]:
    """Whether `value` can be sent as a key: a non-empty string of printable ASCII characters."""
    return isinstance(value, str) and bool(value) and printable(value)


def check_api_key(value: object, file: str | None) -> None:
    """Raises ConfigError unless `value` is a key, a callable that gives one, or None, as it must be beside a `file`."""
    if not (value is None or callable(value) or is_key(value)):
        raise ConfigError("api_key: must be a non-empty string of printable ASCII characters, or in code a callable")
    if file is not None and value is not None:
        raise ConfigError("api_key_file: give api_key or api_key_file, not both")
    if file is not None and not file:
        raise ConfigError("api_key_file: must name a file")


def masked(key: object) -> str | None:
    """The beginning of a key, for an operator to tell it from another; None for a short one and for no string."""
    return f"{key[:SHOWN]}…***" if isinstance(key, str) and len(key) >= MIN_LENGTH else None
