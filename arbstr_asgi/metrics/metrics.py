"""Metrics for Prometheus: what is counted of each finished call. Imported only where prometheus-client is installed."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram

from arbstr_asgi.config.config import Config
from arbstr_asgi.entry import LedgerEntry
from arbstr_asgi.ledger import Snapshot
from arbstr_asgi.ledger.quiet import Throttle
from arbstr_asgi.metrics.exposition import exposed, shared
from arbstr_asgi.metrics.gauges import Gauges
from arbstr_asgi.metrics.labels import NONE, Labels, outcome_of, refusal_of, status_of

logger = logging.getLogger("arbstr_asgi")

BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)  # seconds
SECONDS_BETWEEN_COMPLAINTS = 60.0
_Children = tuple[Callable[[], None], Callable[[float], None], Callable[[float], None]]


class Metrics:
    """Counts calls in a registry of its own. What is called while a call goes on never raises."""

    def __init__(self, config: Config) -> None:
        registry = self._registry = CollectorRegistry()
        self._providers = tuple(provider.name for provider in config.providers)
        self._labels = Labels(config)
        self._gauges: Gauges | None = None
        self._quiet = Throttle(SECONDS_BETWEEN_COMPLAINTS)
        call = ("provider", "model", "policy", "streaming", "end_reason", "status", "usage_source")
        self._requests = Counter(
            "arbstr_requests_total",
            "Calls that have ended; status is the class of the client's.",
            call,
            registry=registry,
        )
        of_usage = ("provider", "model", "usage_source")
        self._tokens = Counter(
            "arbstr_tokens_total", "Tokens, as far as they are known.", (*of_usage, "type"), registry=registry
        )
        self._cost = Counter("arbstr_cost_sats_total", "Sats, as far as costs are known.", of_usage, registry=registry)
        timed = ("provider", "streaming")
        self._duration = Histogram(
            "arbstr_request_duration_seconds",
            "From a call's arrival to its end, with what was read on for clients that have left.",
            timed,
            registry=registry,
            buckets=BUCKETS,
        )
        self._first_byte = Histogram(
            "arbstr_time_to_first_byte_seconds",
            "From a call's arrival to the beginning of the provider's answer.",
            timed,
            registry=registry,
            buckets=BUCKETS,
        )
        self._attempts = Counter(
            "arbstr_attempts_total", "Requests to providers.", ("provider", "outcome"), registry=registry
        )
        self._refused = Counter(
            "arbstr_refused_total", "Requests that were refused and have no row.", ("reason",), registry=registry
        )
        # To find a child by its labels takes longer than all that is done with it then.
        self._children: dict[tuple[object, ...], Counter] = {}
        self._calls: dict[tuple[object, ...], _Children] = {}

    @property
    def shared(self) -> bool:
        """Whether several processes keep their metrics in one folder, so that gauges must be set before others read."""
        return shared()

    def finished(self, entry: LedgerEntry, seconds: float) -> None:
        """A call has ended, `seconds` after it came."""
        try:
            self._finished(entry, seconds)
        except Exception as error:  # noqa: BLE001 - counting must never break the call that it counts
            self._failed(error)

    def estimated(self, entry: LedgerEntry) -> None:
        """The usage of a call that has been counted without any has been estimated."""
        try:
            self._used(entry)
        except Exception as error:  # noqa: BLE001
            self._failed(error)

    def refused(self, status: int) -> None:
        """A request was refused with `status` before it was a call."""
        try:
            self._child(self._refused, refusal_of(status)).inc()
        except Exception as error:  # noqa: BLE001
            self._failed(error)

    def state(
        self, snapshot: Snapshot, streams: int, drains: Mapping[str, int], states: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Say how things stand."""
        try:
            if self._gauges is None:
                self._gauges = Gauges(self._registry, self._providers)
            self._gauges.set(snapshot, streams, drains, states)
        except Exception as error:  # noqa: BLE001
            self._failed(error)

    def exposition(self) -> tuple[bytes, str]:
        """All metrics in Prometheus' text format, and its media type. Takes milliseconds. Raises ServerError."""
        return exposed(self._registry)

    def _finished(self, entry: LedgerEntry, seconds: float) -> None:
        facts = (entry.provider, self._labels.model(entry.model), entry.policy, entry.streaming, entry.end_reason)
        key = (*facts, status_of(entry), entry.usage_source)
        children = self._calls.get(key)
        if children is None:
            children = self._calls[key] = self._of_call(entry)
        count, duration, first_byte = children
        count()
        duration(seconds)
        if entry.latency_ms is not None:
            first_byte(entry.latency_ms / 1000)
        for attempt in entry.tries:
            self._child(self._attempts, attempt.provider, outcome_of(attempt)).inc()
        self._used(entry)

    def _of_call(self, entry: LedgerEntry) -> _Children:
        provider, model, streaming = entry.provider or NONE, self._labels.model(entry.model), _flag(entry.streaming)
        facts = (provider, model, entry.policy or NONE, streaming, entry.end_reason, status_of(entry))
        return (
            self._requests.labels(*facts, entry.usage_source).inc,
            self._duration.labels(provider, streaming).observe,
            self._first_byte.labels(provider, streaming).observe,
        )

    def _used(self, entry: LedgerEntry) -> None:
        of_usage = (entry.provider or NONE, self._labels.model(entry.model), entry.usage_source)
        if entry.input_tokens is not None:
            self._child(self._tokens, *of_usage, "input").inc(entry.input_tokens)
        if entry.output_tokens is not None:
            self._child(self._tokens, *of_usage, "output").inc(entry.output_tokens)
        if entry.cost_sats is not None:
            self._child(self._cost, *of_usage).inc(float(entry.cost_sats))

    def _child(self, metric: Counter, *labels: str) -> Counter:
        key = (metric, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child

    def _failed(self, error: Exception) -> None:
        if self._quiet.allow():
            logger.error("metrics failed with %s", type(error).__name__)


def _flag(value: bool) -> str:
    return "true" if value else "false"
