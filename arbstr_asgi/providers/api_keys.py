"""Resolves each provider's API key at the time of a request, and describes keys for operators."""

import inspect
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import monotonic, time_ns

from arbstr_asgi.config.api_keys import KeySource, is_key, masked
from arbstr_asgi.config.config import Config
from arbstr_asgi.config.provider import Provider
from arbstr_asgi.errors import ProviderKeyError

logger = logging.getLogger("arbstr_asgi")
MAX_BYTES = 64 * 1024  # of a key file
# A file changed this recently may change again with the same timestamps, on coarse clocks and file systems.
STABLE_AFTER_NS = 2_000_000_000
WARNING_INTERVAL = 60.0


Identity = tuple[int, ...]


class InvalidApiKey(ValueError):
    """The key is not a non-empty string of printable ASCII characters."""


class ApiKeys:
    """Resolves API keys, with a cache of key files."""

    def __init__(self) -> None:
        self._cache: dict[str, tuple[Identity | None, str]] = {}
        self._warned: dict[str, float] = {}

    async def get(self, provider: Provider) -> str | None:
        """The key to send with a request now; None for a provider without one. Raises ProviderKeyError."""
        if provider.api_key_file is not None:
            return self._read_file_key(provider, provider.api_key_file)
        if provider.api_key is None or isinstance(provider.api_key, str):
            return provider.api_key
        return await _call_key_function(provider, provider.api_key)

    def _read_file_key(self, provider: Provider, path: str) -> str:
        cached = self._cache.get(path)
        try:
            if cached is None or cached[0] != _identity(os.stat(path)):
                cached = self._cache[path] = read_key_file(path)
            return cached[1]
        except Exception as error:  # noqa: BLE001 - also what is no file, or no text
            reason = type(error).__name__
        if cached is None:
            logger.error("provider %s: its key file can't be used: %s", provider.name, reason)
            raise ProviderKeyError  # outside of the handler: its error may hold file content
        self._warn(provider, reason)
        return cached[1]

    def _warn(self, provider: Provider, reason: str) -> None:
        now = monotonic()
        if now - self._warned.get(provider.name, -WARNING_INTERVAL) >= WARNING_INTERVAL:
            self._warned[provider.name] = now
            logger.warning(
                "provider %s: its key file can't be used (%s); the key that was last read is still sent",
                provider.name,
                reason,
            )


def read_key_file(path: str) -> tuple[Identity | None, str]:
    """The first non-blank line of a file, and the identity of its version (None while it was changed just now).

    Raises OSError, or ValueError for an invalid key.
    """
    with open(path, "rb", opener=_open_nonblocking) as file:
        facts = os.fstat(file.fileno())  # before the content, so that a later change is detected
        if not stat.S_ISREG(facts.st_mode):
            raise InvalidApiKey
        key = file.read(MAX_BYTES).decode("utf-8-sig").strip().partition("\n")[0].strip()
    stable = time_ns() - max(facts.st_mtime_ns, facts.st_ctime_ns) > STABLE_AFTER_NS
    return _identity(facts) if stable else None, _check_key(key)


def _open_nonblocking(path: str, flags: int) -> int:
    """Without O_NONBLOCK opening a named pipe would block until somebody writes."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _identity(facts: os.stat_result) -> Identity:
    return facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size, facts.st_ino, facts.st_dev


def _check_key(key: object) -> str:
    if not is_key(key):
        raise InvalidApiKey
    return key


async def _call_key_function(provider: Provider, key_function: Callable[[], str | Awaitable[str]]) -> str:
    try:
        key = key_function()
        if inspect.isawaitable(key):
            key = await key
        return _check_key(key)
    except Exception as error:  # noqa: BLE001 - the host's code may raise anything
        reason = type(error).__name__
    # Log the type only, and raise outside of the handler: the error may hold the key.
    logger.error("provider %s: its function for the key failed: %s", provider.name, reason)
    raise ProviderKeyError


def keys_in_files(config: Config) -> tuple[dict[str, str], list[str]]:
    """The keys in files, by provider, and a message for each file without a valid one."""
    keys, unreadable = {}, []
    for provider in config.providers:
        if provider.api_key_file is not None:
            try:
                keys[provider.name] = read_key_file(provider.api_key_file)[1]
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else "its first line is no key"
                unreadable.append(f"provider {provider.name}: {provider.api_key_file}: {reason}")
    return keys, unreadable


def describe_keys(config: Config, sources: Sequence[KeySource], keys: Mapping[str, str]) -> list[str]:
    """The source of each provider's key, and the masked key."""
    masks = [masked(provider.api_key) or masked(keys.get(provider.name)) for provider in config.providers]
    return [f"{source} {mask}" if mask else str(source) for source, mask in zip(sources, masks, strict=True)]
