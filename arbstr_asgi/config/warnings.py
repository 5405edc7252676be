"""Warnings about a configuration that is valid and probably a mistake."""

import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from arbstr_asgi.config.api_keys import KeySource, key_variable
from arbstr_asgi.config.config import Config
from arbstr_asgi.config.provider import Provider

_QUOTED = re.compile(r"([\"'`]).*\1|[\u2018\u201c].*[\u2019\u201d]", re.DOTALL)


def settings_warnings(config: Config) -> list[str]:
    """Warnings about unknown costs, missing keys, and a server without authentication."""
    result = [
        f"provider {provider.name}: input_rate or output_rate is not set, so its cost is unknown (NULL)"
        for provider in config.providers
        if _costs_unknown(provider)
    ]
    result += [
        f"provider {provider.name}: no key for an https:// provider; "
        f"set {key_variable(provider.name)}, or api_key or api_key_file"
        for provider in config.providers
        if provider.url.startswith("https:")
        and not (provider.forward_authorization or provider.sends_own_credentials(client_authorizes=False))
    ]
    server = config.server
    if not (server.public or server.auth_token or server.tokens):
        result.append("nobody guards the server: set server.auth_token, or server.public = true if that is meant")
    return result


def key_warnings(config: Config, sources: Sequence[KeySource], path: Path) -> list[str]:
    """Warnings about keys in the configuration file at `path`, and about files that others can read."""
    result = [
        f"provider {source.provider}: its key itself is in {path}; "
        f'say api_key = "${{VARIABLE}}" or api_key_file, or set {key_variable(source.provider)} instead'
        for source in sources
        if source.kind == "literal"
    ]
    if _open_to_others(path):
        result.append(f"{path} can be read by others; chmod 600 it if it holds a key")
    files = [provider.api_key_file for provider in config.providers if provider.api_key_file is not None]
    return result + [f"{file} can be read by others; chmod 600 it" for file in files if _open_to_others(Path(file))]


def quote_warnings(config: Config, keys: Mapping[str, str]) -> list[str]:
    """Warnings about keys and tokens that begin and end with a quote or have spaces around them; `keys` are from files.

    An env file's reader (that of Docker, say) may keep the quotes around a value.
    """
    secrets = [
        (f"provider {provider.name}: its key", keys.get(provider.name, provider.api_key))
        for provider in config.providers
    ]
    secrets.append(("server.auth_token", config.server.auth_token))
    secrets += [(f"server.tokens: the token of {token.name!r}", token.token) for token in config.server.tokens]
    return [
        f"{name} has quotes or spaces around it, which are sent and compared too; take them off in the env file, say"
        for name, secret in secrets
        if isinstance(secret, str) and (secret != secret.strip() or _QUOTED.fullmatch(secret.strip()))
    ]


def _costs_unknown(provider: Provider) -> bool:
    every = [provider.rates(model) for model in (*provider.models, *provider.aliases)] or [provider]
    return any(rates.input_rate is None or rates.output_rate is None for rates in every)


def _open_to_others(path: Path) -> bool:
    """Whether the mode lets others read a file; False on Windows, and for a missing file."""
    try:
        return os.name != "nt" and bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))
    except OSError:
        return False
