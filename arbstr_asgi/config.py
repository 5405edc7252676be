"""What an operator decides, as frozen values.

Build a `Config` in code, from a mapping with `parse`, or from a TOML file with `Config.load`. All three check the
same things and raise `ConfigError` with the path of what is wrong.
"""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, Self

import msgspec

from arbstr_asgi.errors import ConfigError
from arbstr_asgi.policies import Policies
from arbstr_asgi.provider import Provider
from arbstr_asgi.section import Section
from arbstr_asgi.settings import DatabaseConfig, Failover, Limits, Server

_VARIABLE = re.compile(r"\$\{([^}]*)\}")


class Config(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration.

    `metering="require"` overrides a client's `include_usage: false`; `"respect"` lets it opt out of being counted.
    `response_headers="full"` adds cost and latency headers to plain replies, which then wait for their body.
    `cost_comment=True` puts an SSE comment with the cost before `[DONE]`.
    """

    providers: Sequence[Provider]
    server: Server = Server()
    database: DatabaseConfig = DatabaseConfig()
    limits: Limits = Limits()
    policies: Policies = Policies()
    failover: Failover = Failover()
    metering: Literal["respect", "require"] = "respect"
    response_headers: Literal["basic", "full"] = "basic"
    cost_comment: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("providers", tuple(self.providers))
        if not self.providers:
            raise ConfigError("providers: at least one is needed")
        seen: set[str] = set()
        for index, provider in enumerate(self.providers):
            if provider.name in seen:
                raise ConfigError(f"providers[{index}].name: {provider.name!r} is used twice")
            seen.add(provider.name)
            if provider.forward_authorization and (self.server.auth_token or self.server.tokens):
                raise ConfigError(
                    f"providers[{index}].forward_authorization: clients' Authorization holds the server's own token, "
                    "which must not reach a provider; use one or the other"
                )
            if self.metering == "require" and not provider.inject:
                raise ConfigError(f"providers[{index}].inject: must be true where metering is required")

    @classmethod
    def load(cls, path: str | os.PathLike[str], environ: Mapping[str, str] | None = None) -> Self:
        """Read a TOML file. `environ` (default: the process's) fills in ${VARIABLES} and provider keys."""
        try:
            mapping = tomllib.loads(Path(path).read_text("utf-8"), parse_float=Decimal)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or 'cannot be read'}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not valid TOML: {error}") from None
        return cls.parse(mapping, os.environ if environ is None else environ)

    @classmethod
    def parse(cls, mapping: Mapping[str, Any], environ: Mapping[str, str]) -> Self:
        """Check `mapping`, with `${NAME}` filled in from `environ`.

        A provider without `api_key` takes `ARBSTR_<NAME>_API_KEY`, its name in capitals with `_` for everything else.
        """
        filled = _expand(mapping, environ, "")
        for provider in _dicts(filled.get("providers")):
            variable = f"ARBSTR_{re.sub('[^A-Z0-9]', '_', str(provider.get('name', '')).upper())}_API_KEY"
            if "api_key" not in provider and environ.get(variable):
                provider["api_key"] = environ[variable]
        try:
            return msgspec.convert(filled, cls)
        except msgspec.ValidationError as error:
            raise ConfigError(_with_path(str(error))) from None


def _dicts(value: object) -> Iterable[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _expand(value: Any, environ: Mapping[str, str], path: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _expand(item, environ, f"{path}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_expand(item, environ, f"{path}[{index}]") for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def look_up(match: re.Match[str]) -> str:
        name = match.group(1)
        if not environ.get(name):
            raise ConfigError(f"{path}: environment variable {name or '(no name)'} is not set")
        return environ[name]

    return _VARIABLE.sub(look_up, value)


def _with_path(message: str) -> str:
    """msgspec's "<what> - at `$.<path>`" as "<path>: <what>"; a path inside <what> continues the outer one."""
    what, found, where = message.rpartition(" - at `$")
    if not found:
        return message
    path = where.rstrip("`").lstrip(".").replace("[...]", "")
    inner, separator, rest = what.partition(": ")
    if separator and re.fullmatch(r"[a-z_]+(\[\d+\])?(\.[A-Za-z_?-]+)*", inner):
        return f"{path}.{inner}: {rest}".lstrip(".")
    return f"{path}: {what}"
