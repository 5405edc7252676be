"""What all calls share."""

from collections.abc import Awaitable, Callable, Mapping

import msgspec

from arbstr_asgi.asking import Asking
from arbstr_asgi.breaker import Breakers
from arbstr_asgi.config.config import Config
from arbstr_asgi.drains import Drains
from arbstr_asgi.entry import Call, Entry
from arbstr_asgi.estimating.estimator import Estimator
from arbstr_asgi.headers import Passage
from arbstr_asgi.matching import Matcher


class Desk(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration, the way out, the caps, what is known of the providers, and where rows go."""

    config: Config
    asking: Asking
    drains: Drains
    passages: Mapping[str, Passage]
    """By the names of the providers."""
    matcher: Matcher
    breakers: Breakers
    follow: Callable[[Call], None]
    """Records the first state of a call, as it is when it comes to be written."""
    record: Callable[[Entry], None]
    worker_id: str
    commit: Callable[[Entry], Awaitable[None]] | None = None
    """Records, and returns once the row is durable or has been waited for long enough; None: nobody waits."""
    estimator: Estimator | None = None
    """Takes over what has ended without usage; None: that stays so."""
    measure: Callable[[Entry, float], None] | None = None
    """Is told of each call that has ended, once, and how many seconds it took."""
