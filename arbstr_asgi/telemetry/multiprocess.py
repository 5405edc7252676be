"""Where the workers of one server keep their metrics together, so that whichever is asked says those of all.

A worker's numbers are in files named after its place, which one that replaces it takes over: so a worker that died is
still counted, and no number of replacements makes more files."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from arbstr_asgi._utils import is_installed

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # prometheus-client's own name for it
WORKER_NUMBER = "ARBSTR_WORKER_PLACE"


class MultiprocessMetrics:
    """The supervisor's side."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def environ(self, number: int) -> Mapping[str, str]:
        """The environment of the worker in a place."""
        if self._folder is None:
            return os.environ
        return {**os.environ, FOLDER: str(self._folder), WORKER_NUMBER: str(number)}

    def ended(self, number: int) -> None:
        """A worker has ended: nothing is open in it any more."""
        if self._folder is not None:
            for path in self._folder.glob(f"gauge_live*_{number}.db"):
                path.unlink(missing_ok=True)


@contextmanager
def multiprocess_metrics() -> Iterator[MultiprocessMetrics]:
    """A temporary folder for the block, where there is something to be kept in it."""
    if not is_installed("prometheus_client"):
        yield MultiprocessMetrics(None)
        return
    with tempfile.TemporaryDirectory(prefix="arbstr-metrics-", ignore_cleanup_errors=True) as folder:
        yield MultiprocessMetrics(Path(folder))


def use_worker_number() -> None:
    """In a worker, before any metric is made: keep them under the name of its place."""
    number = os.environ.get(WORKER_NUMBER)
    if number is not None and is_installed("prometheus_client"):
        from prometheus_client import values

        values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]
