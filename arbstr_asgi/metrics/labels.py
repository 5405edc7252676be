"""The values that labels of metrics may have: none of them is text of a client's, so that their number is bounded."""

from arbstr_asgi.config.config import Config
from arbstr_asgi.entry import AttemptEntry, LedgerEntry

OTHER = "other"
NONE = "none"
_REASONS = {
    400: "malformed",
    401: "unauthorised",
    403: "forbidden",
    408: "too_slow",
    413: "too_large",
    415: "unsupported",
    503: "unavailable",
}


class Labels:
    """Tells the names of a configuration from those that clients make up."""

    def __init__(self, config: Config) -> None:
        self._models = frozenset(
            name
            for provider in config.providers
            for name in (*provider.models, *provider.aliases, *provider.model_rates)
        )

    def model(self, asked: str) -> str:
        """The model that a client asked for, if it is a configured one; else `other`."""
        return asked if asked in self._models else OTHER


def status_of(entry: LedgerEntry) -> str:
    """The class of the status that the client got, `none` where it left before there was one."""
    if entry.error_status is not None:
        return f"{entry.error_status // 100}xx"
    return NONE if entry.latency_ms is None else "2xx"


def outcome_of(attempt: AttemptEntry) -> str:
    """What came of an attempt: `ok`, `broken` (2xx, and an error behind it), another class of status, `no_answer`."""
    if attempt.status is None:
        return "no_answer"
    if not 200 <= attempt.status < 300:
        return f"{attempt.status // 100}xx" if 100 <= attempt.status < 600 else OTHER
    return "ok" if attempt.error_message is None else "broken"


def refusal_of(status: int) -> str:
    """Why a request was refused that has no row, by the status of the refusal."""
    return _REASONS.get(status, OTHER)
