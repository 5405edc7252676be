"""The write queue: entries, usage updates and flush markers, first in, first out."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

import msgspec

from arbstr_asgi.database import values
from arbstr_asgi.database.records import IN_FLIGHT, LedgerEntry, PendingEntry
from arbstr_asgi.errors import LedgerError

Resolve = Callable[[int | LedgerError], None]


@dataclass(frozen=True, slots=True, eq=False)
class UsageUpdate:
    """An UPDATE of three columns of one row; `resolve` gets the number of rows matched, or the LedgerError."""

    correlation_id: str
    input_tokens: int | None
    output_tokens: int | None
    cost_sats: Decimal | None
    resolve: Resolve

    @classmethod
    def create(
        cls,
        correlation_id: str,
        input_tokens: int | None,
        output_tokens: int | None,
        cost_sats: Decimal | None,
        resolve: Resolve,
    ) -> "UsageUpdate":
        """With normalised values."""
        tokens = values.integer(input_tokens), values.integer(output_tokens)
        return cls(values.identifier(correlation_id), *tokens, values.money(cost_sats), resolve)


@dataclass(frozen=True, slots=True, eq=False)
class FlushMarker:
    """`resolve` gets 0 when everything queued before is committed; with `spilled`, when it is committed or spilled."""

    resolve: Resolve
    spilled: bool = False


Item = LedgerEntry | PendingEntry | UsageUpdate | FlushMarker
# Item, time queued (monotonic seconds), size in bytes; a plain tuple, since each state of each call makes one.
Waiting = tuple[Item, float, int]


class QueuedBatch(NamedTuple):
    """Items taken from the queue, to be carried out in this order: entries, updates, markers."""

    entries: list[LedgerEntry | PendingEntry]
    updates: list[UsageUpdate]
    markers: list[FlushMarker]
    since: float
    size: int


class WriteQueue:
    """A thread-safe FIFO; several states of one call are merged when they are taken together."""

    def __init__(self) -> None:
        self._waiting: deque[Waiting] = deque()
        self._lock = threading.Lock()
        self.size = 0  # bytes, about

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def since(self) -> float | None:
        """When the oldest item was queued, in monotonic seconds."""
        try:
            return self._waiting[0][1]
        except IndexError:
            return None

    def add(self, item: Item, since: float) -> int:
        """Append an item queued at `since`; returns the length of the queue."""
        size = size_in_bytes(item)
        with self._lock:
            self._waiting.append((item, since, size))
            self.size += size
            return len(self._waiting)

    def take(self, limit: int) -> QueuedBatch:
        """Remove at most `limit` items from the front, sorted as `QueuedBatch` says.

        The order has no effect on the result: an entry that follows an update of the same call is left for the next
        batch.
        """
        with self._lock:
            batch, count = _sort(self._waiting, limit)
            for _ in range(count):
                self._waiting.popleft()
            self.size -= batch.size
        return batch

    def clear(self) -> list[Item]:
        """Remove and return all items."""
        with self._lock:
            items = [item for item, _, _ in self._waiting]
            self._waiting.clear()
            self.size = 0
        return items


def _sort(waiting: Sequence[Waiting], limit: int) -> tuple[QueuedBatch, int]:
    entries: dict[str, LedgerEntry | PendingEntry] = {}
    updates: list[UsageUpdate] = []
    markers: list[FlushMarker] = []
    updated: set[str] = set()
    count = size = 0
    for count in range(min(limit, len(waiting))):
        item, _, item_size = waiting[count]
        if isinstance(item, UsageUpdate):
            updates.append(item)
            updated.add(item.correlation_id)
        elif isinstance(item, FlushMarker):
            markers.append(item)
        else:
            if item.correlation_id in updated:
                break
            pending = entries.get(item.correlation_id)
            entries[item.correlation_id] = item if pending is None else merge_states(pending, item)
        size += item_size
    else:
        count = min(limit, len(waiting))
    return QueuedBatch(list(entries.values()), updates, markers, waiting[0][1] if count else 0.0, size), count


def merge_states(pending: LedgerEntry | PendingEntry, other: LedgerEntry | PendingEntry) -> LedgerEntry | PendingEntry:
    """The newer of two states of a call; an entry is newer than a pending one."""
    if not isinstance(other, LedgerEntry):
        return pending
    return newer_state(pending, other) if isinstance(pending, LedgerEntry) else other


def newer_state(pending: LedgerEntry, other: LedgerEntry) -> LedgerEntry:
    """The state that the upsert would keep (see `statements`)."""
    if other.revision > pending.revision:
        return other
    if pending.end_reason in IN_FLIGHT and other.end_reason not in IN_FLIGHT:
        return msgspec.structs.replace(other, revision=pending.revision)
    return pending


def size_in_bytes(item: Item) -> int:
    """About how many bytes an item takes in memory."""
    if not isinstance(item, LedgerEntry):
        return 1500  # an upper bound for a pending entry
    return 1000 + 500 * len(item.tries) + len(item.model) + len(item.tags or "") + len(item.usage_json or "")


def make_future() -> tuple[Resolve, "asyncio.Future[int]"]:
    """A future, and the callback that sets its result or exception, unless it was cancelled."""
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def resolve(outcome: int | LedgerError) -> None:
        if future.done():
            return
        if isinstance(outcome, LedgerError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    return resolve, future
