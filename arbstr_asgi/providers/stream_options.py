"""Remembers which providers refuse the `stream_options` that we add to streaming requests.

A client must not be able to switch metering off for others: a refusal applies only to the end user whose request was
refused; a pair of provider and model that has accepted `stream_options` within the last hour is not marked; and once a
minute a request probes again.
"""

from collections.abc import Hashable
from typing import Any

TTL_SECONDS = 3600.0
SECONDS_BETWEEN_PROBES = 60.0
MAX_PAIRS = 1_000
MAX_REFUSALS = 10_000  # over all pairs and end users
MAX_SHOWN = 100


class _Unsupported:
    """A pair that refuses: since when, until when that is remembered, and when to probe again."""

    __slots__ = ("probe_at", "since", "until")

    def __init__(self, now: float) -> None:
        self.since = now
        self.until = self.probe_at = now


class StreamOptionsSupport:
    """Decides whether to inject. `now` is in monotonic seconds; `end_user` None is the one anonymous end user."""

    def __init__(self) -> None:
        self._unsupported: dict[tuple[str, str], _Unsupported] = {}
        self._refusals: dict[tuple[str, str, str | None], float] = {}
        self._supported: dict[tuple[str, str], float] = {}

    def should_inject(self, provider: str, model: str, end_user: str | None, now: float) -> bool:
        """Whether to inject: yes, unless refused for this end user lately; then only as a probe."""
        pair = self._unsupported.get((provider, model))
        refused_at = self._refusals.get((provider, model, end_user))
        if pair is None or refused_at is None or refused_at < pair.since or now >= refused_at + TTL_SECONDS:
            return True
        if now < pair.probe_at:
            return False
        pair.probe_at = now + SECONDS_BETWEEN_PROBES
        return True

    def is_supported(self, provider: str, model: str, now: float) -> bool:
        """Whether an injected request of this pair got a good reply within the last hour."""
        supported_at = self._supported.get((provider, model))
        return supported_at is not None and now < supported_at + TTL_SECONDS

    def mark_supported(self, provider: str, model: str, now: float) -> None:
        """An injected request got a 2xx: forget all refusals of this pair."""
        self._unsupported.pop((provider, model), None)
        _put(self._supported, (provider, model), now, MAX_PAIRS)

    def mark_refused(self, provider: str, model: str, end_user: str | None, now: float) -> bool:
        """An injected request was refused, and got a 2xx without. Returns whether this pair is newly marked."""
        if self.is_supported(provider, model, now):
            return False
        pair = self._unsupported.get((provider, model))
        is_new = pair is None or now >= pair.until
        if pair is None or is_new:
            pair = _Unsupported(now)
        pair.until, pair.probe_at = now + TTL_SECONDS, now + SECONDS_BETWEEN_PROBES
        _put(self._unsupported, (provider, model), pair, MAX_PAIRS)
        _put(self._refusals, (provider, model, end_user), now, MAX_REFUSALS)
        return is_new

    def unsupported(self, now: float) -> list[dict[str, str]]:
        """The pairs marked as refusing, the newest first, at most 100."""
        pairs = [key for key, pair in reversed(self._unsupported.items()) if now < pair.until]
        return [{"provider": provider, "model": model} for provider, model in pairs[:MAX_SHOWN]]


def _put(entries: dict[Any, Any], key: Hashable, value: object, limit: int) -> None:
    """Store as the newest of at most `limit` entries; the oldest is evicted."""
    entries.pop(key, None)
    entries[key] = value
    if len(entries) > limit:
        del entries[next(iter(entries))]
