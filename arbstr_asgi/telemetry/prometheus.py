"""Prometheus metrics of finished calls. Needs prometheus-client."""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from arbstr_asgi._utils import Throttle
from arbstr_asgi.config.config import Config
from arbstr_asgi.database.records import AttemptEntry, LedgerEntry
from arbstr_asgi.errors import ServerError
from arbstr_asgi.ledger.status import Snapshot
from arbstr_asgi.providers.circuit_breaker import State

logger = logging.getLogger("arbstr_asgi")
OTHER = "other"
NONE = "none"
STATES: tuple[str, ...] = get_args(State)
READ_ATTEMPTS = 3  # for files that other processes are writing
LOG_INTERVAL = 60.0
BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)  # seconds
_PREFIX = "arbstr_"
_REASONS = {
    400: "malformed",
    401: "unauthorised",
    403: "forbidden",
    408: "too_slow",
    413: "too_large",
    415: "unsupported",
    503: "unavailable",
}
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
_Children = tuple[Callable[[], None], Callable[[float], None], Callable[[float], None]]


class Metrics:
    """Counts calls in a registry of its own. Methods called during a call never raise."""

    def __init__(self, config: Config) -> None:
        registry = self._registry = CollectorRegistry()
        self._providers = tuple(provider.name for provider in config.providers)
        self._labels = Labels(config)
        self._gauges: Gauges | None = None
        self._log_throttle = Throttle(LOG_INTERVAL)
        call_labels = ("provider", "model", "policy", "streaming", "end_reason", "status", "usage_source")
        self._requests = Counter(
            "arbstr_requests_total",
            "Calls that have ended; status is the class of the client's.",
            call_labels,
            registry=registry,
        )
        usage_labels = ("provider", "model", "usage_source")
        self._tokens = Counter(
            "arbstr_tokens_total", "Tokens, as far as they are known.", (*usage_labels, "type"), registry=registry
        )
        self._cost = Counter(
            "arbstr_cost_sats_total", "Sats, as far as costs are known.", usage_labels, registry=registry
        )
        timing_labels = ("provider", "streaming")
        self._duration = Histogram(
            "arbstr_request_duration_seconds",
            "From a call's arrival to its end, with what was read on for clients that have left.",
            timing_labels,
            registry=registry,
            buckets=BUCKETS,
        )
        self._first_byte = Histogram(
            "arbstr_time_to_first_byte_seconds",
            "From a call's arrival to the beginning of the provider's answer.",
            timing_labels,
            registry=registry,
            buckets=BUCKETS,
        )
        self._attempts = Counter(
            "arbstr_attempts_total", "Requests to providers.", ("provider", "outcome"), registry=registry
        )
        self._refused = Counter(
            "arbstr_refused_total", "Requests that were refused and have no row.", ("reason",), registry=registry
        )
        # Caches of label children: looking one up takes longer than incrementing it.
        self._children: dict[tuple[object, ...], Counter] = {}
        self._calls: dict[tuple[object, ...], _Children] = {}

    @property
    def shared(self) -> bool:
        """Whether several processes share their metrics, so that gauges have to be set before another exposes them."""
        return shared()

    def on_finish(self, entry: LedgerEntry, seconds: float) -> None:
        """A call has ended after `seconds`."""
        try:
            self._finished(entry, seconds)
        except Exception as error:  # noqa: BLE001 - counting must never break the call that it counts
            self._failed(error)

    def estimated(self, entry: LedgerEntry) -> None:
        """The usage of a call that was counted without any has been estimated."""
        try:
            self._count_usage(entry)
        except Exception as error:  # noqa: BLE001
            self._failed(error)

    def on_refused(self, status: int) -> None:
        """A request was refused with `status`, without a row."""
        try:
            self._child(self._refused, refusal_of(status)).inc()
        except Exception as error:  # noqa: BLE001
            self._failed(error)

    def state(
        self, snapshot: Snapshot, streams: int, drains: Mapping[str, int], states: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Set the gauges."""
        try:
            if self._gauges is None:
                self._gauges = Gauges(self._registry, self._providers)
            self._gauges.set(snapshot, streams, drains, states)
        except Exception as error:  # noqa: BLE001
            self._failed(error)

    def exposition(self) -> tuple[bytes, str]:
        """All metrics in Prometheus' text format, and its media type. Takes milliseconds. Raises ServerError."""
        return render(self._registry)

    def _finished(self, entry: LedgerEntry, seconds: float) -> None:
        labels = (entry.provider, self._labels.model(entry.model), entry.policy, entry.streaming, entry.end_reason)
        key = (*labels, status_of(entry), entry.usage_source)
        children = self._calls.get(key)
        if children is None:
            children = self._calls[key] = self._call_children(entry)
        count, duration, first_byte = children
        count()
        duration(seconds)
        if entry.latency_ms is not None:
            first_byte(entry.latency_ms / 1000)
        for attempt in entry.tries:
            self._child(self._attempts, attempt.provider, outcome_of(attempt)).inc()
        self._count_usage(entry)

    def _call_children(self, entry: LedgerEntry) -> _Children:
        provider, model, streaming = entry.provider or NONE, self._labels.model(entry.model), _flag(entry.streaming)
        labels = (provider, model, entry.policy or NONE, streaming, entry.end_reason, status_of(entry))
        return (
            self._requests.labels(*labels, entry.usage_source).inc,
            self._duration.labels(provider, streaming).observe,
            self._first_byte.labels(provider, streaming).observe,
        )

    def _count_usage(self, entry: LedgerEntry) -> None:
        usage_labels = (entry.provider or NONE, self._labels.model(entry.model), entry.usage_source)
        if entry.input_tokens is not None:
            self._child(self._tokens, *usage_labels, "input").inc(entry.input_tokens)
        if entry.output_tokens is not None:
            self._child(self._tokens, *usage_labels, "output").inc(entry.output_tokens)
        if entry.cost_sats is not None:
            self._child(self._cost, *usage_labels).inc(float(entry.cost_sats))

    def _child(self, metric: Counter, *labels: str) -> Counter:
        key = (metric, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child

    def _failed(self, error: Exception) -> None:
        if self._log_throttle.allow():
            logger.error("metrics failed with %s", type(error).__name__)


def _flag(value: bool) -> str:
    return "true" if value else "false"


class Labels:
    """Limits label values to names of the configuration, since clients can invent any number of models."""

    def __init__(self, config: Config) -> None:
        self._models = frozenset(
            name
            for provider in config.providers
            for name in (*provider.models, *provider.aliases, *provider.model_rates)
        )

    def model(self, model: str) -> str:
        """The requested model if it is configured, else `other`."""
        return model if model in self._models else OTHER


def status_of(entry: LedgerEntry) -> str:
    """The class of the status sent to the client, `none` where it left before."""
    if entry.error_status is not None:
        return f"{entry.error_status // 100}xx"
    return NONE if entry.latency_ms is None else "2xx"


def outcome_of(attempt: AttemptEntry) -> str:
    """Result of an attempt: `ok`, `broken` (2xx with an error in the body), a class of status, `no_answer`."""
    if attempt.status is None:
        return "no_answer"
    if not 200 <= attempt.status < 300:
        return f"{attempt.status // 100}xx" if 100 <= attempt.status < 600 else OTHER
    return "ok" if attempt.error_message is None else "broken"


def refusal_of(status: int) -> str:
    """The reason label of a request that was refused without a row, by status."""
    return _REASONS.get(status, OTHER)


class Gauges:
    """Gauges of one process; those of several live processes are summed, ages are their maximum."""

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
        """Set all gauges, and raise the counters of losses."""
        self._streams.set(streams)
        for name, gauge in self._drains.items():
            gauge.set(drains.get(name, 0))
        for (name, state), gauge in self._states.items():
            gauge.set(states[name]["state"] == state)
        values_by_name = {
            "queue_entries": snapshot.queued,
            "spilled_rows": snapshot.spilled,
            "spill_bytes": snapshot.spill_bytes,
        }
        for name, value in values_by_name.items():
            self._ledger[name].set(value)
        self._oldest.set(snapshot.oldest_unwritten_seconds or 0)
        for name, counter in self._losses.items():
            count = getattr(snapshot, name)
            counter.inc(count - self._counted[name])
            self._counted[name] = count


def shared() -> bool:
    """Whether prometheus-client is in multiprocess mode."""
    return bool(getattr(values.ValueClass, "_multiprocess", False))


def render(registry: CollectorRegistry) -> tuple[bytes, str]:
    """The exposition text and its media type. Raises ServerError where the shared files can not be read."""
    if not shared():
        return generate_latest(_OwnMetrics(registry)), CONTENT_TYPE_LATEST
    for _ in range(READ_ATTEMPTS):
        try:
            return generate_latest(_OwnMetrics(_multiprocess_collector())), CONTENT_TYPE_LATEST
        except Exception:  # noqa: BLE001, S112 - a file that has just begun is too short, and may raise anything
            continue
    raise ServerError("The metrics can't be read.", code="metrics_unavailable")


def _multiprocess_collector() -> MultiProcessCollector:
    return MultiProcessCollector(None)  # type: ignore[no-untyped-call]


class _OwnMetrics(Collector):
    """Only our metrics, since a host may keep its own in the same folder; without `_created` series."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def collect(self) -> Iterator[Metric]:
        for metric in self._inner.collect():
            if metric.name.startswith(_PREFIX):
                metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
                yield metric
