"""Circuit breakers: stop asking a provider that fails, and probe it later."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from arbstr_asgi.providers.routing import Candidate

State = Literal["closed", "open", "half_open"]


class BreakerTicket:
    """One attempt at a provider, with which its result is reported."""

    __slots__ = ("final", "generation")

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.final = False


class CircuitBreaker:
    """Opens after `threshold` failures in a row; after `open_seconds` lets one probe through per `lease_seconds`.

    `now` is in monotonic seconds. There is no timer: the state follows from the time, and a probe that reports nothing
    loses its lease. A generation ends when the breaker opens or closes; reports of attempts of an earlier generation
    are ignored. The first final report of an attempt counts: `mark_success`, `mark_failure` or `mark_ignored`.
    """

    def __init__(self, *, threshold: int = 3, open_seconds: float = 30.0, lease_seconds: float = 30.0) -> None:
        self.failures = 0
        """Consecutive failures."""
        self.opened_at: float | None = None
        """When it opened, or when the last probe failed; None: it is closed."""
        self._threshold = threshold
        self._open_seconds = open_seconds
        self._lease_seconds = lease_seconds
        self._generation = 0
        self._probe: BreakerTicket | None = None
        self._lease_ends = 0.0

    def state(self, now: float) -> State:
        """Closed: requests pass. Open: none. Half-open: one probe."""
        if self.opened_at is None:
            return "closed"
        return "open" if now < self.opened_at + self._open_seconds else "half_open"

    def available(self, now: float) -> bool:
        """Whether it is closed, or half-open without a probe under lease."""
        if self.opened_at is None:
            return True
        return self.state(now) == "half_open" and (self._probe is None or now >= self._lease_ends)

    def acquire(self, now: float) -> BreakerTicket:
        """A ticket for an attempt, in any state; it becomes the probe if the breaker is half-open and has none."""
        ticket = BreakerTicket(self._generation)
        if self.opened_at is not None and self.available(now):
            self._probe, self._lease_ends = ticket, now + self._lease_seconds
        return ticket

    def mark_started(self, ticket: BreakerTicket, now: float) -> None:
        """A good response has begun: close the breaker; the next failure opens it again, unless after a success."""
        if self.opened_at is not None and self._is_current(ticket):
            self._close(ticket, self._threshold - 1)

    def mark_success(self, ticket: BreakerTicket, now: float) -> None:
        """The response is complete."""
        if self._finalize(ticket):
            if self.opened_at is not None:
                self._close(ticket, 0)
            self.failures = 0

    def mark_failure(self, ticket: BreakerTicket, now: float) -> None:
        """No response, or an incomplete one, by fault of the provider."""
        if not self._finalize(ticket):
            return
        self.failures += 1
        if ticket is self._probe or (self.opened_at is None and self.failures >= self._threshold):
            self.opened_at, self._probe = now, None
            self._generation += 1

    def mark_ignored(self, ticket: BreakerTicket, now: float) -> None:
        """The attempt says nothing about the provider: the client left, or its request was wrong."""
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
        ticket.generation = self._generation  # this attempt alone stays current


class CircuitBreakers:
    """The circuit breakers of all providers, by name."""

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
        """The first available candidate; if none is, the one whose breaker has been open longest."""
        for candidate in candidates:
            if self._all[candidate.provider.name].available(now):
                return candidate
        return min(candidates, key=lambda candidate: self._all[candidate.provider.name].opened_at or 0.0)

    def states(self, now: float) -> dict[str, dict[str, Any]]:
        """State and consecutive failures of every provider."""
        return {
            name: {"state": breaker.state(now), "failure_count": breaker.failures}
            for name, breaker in self._all.items()
        }
