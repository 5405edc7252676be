"""The metrics that say how things stand: set from what is known, before they are read."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge

from arbstr_asgi.breaker import State
from arbstr_asgi.ledger import Snapshot

STATES: tuple[str, ...] = get_args(State)
_LEDGER = {
    "queue_entries": "Entries that are recorded and wait in memory.",
    "spilled_rows": "Rows that wait on disk.",
    "spill_bytes": "The size of the file that they are in.",
}
_LOSSES = {
    "degraded": "Rows that stand in the database without what it refused of them.",
    "lost": "Entries that could not be kept.",
    "late": "Answers that went out before their rows were durable.",
}
_Mode = Literal["livesum", "livemax"]


class Gauges:
    """One process's state. Where several share their metrics, sums over those that live; the oldest is the oldest."""

    def __init__(self, registry: CollectorRegistry, providers: tuple[str, ...]) -> None:
        def gauge(name: str, text: str, *labels: str, mode: _Mode = "livesum") -> Gauge:
            return Gauge(f"arbstr_{name}", text, labels, registry=registry, multiprocess_mode=mode)

        self._streams = gauge("streams_open", "Streams that a provider has begun to answer and that have not ended.")
        drains = gauge("drains", "Replies that are read on for clients that have left.", "provider")
        self._drains = {name: drains.labels(name) for name in providers}
        text = "1 for the state that a provider's breaker is in; of several workers, how many see it so."
        states = gauge("breaker_state", text, "provider", "state")
        self._states = {(name, state): states.labels(name, state) for name in providers for state in STATES}
        self._ledger = {name: gauge(f"ledger_{name}", text) for name, text in _LEDGER.items()}
        text = "For how long the oldest row has waited that is not in the database; 0: none waits."
        self._oldest = gauge("ledger_oldest_unwritten_seconds", text, mode="livemax")
        self._losses = {
            name: Counter(f"arbstr_ledger_{name}_total", text, registry=registry) for name, text in _LOSSES.items()
        }
        self._counted = dict.fromkeys(_LOSSES, 0)

    def set(
        self, snapshot: Snapshot, streams: int, drains: Mapping[str, int], states: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Say how things stand now."""
        self._streams.set(streams)
        for name, gauge in self._drains.items():
            gauge.set(drains.get(name, 0))
        for (name, state), gauge in self._states.items():
            gauge.set(states[name]["state"] == state)
        said = {
            "queue_entries": snapshot.queued,
            "spilled_rows": snapshot.spilled,
            "spill_bytes": snapshot.spill_bytes,
        }
        for name, value in said.items():
            self._ledger[name].set(value)
        self._oldest.set(snapshot.oldest_unwritten_seconds or 0)
        for name, counter in self._losses.items():
            count = getattr(snapshot, name)
            counter.inc(count - self._counted[name])
            self._counted[name] = count
