"""The attempts of one call, as they begin and end."""

from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal

import msgspec

from arbstr_asgi.entry import AttemptEntry


class AttemptLog:
    """What has been asked of which provider. `arrival` is when the call came, `elapsed_ms` counts from there."""

    def __init__(self, arrival: datetime, elapsed_ms: Callable[[], int]) -> None:
        self._arrival = arrival
        self._elapsed_ms = elapsed_ms
        self._finished: list[AttemptEntry] = []
        self._running: AttemptEntry | None = None
        self._began_ms = 0
        self.sent = False
        """Whether the provider may have anything of the one that goes on."""

    def __len__(self) -> int:
        return len(self._finished) + (self._running is not None)

    @property
    def all(self) -> tuple[AttemptEntry, ...]:
        """Those that have ended and the one that goes on, if one does."""
        return (*self._finished, *(() if self._running is None else (self._running,)))

    @property
    def failures_by_provider(self) -> dict[str, int]:
        """How many have failed before the one that goes on, by provider, in the order of their first."""
        found: dict[str, int] = {}
        for attempt in self._finished:
            found[attempt.provider] = found.get(attempt.provider, 0) + 1
        return found

    @property
    def is_running(self) -> bool:
        """Whether one has not ended."""
        return self._running is not None

    @property
    def answered_well(self) -> bool:
        """Whether the one that goes on has a 2xx."""
        status = None if self._running is None else self._running.status
        return status is not None and 200 <= status < 300

    @property
    def spent_sats(self) -> Decimal | None:
        """What those that have ended are known to have cost; None where nothing is known."""
        known = [attempt.cost_sats for attempt in self._finished if attempt.cost_sats is not None]
        return sum(known, Decimal(0)) if known else None

    def begin(self, provider: str, model: str) -> None:
        """A request is about to go out."""
        self.sent = False
        self._began_ms = self._elapsed_ms()
        sent = self._arrival + timedelta(milliseconds=self._began_ms)
        self._running = AttemptEntry(number=len(self) + 1, provider=provider, timestamp=sent, model=model)

    def mark_answered(self, status: int) -> int:
        """Its answer has begun; returns the milliseconds since the call came."""
        assert self._running is not None
        elapsed_ms = self._elapsed_ms()
        latency_ms = elapsed_ms - self._began_ms
        self._running = msgspec.structs.replace(self._running, status=status, latency_ms=latency_ms)
        return elapsed_ms

    def mark_failed(
        self,
        reason: str,
        *,
        maybe_billed: bool,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        cost_sats: Decimal | None = None,
    ) -> None:
        """It has failed, and another may follow."""
        assert self._running is not None
        failed = msgspec.structs.replace(
            self._timed(self._running),
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cost_sats=cost_sats,
            maybe_billed=maybe_billed,
            error_message=reason,
            revision=1,
        )
        self._finished.append(failed)
        self._running = None

    def finish(
        self,
        *,
        maybe_billed: bool,
        error_message: str | None,
        input_tokens: int | None,
        output_tokens: int | None,
        cost_sats: Decimal | None,
    ) -> tuple[AttemptEntry, ...]:
        """All of them, were the one that goes on to end like this."""
        if self._running is None:
            return tuple(self._finished)
        if error_message is not None:
            self._running = self._timed(self._running)
        last = msgspec.structs.replace(
            self._running,
            maybe_billed=maybe_billed,
            error_message=error_message,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cost_sats=cost_sats,
            revision=1,
        )
        return (*self._finished, last)

    def _timed(self, attempt: AttemptEntry) -> AttemptEntry:
        """With the time that it took to fail, where there was no answer."""
        if attempt.latency_ms is not None:
            return attempt
        return msgspec.structs.replace(attempt, latency_ms=self._elapsed_ms() - self._began_ms)


def corrected(tries: tuple[AttemptEntry, ...]) -> tuple[AttemptEntry, ...]:
    """The same as a state that replaces one that was taken for the last."""
    return tuple(msgspec.structs.replace(attempt, revision=2) for attempt in tries)
