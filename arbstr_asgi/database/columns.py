"""Columns of the ledger tables, in table order; the tables themselves are created in `migrations/`."""

from enum import Enum
from typing import NamedTuple

from arbstr_asgi._utils import MAX_NAME_CHARACTERS


class Kind(Enum):
    """The data type of a column, independent of the database."""

    IDENTIFIER = "printable ASCII, cut to a number of characters"
    TEXT = "text, cut to a number of characters"
    NAME = "text, stored as it is or not at all"
    DOCUMENT = "text, cut to a number of bytes"
    INTEGER = "64 bits, signed"
    REAL = "a finite double"
    MONEY = "24 digits, 9 of them decimals"
    BOOLEAN = "true or false"
    TIMESTAMP = "UTC, milliseconds"


class Column(NamedTuple):
    """One column; `name` is also the attribute of `LedgerEntry` or `AttemptEntry`, `length` its limit (0: none)."""

    name: str
    kind: Kind
    length: int = 0
    required: bool = False


Columns = tuple[Column, ...]

COLUMNS: Columns = (
    Column("correlation_id", Kind.IDENTIFIER, 36, required=True),
    Column("timestamp", Kind.TIMESTAMP, required=True),
    Column("model", Kind.TEXT, 255, required=True),
    Column("provider", Kind.TEXT, 255),
    Column("policy", Kind.TEXT, 255),
    Column("streaming", Kind.BOOLEAN, required=True),
    Column("input_tokens", Kind.INTEGER),
    Column("output_tokens", Kind.INTEGER),
    Column("cost_sats", Kind.MONEY),
    Column("provider_cost_sats", Kind.MONEY),
    Column("latency_ms", Kind.INTEGER),
    Column("stream_duration_ms", Kind.INTEGER),
    Column("success", Kind.BOOLEAN, required=True),
    Column("error_status", Kind.INTEGER),
    Column("error_message", Kind.TEXT, 500),
    Column("complexity_score", Kind.REAL),
    Column("tier", Kind.TEXT, 255),
    Column("end_user", Kind.NAME, MAX_NAME_CHARACTERS),
    Column("tenant", Kind.NAME, MAX_NAME_CHARACTERS),
    Column("tags", Kind.DOCUMENT, 4096),
    Column("response_model", Kind.TEXT, 255),
    Column("response_id", Kind.TEXT, 255),
    Column("finish_reason", Kind.TEXT, 255),
    Column("service_tier", Kind.TEXT, 255),
    Column("total_tokens", Kind.INTEGER),
    Column("cached_tokens", Kind.INTEGER),
    Column("cache_write_tokens", Kind.INTEGER),
    Column("reasoning_tokens", Kind.INTEGER),
    Column("usage_json", Kind.DOCUMENT, 4096),
    Column("usage_source", Kind.TEXT, 32, required=True),
    Column("end_reason", Kind.TEXT, 32, required=True),
    Column("disconnect", Kind.TEXT, 32),
    Column("provider_cost_usd", Kind.MONEY),
    Column("ttft_ms", Kind.INTEGER),
    Column("attempts", Kind.INTEGER, required=True),
    Column("worker_id", Kind.TEXT, 64),
    Column("revision", Kind.INTEGER, required=True),
    Column("dearest_cost_sats", Kind.MONEY),
    Column("provider_model", Kind.TEXT, 255),
    Column("sent_ms", Kind.INTEGER),
)
FIRST_COLUMNS = COLUMNS[:-3]  # as revision 0001 made them


ATTEMPT_COLUMNS: Columns = (
    Column("correlation_id", Kind.IDENTIFIER, 36, required=True),
    Column("number", Kind.INTEGER, required=True),
    Column("provider", Kind.TEXT, 255, required=True),
    Column("timestamp", Kind.TIMESTAMP, required=True),
    Column("model", Kind.TEXT, 255, required=True),
    Column("status", Kind.INTEGER),
    Column("latency_ms", Kind.INTEGER),
    Column("input_tokens", Kind.INTEGER),
    Column("output_tokens", Kind.INTEGER),
    Column("cost_sats", Kind.MONEY),
    Column("maybe_billed", Kind.BOOLEAN, required=True),
    Column("error_message", Kind.TEXT, 500),
    Column("revision", Kind.INTEGER, required=True),
)

HISTOGRAMS = ("latency_ms", "ttft_ms", "stream_duration_ms")
ROLLUP_COLUMNS = ("period", "dimensions", "start", "key1", "key2", "total", "sums", *HISTOGRAMS)


def positions(columns: Columns, *kinds: Kind) -> tuple[int, ...]:
    """Indexes, in a row, of the columns of these kinds."""
    return tuple(index for index, column in enumerate(columns) if column.kind in kinds)
