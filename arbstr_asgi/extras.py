"""What needs a package that not everybody has installed; each is imported where it is asked for."""

import importlib.util
from typing import TYPE_CHECKING

from arbstr_asgi.config import Config

if TYPE_CHECKING:
    from arbstr_asgi.metrics import Metrics


def installed(package: str) -> bool:
    """Whether there is such a package; nothing of it is imported."""
    return importlib.util.find_spec(package) is not None


def metrics_of(config: Config) -> "Metrics | None":
    """The metrics of a gateway, where prometheus-client is installed."""
    if not installed("prometheus_client"):
        return None
    from arbstr_asgi.metrics import Metrics

    return Metrics(config)
