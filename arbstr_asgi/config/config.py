"""The configuration as frozen values.

Build a `Config` in code, from a mapping with `parse`, or from a TOML file with `Config.load`. All three validate alike
and raise `ConfigError` with the path of the setting.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, Self

import msgspec

from arbstr_asgi.config import validation
from arbstr_asgi.config.api_keys import key_variable
from arbstr_asgi.config.legacy import check_supported
from arbstr_asgi.config.loading import error_with_path, expanded, read_toml
from arbstr_asgi.config.policies import Policies
from arbstr_asgi.config.provider import Provider
from arbstr_asgi.config.section import ConfigSection
from arbstr_asgi.config.settings import DatabaseConfig, Failover, Limits, Logging, Server
from arbstr_asgi.errors import ConfigError

_FILES = ("api_key_file", "ca_file")


class Config(ConfigSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration."""

    providers: Sequence[Provider]
    """Whoever may answer, the cheapest for each request first; at least one."""
    server: Server = Server()
    """Who may call, and what `arbstr serve` needs to know."""
    database: DatabaseConfig = DatabaseConfig()
    """Where the rows go."""
    limits: Limits = Limits()
    """Limits on request bodies."""
    policies: Policies = Policies()
    """Which models and providers kinds of requests may use."""
    failover: Failover = Failover()
    """How often and how long failed requests are tried again."""
    logging: Logging = Logging()
    """What is logged."""
    metering: Literal["respect", "require"] = "respect"
    """`"respect"` lets a client opt out of being counted by `include_usage: false`, `"require"` overrides that."""
    response_headers: Literal["basic", "full"] = "basic"
    """`"full"` adds cost and latency headers to plain replies, which then wait for their body."""
    cost_comment: bool = False
    """Whether a stream gets an SSE comment with its cost before `[DONE]`."""
    sats_per_usd: Decimal | int | None = None
    """What rates in USD are turned into sats at, exactly, when the configuration is loaded. Unit: sats per USD."""
    estimates: bool = False
    """Whether the tokens of replies without usage are estimated; needs the extra `estimate`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._convert_rates()
        if not self.providers:
            raise ConfigError("providers: at least one is needed")
        names: set[str] = set()
        for index, provider in enumerate(self.providers):
            if provider.name in names:
                raise ConfigError(f"providers[{index}].name: {provider.name!r} is used twice")
            names.add(provider.name)
            if provider.forward_authorization and (self.server.auth_token or self.server.tokens):
                raise ConfigError(
                    f"providers[{index}].forward_authorization: clients' Authorization holds the server's own token, "
                    "which must not reach a provider; use one or the other"
                )
            if self.metering == "require" and not provider.inject:
                raise ConfigError(f"providers[{index}].inject: must be true where metering is required")
        for index, rule in enumerate(self.policies.rules):
            for name in rule.allowed_providers:
                if name not in names:
                    raise ConfigError(f"policies.rules[{index}].allowed_providers: there is no provider {name!r}")

    def _convert_rates(self) -> None:
        price = None
        if self.sats_per_usd is not None:
            price = validation.rate("sats_per_usd", self.sats_per_usd)
            self._set("sats_per_usd", price)
            self._require_positive("sats_per_usd")
        converted = []
        for index, provider in enumerate(self.providers):
            try:
                converted.append(provider.in_sats(price))
            except ConfigError as error:
                raise ConfigError(f"providers[{index}].{error.message}") from None
        self._set("providers", tuple(converted))

    @classmethod
    def load(cls, path: str | os.PathLike[str], environ: Mapping[str, str] | None = None) -> Self:
        """Read a TOML file. `environ` (default: `os.environ`) fills in ${VARIABLES} and provider keys.

        File names of providers are relative to the folder of the TOML file.
        """
        expanded_mapping = _expand(read_toml(path), os.environ if environ is None else environ)
        folder = Path(path).absolute().parent
        for provider in _dicts(expanded_mapping.get("providers")):
            named = [name for name in _FILES if isinstance(provider.get(name), str) and provider[name]]
            provider.update({name: str(folder / provider[name]) for name in named})
        return cls._checked(expanded_mapping)

    @classmethod
    def parse(cls, mapping: Mapping[str, Any], environ: Mapping[str, str]) -> Self:
        """Validate `mapping`, with `${NAME}` filled in from `environ`.

        A provider without a key uses `ARBSTR_<NAME>_API_KEY`, its name in capitals with `_` for other characters.
        """
        return cls._checked(_expand(mapping, environ))

    @classmethod
    def _checked(cls, expanded_mapping: Mapping[str, Any]) -> Self:
        try:
            return msgspec.convert(expanded_mapping, cls)
        except msgspec.ValidationError as error:
            message = error_with_path(error, expanded_mapping, lambda value: msgspec.convert(value, cls))
            raise ConfigError(message) from None


def _expand(mapping: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    check_supported(mapping)
    expanded_mapping: dict[str, Any] = expanded(mapping, environ)
    for provider in _dicts(expanded_mapping.get("providers")):
        key = environ.get(key_variable(str(provider.get("name", ""))))
        if key and not {"api_key", "api_key_file"} & set(provider):
            provider["api_key"] = key
    return expanded_mapping


def _dicts(value: object) -> Iterable[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
