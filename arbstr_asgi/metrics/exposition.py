"""Metrics as text for Prometheus: those of this process, or of all that keep theirs in one folder."""

from collections.abc import Iterator
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest, values
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from arbstr_asgi.errors import ServerError

ATTEMPTS = 3  # to read files that others are writing
_OURS = "arbstr_"


def shared() -> bool:
    """Whether prometheus-client is in its multiprocess mode."""
    return bool(getattr(values.ValueClass, "_multiprocess", False))


def exposed(registry: CollectorRegistry) -> tuple[bytes, str]:
    """The text and its media type. Raises ServerError where the folder of several processes can't be read."""
    if not shared():
        return generate_latest(_Ours(registry)), CONTENT_TYPE_LATEST
    for _ in range(ATTEMPTS):
        try:
            return generate_latest(_Ours(_of_all())), CONTENT_TYPE_LATEST
        except Exception:  # noqa: BLE001, S112 - a file that has just begun is too short, and may raise anything
            continue
    raise ServerError("The metrics can't be read.", code="metrics_unavailable")


def _of_all() -> MultiProcessCollector:
    return MultiProcessCollector(None)  # type: ignore[no-untyped-call]


class _Ours(Collector):
    """What is ours in it, since a host keeps its own in the same folder; without the times when series began."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def collect(self) -> Iterator[Metric]:
        for metric in self._inner.collect():
            if metric.name.startswith(_OURS):
                metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
                yield metric
