"""How many provider streams are read on for clients that have left."""

from collections import Counter
from typing import Any

from arbstr_asgi.config.provider import Drain


class DrainLimiter:
    """Counts drains at once, per provider and of each per end user, against the provider's caps."""

    def __init__(self) -> None:
        self._providers: Counter[str] = Counter()
        self._users: Counter[tuple[str, str]] = Counter()
        self._closed = False

    def close(self) -> None:
        """Have room for no more: the server ends."""
        self._closed = True

    @property
    def active(self) -> int:
        """How many there are over all."""
        return self._providers.total()

    @property
    def by_provider(self) -> dict[str, int]:
        """How many there are of each provider that has any."""
        return dict(self._providers)

    def has_room(self, provider: str, end_user: str | None, caps: Drain) -> bool:
        """Whether one more is within the caps. Callers without a name share the overall cap only."""
        if self._closed or self._providers[provider] >= caps.at_once:
            return False
        return not end_user or self._users[provider, end_user] < caps.per_end_user

    def begin(self, provider: str, end_user: str | None) -> None:
        """Take a place."""
        self._providers[provider] += 1
        if end_user:
            self._users[provider, end_user] += 1

    def end(self, provider: str, end_user: str | None) -> None:
        """Give the place back."""
        _less(self._providers, provider)
        if end_user:
            _less(self._users, (provider, end_user))


def _less(counts: Counter[Any], key: object) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
