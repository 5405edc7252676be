"""Shared Prometheus metrics of several workers: files in one folder, so that any worker exposes those of all.

The files of a worker are named after its number, which its replacement takes over: counters of a dead worker are kept,
and restarts create no more files.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from arbstr_asgi._utils import is_installed

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # read by prometheus-client
WORKER_NUMBER = "ARBSTR_WORKER_PLACE"


class MultiprocessMetrics:
    """The supervisor's side."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def environ(self, number: int) -> Mapping[str, str]:
        """The environment for the worker with this number."""
        if self._folder is None:
            return os.environ
        return {**os.environ, FOLDER: str(self._folder), WORKER_NUMBER: str(number)}

    def ended(self, number: int) -> None:
        """A worker has ended: delete its gauges of live values."""
        if self._folder is not None:
            for path in self._folder.glob(f"gauge_live*_{number}.db"):
                path.unlink(missing_ok=True)


@contextmanager
def multiprocess_metrics() -> Iterator[MultiprocessMetrics]:
    """A temporary folder for the block, where prometheus-client is installed."""
    if not is_installed("prometheus_client"):
        yield MultiprocessMetrics(None)
        return
    with tempfile.TemporaryDirectory(prefix="arbstr-metrics-", ignore_cleanup_errors=True) as folder:
        yield MultiprocessMetrics(Path(folder))


def use_worker_number() -> None:
    """In a worker, before any metric is created: name its files by the worker number."""
    number = os.environ.get(WORKER_NUMBER)
    if number is not None and is_installed("prometheus_client"):
        from prometheus_client import values

        values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]
