"""Validation, masking and sources of the providers' API keys."""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

import msgspec

from arbstr_asgi.config.loading import variable_names
from arbstr_asgi.config.validation import printable
from arbstr_asgi.errors import ConfigError

if TYPE_CHECKING:
    ApiKey = str | Callable[[], str | Awaitable[str]] | None
else:
    ApiKey = Any  # msgspec takes no union of these; `check_api_key` looks at what it is

SHOWN = 6  # characters of a key
MIN_LENGTH = 16  # of a key of which any are shown


def is_key(value: object) -> TypeGuard[str]:
    """Whether `value` is a valid key: a non-empty string of printable ASCII characters."""
    return isinstance(value, str) and bool(value) and printable(value)


def check_api_key(value: object, file: str | None) -> None:
    """Raises ConfigError unless `value` is a key, a callable, or None (which it must be beside a `file`)."""
    if not (value is None or callable(value) or is_key(value)):
        raise ConfigError("api_key: must be a non-empty string of printable ASCII characters, or in code a callable")
    if file is not None and value is not None:
        raise ConfigError("api_key_file: give api_key or api_key_file, not both")
    if file is not None and not file:
        raise ConfigError("api_key_file: must name a file")


def masked(key: object) -> str | None:
    """The first characters of a key, to tell it from others; None for a short one, or for no string."""
    return f"{key[:SHOWN]}…***" if isinstance(key, str) and len(key) >= MIN_LENGTH else None


class KeySource(msgspec.Struct, frozen=True, kw_only=True):
    """Where the key of `provider` comes from; `name` is the variable or file, `given` whether it is set.

    For a "file" it is not known whether it can be read. For "none" `name` is the variable that would be used.
    """

    provider: str
    kind: Literal["literal", "variable", "convention", "file", "none"]
    name: str = ""
    given: bool = True

    def __str__(self) -> str:
        match self.kind:
            case "variable":
                return f"from {self.name}" + ("" if self.given else " (not set)")
            case "convention":
                return self.name
            case "file":
                return f"file {self.name}"
        return self.kind


def key_variable(provider_name: str) -> str:
    """The environment variable for a provider's key: its name in capitals, `_` for other characters."""
    return f"ARBSTR_{re.sub('[^A-Z0-9]', '_', provider_name.upper())}_API_KEY"


def key_source(provider: Mapping[str, Any], environ: Mapping[str, str]) -> KeySource:
    """The source of the key of one provider, from its table in the file."""
    name, key, file = (provider.get(field) for field in ("name", "api_key", "api_key_file"))
    provider_name = str(name)
    if file is not None:
        return KeySource(provider=provider_name, kind="file", name=str(file), given=bool(file))
    if key is not None:
        variables = variable_names(str(key))
        variables_text = "".join(f"${{{variable}}}" for variable in variables)
        given = all(environ.get(variable) for variable in variables)
        return KeySource(
            provider=provider_name, kind="variable" if variables else "literal", name=variables_text, given=given
        )
    variable = key_variable(provider_name)
    given = bool(environ.get(variable))
    return KeySource(provider=provider_name, kind="convention" if given else "none", name=variable, given=given)


def key_sources(mapping: Mapping[str, Any], environ: Mapping[str, str]) -> list[KeySource]:
    """The source of the key of each provider of a configuration mapping; entries that are no tables are skipped."""
    providers = mapping.get("providers")
    result = providers if isinstance(providers, list) else []
    return [key_source(provider, environ) for provider in result if isinstance(provider, Mapping)]
