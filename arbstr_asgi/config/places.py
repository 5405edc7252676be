"""Where in a configuration a mistake is: msgspec's messages as "<path>: <what>"."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]")
# What our own checks begin with: the rest of the path, as in "headers.X-Team: …".
_INNER = re.compile(r"[a-z0-9_]+(\[\d+\])?(\.[^:\s]+)*")
_ANY_KEY = "[...]"


def error_with_path(
    error: msgspec.ValidationError, mapping: Mapping[str, Any], convert: Callable[[Any], object]
) -> str:
    """The message of `error`, which `convert` has raised for `mapping`, with its whole path before it."""
    what, found, where = str(error).rpartition(" - at `$")
    if not found:
        return str(error)
    path = where.rstrip("`")
    if _ANY_KEY in path:
        path = _with_key(path, str(error), mapping, convert)
    path = path.lstrip(".")
    inner, separator, rest = what.partition(": ")
    if separator and _INNER.fullmatch(inner):
        return f"{path}.{inner}: {rest}".lstrip(".")
    return f"{path}: {what}"


def _with_key(path: str, message: str, mapping: Mapping[str, Any], convert: Callable[[Any], object]) -> str:
    """`path` with the key that msgspec leaves out: the one that alone gives the same message."""
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
    """A copy of `value` with `new` at the end of `steps`."""
    if not steps:
        return new
    copy = dict(value) if isinstance(value, Mapping) else list(value)
    copy[steps[0]] = _replaced(copy[steps[0]], steps[1:], new)
    return copy
