"""What can still be written of a row that the database refuses: who, which model, when and how long, and why not all.

Nothing is dropped in silence: a row without its counts still says that there was a call.
"""

from arbstr_asgi.ledger import values
from arbstr_asgi.ledger.columns import COLUMNS
from arbstr_asgi.ledger.values import Record

LEVELS = 2  # how often a row can be refused and cut down again

_NAMES = tuple(column.name for column in COLUMNS)
_LAST = {"correlation_id", "timestamp", "streaming", "success", "end_reason", "attempts", "worker_id", "revision"}
_KEPT = _LAST | {
    *("model", "provider", "policy", "end_user", "tenant"),
    *("latency_ms", "ttft_ms", "stream_duration_ms", "error_status", "disconnect"),
}
_REFUSED = "(refused)"


def degraded_record(record: Record, level: int, reason: str) -> Record:
    """The record cut down: at level 1 to identity, model and timing; at level 2 to what no client had a word in.

    The attempts, of which nothing is anybody's text but the model, stay at level 1.
    """
    keep = _KEPT if level == 1 else _LAST
    known = {name: value if name in keep else None for name, value in zip(_NAMES, record.row, strict=True)}
    known["usage_source"] = "none"
    known["model"] = _REFUSED if known["model"] is None else known["model"]
    known["error_message"] = values.text(f"degraded: {reason}", 500)
    return Record(tuple(known.values()), record.attempts if level == 1 else ())
