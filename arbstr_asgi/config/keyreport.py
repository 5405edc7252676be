"""What an operator is told of the providers' keys."""

from collections.abc import Mapping, Sequence

from arbstr_asgi.config.apikey import masked
from arbstr_asgi.config.config import Config
from arbstr_asgi.config.keysources import KeySource
from arbstr_asgi.keys import read_key_file


def keys_in_files(config: Config) -> tuple[dict[str, str], list[str]]:
    """The keys that are in files now, by provider, and a line for each file without one."""
    keys, unreadable = {}, []
    for provider in config.providers:
        if provider.api_key_file is not None:
            try:
                keys[provider.name] = read_key_file(provider.api_key_file)[1]
            except (OSError, ValueError) as error:
                what = error.strerror if isinstance(error, OSError) else "its first line is no key"
                unreadable.append(f"provider {provider.name}: {provider.api_key_file}: {what}")
    return keys, unreadable


def describe_keys(config: Config, sources: Sequence[KeySource], keys: Mapping[str, str]) -> list[str]:
    """Where each provider's key comes from, and its mask."""
    masks = [masked(provider.api_key) or masked(keys.get(provider.name)) for provider in config.providers]
    return [f"{source} {mask}" if mask else str(source) for source, mask in zip(sources, masks, strict=True)]
