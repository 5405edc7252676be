"""What all calls share."""

from collections.abc import Awaitable, Callable, Mapping

import msgspec

from arbstr_asgi.asking import ProviderAttempt
from arbstr_asgi.breaker import CircuitBreakers
from arbstr_asgi.config.config import Config
from arbstr_asgi.drains import DrainLimiter
from arbstr_asgi.entry import PendingEntry, LedgerEntry
from arbstr_asgi.estimating.estimator import Estimator
from arbstr_asgi.headers import HeaderPolicy
from arbstr_asgi.matching import PolicyMatcher


class CallDependencies(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration, the way out, the caps, what is known of the providers, and where rows go."""

    config: Config
    attempt: ProviderAttempt
    drains: DrainLimiter
    header_policies: Mapping[str, HeaderPolicy]
    """By the names of the providers."""
    matcher: PolicyMatcher
    breakers: CircuitBreakers
    record_started: Callable[[PendingEntry], None]
    """Records the first state of a call, as it is when it comes to be written."""
    record: Callable[[LedgerEntry], None]
    worker_id: str
    commit: Callable[[LedgerEntry], Awaitable[None]] | None = None
    """Records, and returns once the row is durable or has been waited for long enough; None: nobody waits."""
    estimator: Estimator | None = None
    """Takes over what has ended without usage; None: that stays so."""
    on_finish: Callable[[LedgerEntry, float], None] | None = None
    """Is told of each call that has ended, once, and how many seconds it took."""
