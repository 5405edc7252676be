"""Reads a TOML file, fills in `${NAME}` from the environment, and adds the path to validation errors."""

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from arbstr_asgi.errors import ConfigError

_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_ANY_KEY = "[...]"
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]")
# What our own checks begin with: the rest of the path, as in "headers.X-Team: …".
_INNER = re.compile(r"[a-z0-9_]+(\[\d+\])?(\.[^:\s]+)*")


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Parse a TOML file, fractions as Decimal. Raises ConfigError, which names the file."""
    try:
        return tomllib.loads(Path(path).read_text("utf-8-sig"), parse_float=Decimal)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or 'cannot be read'}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def expanded(value: Any, environ: Mapping[str, str], path: str = "") -> Any:
    """A copy of `value` with the variables in all strings filled in. Raises ConfigError for one that is not set."""
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


def variable_names(text: str) -> list[str]:
    """The variables in `text`, in order."""
    return _VARIABLE.findall(text)


def error_with_path(
    error: msgspec.ValidationError, mapping: Mapping[str, Any], convert: Callable[[Any], object]
) -> str:
    """The message of `error`, raised by `convert` for `mapping`, with the full path of the setting in front."""
    message, has_path, path_text = str(error).rpartition(" - at `$")
    if not has_path:
        return str(error)
    path = path_text.rstrip("`")
    if _ANY_KEY in path:
        path = _with_key(path, str(error), mapping, convert)
    path = path.lstrip(".")
    inner, separator, rest = message.partition(": ")
    if separator and _INNER.fullmatch(inner):
        return f"{path}.{inner}: {rest}".lstrip(".")
    return f"{path}: {message}"


def _with_key(path: str, message: str, mapping: Mapping[str, Any], convert: Callable[[Any], object]) -> str:
    """`path` with the key that msgspec leaves out: the key that alone causes the same error."""
    before, _, after = path.partition(_ANY_KEY)
    steps = [name or int(index) for name, index in _STEP.findall(before)]
    table: Any = mapping
    for step in steps:
        table = table[step]
    for key in table:
        try:
            convert(_replaced(mapping, steps, {key: table[key]}))
        except msgspec.ValidationError as error:
            if str(error) == message:
                return f"{before}.{key}{after}"
    return before + after


def _replaced(value: Any, steps: list[Any], new: Any) -> Any:
    """A copy of `value` with `new` at the path `steps`."""
    if not steps:
        return new
    copy = dict(value) if isinstance(value, Mapping) else list(value)
    copy[steps[0]] = _replaced(copy[steps[0]], steps[1:], new)
    return copy
