"""The base class of all parts of the configuration: frozen, validated, no secrets in its repr."""

import functools
import math
from typing import Any, get_type_hints

import msgspec

from arbstr_asgi.errors import ConfigError

_SECRET = frozenset({"api_key", "auth_token", "token", "headers", "query", "url", "proxy"})


@functools.cache
def _kinds(section: type) -> dict[str, Any]:
    return get_type_hints(section)


class ConfigSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen part of the configuration whose repr shows no secret."""

    def __repr__(self) -> str:
        shown = (
            f"{name}={'***' if name in _SECRET and getattr(self, name) else repr(getattr(self, name))}"
            for name in self.__struct_fields__
        )
        return f"{type(self).__name__}({', '.join(shown)})"

    def __post_init__(self) -> None:
        """Validate values passed in code like those from a file."""
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

    def _require_not_negative(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: must not be negative")
