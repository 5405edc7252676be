"""What needs a package that not everybody has installed; each is imported where it is asked for."""

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

from arbstr_asgi.config.config import Config
from arbstr_asgi.entry import LedgerEntry
from arbstr_asgi.errors import ConfigError

if TYPE_CHECKING:
    from arbstr_asgi.estimating.estimator import Estimator
    from arbstr_asgi.estimating.tokens import Tokenizer
    from arbstr_asgi.metrics.metrics import Metrics


def is_installed(package: str) -> bool:
    """Whether there is such a package; nothing of it is imported."""
    return importlib.util.find_spec(package) is not None


def create_metrics(config: Config) -> "Metrics | None":
    """The metrics of a gateway, where prometheus-client is installed."""
    if not is_installed("prometheus_client"):
        return None
    from arbstr_asgi.metrics.metrics import Metrics

    return Metrics(config)


def check_extras(config: Config) -> None:
    """Raises ConfigError where the configuration asks for what is not installed."""
    if config.estimates and not is_installed("bpe_openai"):
        raise ConfigError('estimates: needs bpe-openai: pip install "arbstr-asgi[estimate]"')


def create_estimator(
    config: Config, record: Callable[[LedgerEntry], None], metrics: "Metrics | None"
) -> "Estimator | None":
    """What estimates the tokens of calls without usage, if the configuration wants that; its thread has begun to load.

    It hands what it finds to `record`, and to the metrics where there are any.
    """
    if not config.estimates:
        return None
    from arbstr_asgi.estimating.estimator import Estimator

    def estimated(entry: LedgerEntry) -> None:
        record(entry)
        if metrics is not None:
            metrics.estimated(entry)

    return Estimator(estimated, _tokenizer)


def _tokenizer() -> "Tokenizer":
    from arbstr_asgi.estimating.tokens import Tokenizer

    return Tokenizer()
