"""Settings of the original arbstr that are not supported; each error says what to do instead."""

from collections.abc import Iterator, Mapping
from typing import Any

from arbstr_asgi.errors import ConfigError

_TABLES = ("vault", "tokenstats", "routing")
_KEYS = {"server": ("rate_limit_rps",), "providers": ("auto_discover", "source", "provider_id")}
_STRATEGIES = ("cheapest",)


def check_supported(mapping: Mapping[str, Any]) -> None:
    """Raises ConfigError, with its path, for the first unsupported setting."""
    for table in _TABLES:
        if table in mapping:
            raise ConfigError(f"{table}: not supported here; remove the table [{table}]")
    for table, keys in _KEYS.items():
        for path, section in _sections(mapping, table):
            for key in keys:
                if key in section:
                    raise ConfigError(f"{path}.{key}: not supported here; remove it")
    for path, policies in _sections(mapping, "policies"):
        _check_strategy(path, policies, "default_strategy")
        for rule_path, rule in _sections(policies, "rules"):
            _check_strategy(f"{path}.{rule_path}", rule, "strategy")


def _check_strategy(path: str, section: Mapping[str, Any], key: str) -> None:
    if key in section and section[key] not in _STRATEGIES:
        raise ConfigError(f'{path}.{key}: only "cheapest" is supported; say that, or remove it')


def _sections(mapping: Mapping[str, Any], name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The table or tables called `name`, with their paths; other types are left to the validation."""
    result = mapping.get(name)
    if isinstance(result, Mapping):
        yield name, result
    elif isinstance(result, list | tuple):
        yield from ((f"{name}[{i}]", section) for i, section in enumerate(result) if isinstance(section, Mapping))
