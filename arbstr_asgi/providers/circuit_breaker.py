"""Which providers have failed lately, and when they are tried again."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from arbstr_asgi.providers.routing import Candidate

State = Literal["closed", "open", "half_open"]


class BreakerTicket:
    """One attempt at a provider, in whose name its end is reported."""

    __slots__ = ("final", "generation")

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.final = False


class CircuitBreaker:
    """Opens after `threshold` failures in a row, and after `open_seconds` lets one attempt in `lease_seconds` probe.

    `now` is seconds of a clock that never goes back. Nothing waits here and nothing need be reported: states follow
    from the time alone, and a probe that is never heard of again loses its lease. An era ends when the breaker opens
    and when it closes; what is reported of an attempt of an earlier era is ignored. Of each attempt the first final
    report counts: `succeeded`, `failed` or `abandoned`.
    """

    def __init__(self, *, threshold: int = 3, open_seconds: float = 30.0, lease_seconds: float = 30.0) -> None:
        self.failures = 0
        """How many there were in a row."""
        self.opened_at: float | None = None
        """When it opened or, if a probe has failed since, when that failed; None: it is closed."""
        self._threshold = threshold
        self._open_seconds = open_seconds
        self._lease_seconds = lease_seconds
        self._generation = 0
        self._probe: BreakerTicket | None = None
        self._lease_ends = 0.0

    def state(self, now: float) -> State:
        """Closed: in use. Open: to be left alone. Half-open: to be probed."""
        if self.opened_at is None:
            return "closed"
        return "open" if now < self.opened_at + self._open_seconds else "half_open"

    def available(self, now: float) -> bool:
        """Whether it is closed, or half-open without a probe whose lease still runs."""
        if self.opened_at is None:
            return True
        return self.state(now) == "half_open" and (self._probe is None or now >= self._lease_ends)

    def acquire(self, now: float) -> BreakerTicket:
        """The permit for an attempt that begins, whatever the state; the probe's lease with it where that is free."""
        ticket = BreakerTicket(self._generation)
        if self.opened_at is not None and self.available(now):
            self._probe, self._lease_ends = ticket, now + self._lease_seconds
        return ticket

    def mark_started(self, ticket: BreakerTicket, now: float) -> None:
        """It has begun to answer well. That closes the breaker, to open at the next failure unless one succeeds."""
        if self.opened_at is not None and self._is_current(ticket):
            self._close(ticket, self._threshold - 1)

    def mark_success(self, ticket: BreakerTicket, now: float) -> None:
        """It has answered, wholly."""
        if self._finalize(ticket):
            if self.opened_at is not None:
                self._close(ticket, 0)
            self.failures = 0

    def mark_failure(self, ticket: BreakerTicket, now: float) -> None:
        """It has not answered, or not wholly, and that is its own fault."""
        if not self._finalize(ticket):
            return
        self.failures += 1
        if ticket is self._probe or (self.opened_at is None and self.failures >= self._threshold):
            self.opened_at, self._probe = now, None
            self._generation += 1

    def mark_ignored(self, ticket: BreakerTicket, now: float) -> None:
        """Nothing was learned of it: the client left, or was in the wrong."""
        if self._finalize(ticket) and ticket is self._probe:
            self._probe = None

    def _is_current(self, ticket: BreakerTicket) -> bool:
        return not ticket.final and ticket.generation == self._generation

    def _finalize(self, ticket: BreakerTicket) -> bool:
        counts = self._is_current(ticket)
        ticket.final = True
        return counts

    def _close(self, ticket: BreakerTicket, failures: int) -> None:
        self.opened_at, self._probe, self.failures = None, None, failures
        self._generation += 1
        ticket.generation = self._generation  # alone of all before: how it ends is the newest that is known


class CircuitBreakers:
    """The breakers of all providers, by name."""

    def __init__(
        self, names: Iterable[str], *, threshold: int = 3, open_seconds: float = 30.0, lease_seconds: float = 30.0
    ) -> None:
        self._all = {
            name: CircuitBreaker(threshold=threshold, open_seconds=open_seconds, lease_seconds=lease_seconds)
            for name in names
        }

    def get(self, name: str) -> CircuitBreaker:
        """The breaker of the provider `name`."""
        return self._all[name]

    def choose(self, candidates: Sequence[Candidate], now: float) -> Candidate:
        """The first of at least one candidate that is available; if none is, the one that has been open longest."""
        for candidate in candidates:
            if self._all[candidate.provider.name].available(now):
                return candidate
        return min(candidates, key=lambda candidate: self._all[candidate.provider.name].opened_at or 0.0)

    def states(self, now: float) -> dict[str, dict[str, Any]]:
        """The state and the failures in a row of every provider."""
        return {
            name: {"state": breaker.state(now), "failure_count": breaker.failures}
            for name, breaker in self._all.items()
        }
