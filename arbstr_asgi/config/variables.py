"""`${NAME}` in a configuration, filled in from the environment."""

import re
from collections.abc import Mapping
from typing import Any

from arbstr_asgi.errors import ConfigError

_VARIABLE = re.compile(r"\$\{([^}]*)\}")


def names_in(text: str) -> list[str]:
    """The variables that `text` names, in order."""
    return _VARIABLE.findall(text)


def expanded(value: Any, environ: Mapping[str, str], path: str = "") -> Any:
    """A copy of `value` with the variables in all of its strings filled in. Raises ConfigError for one not set."""
    if isinstance(value, Mapping):
        return {key: expanded(item, environ, f"{path}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [expanded(item, environ, f"{path}[{index}]") for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def look_up(match: re.Match[str]) -> str:
        name = match.group(1)
        if not environ.get(name):
            raise ConfigError(f"{path}: environment variable {name or '(no name)'} is not set")
        return environ[name]

    if "${" in _VARIABLE.sub("", value):
        raise ConfigError(f"{path}: has a ${{ without its }}")
    return _VARIABLE.sub(look_up, value)
