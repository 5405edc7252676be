"""What has been learned of providers that refuse the `stream_options` which we add.

A client must not be able to switch metering off for others, so what is learned holds only for the end user whose own
request taught it; a pair of provider and model that has taken `stream_options` lately teaches nothing; and once a
minute a request asks again all the same."""

from collections.abc import Hashable
from typing import Any

REMEMBERED_SECONDS = 3600.0
SECONDS_BETWEEN_PROBES = 60.0
MAX_PAIRS = 1_000
MAX_LESSONS = 10_000  # over all pairs and end users
MAX_SHOWN = 100


class _Unsupported:
    """A pair that has refused: since when, who learned it last, and when it is asked again."""

    __slots__ = ("probe_at", "since", "until")

    def __init__(self, now: float) -> None:
        self.since = now
        self.until = self.probe_at = now


class StreamOptionsSupport:
    """Says whether to inject. `now` is seconds of a clock that never goes back; None is the one anonymous end user."""

    def __init__(self) -> None:
        self._refusing: dict[tuple[str, str], _Unsupported] = {}
        self._lessons: dict[tuple[str, str, str | None], float] = {}
        self._accepted: dict[tuple[str, str], float] = {}

    def should_inject(self, provider: str, model: str, end_user: str | None, now: float) -> bool:
        """Whether to inject into a request: unless its end user has learned better, and then as a probe."""
        pair = self._refusing.get((provider, model))
        learned = self._lessons.get((provider, model, end_user))
        if pair is None or learned is None or learned < pair.since or now >= learned + REMEMBERED_SECONDS:
            return True
        if now < pair.probe_at:
            return False
        pair.probe_at = now + SECONDS_BETWEEN_PROBES
        return True

    def mark_supported(self, provider: str, model: str, now: float) -> None:
        """An injected request got a 2xx: the pair is good, whatever anybody has learned."""
        self._refusing.pop((provider, model), None)
        _put(self._accepted, (provider, model), now, MAX_PAIRS)

    def mark_refused(self, provider: str, model: str, end_user: str | None, now: float) -> bool:
        """An injected request was refused for it, and got a 2xx without. Returns whether that is news."""
        good = self._accepted.get((provider, model))
        if good is not None and now < good + REMEMBERED_SECONDS:
            return False
        pair = self._refusing.get((provider, model))
        news = pair is None or now >= pair.until
        if pair is None or news:
            pair = _Unsupported(now)
        pair.until, pair.probe_at = now + REMEMBERED_SECONDS, now + SECONDS_BETWEEN_PROBES
        _put(self._refusing, (provider, model), pair, MAX_PAIRS)
        _put(self._lessons, (provider, model, end_user), now, MAX_LESSONS)
        return news

    def unsupported(self, now: float) -> list[dict[str, str]]:
        """The pairs that somebody is not injected for, the newest first, at most 100."""
        found = [key for key, pair in reversed(self._refusing.items()) if now < pair.until]
        return [{"provider": provider, "model": model} for provider, model in found[:MAX_SHOWN]]


def _put(memory: dict[Any, Any], key: Hashable, value: object, limit: int) -> None:
    """Keep `value` as the newest of at most `limit`."""
    memory.pop(key, None)
    memory[key] = value
    if len(memory) > limit:
        del memory[next(iter(memory))]
