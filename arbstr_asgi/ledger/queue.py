"""What waits to be written: entries, usage updates and flush marks, in the order in which they came."""

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
    """Three columns of one row; `settle` hears the number of rows matched, after the commit, or what prevented it."""

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
        """With its values made fit for every database."""
        tokens = values.integer(input_tokens), values.integer(output_tokens)
        return cls(values.identifier(correlation_id), *tokens, values.money(cost_sats), resolve)


@dataclass(frozen=True, slots=True, eq=False)
class FlushMarker:
    """`settle` hears 0 when everything before it is committed; with `spilled`, when it is committed or spilled."""

    resolve: Resolve
    spilled: bool = False


Item = LedgerEntry | PendingEntry | UsageUpdate | FlushMarker

# An item, when it came (seconds of the monotonic clock) and about how many bytes it keeps; a plain tuple, since one is
# made for each state of each call.
Waiting = tuple[Item, float, int]


class QueuedBatch(NamedTuple):
    """A part of the backlog, to be carried out in this order: entries, updates, marks; calls are asked for theirs."""

    entries: list[LedgerEntry | PendingEntry]
    updates: list[UsageUpdate]
    markers: list[FlushMarker]
    since: float
    size: int


class WriteQueue:
    """First in, first out; several states of one call become one when they are taken together. For any thread."""

    def __init__(self) -> None:
        self._waiting: deque[Waiting] = deque()
        self._lock = threading.Lock()
        self.size = 0  # bytes, about

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def since(self) -> float | None:
        """When the oldest item came."""
        try:
            return self._waiting[0][1]
        except IndexError:
            return None

    def add(self, item: Item, since: float) -> int:
        """Append; returns how many wait now."""
        size = size_in_bytes(item)
        with self._lock:
            self._waiting.append((item, since, size))
            self.size += size
            return len(self._waiting)

    def take(self, limit: int) -> QueuedBatch:
        """At most `limit` items from the front, to be carried out in the order of `Taken`.

        That order changes nothing: an entry that follows an update of the same call is left for the next time.
        """
        with self._lock:
            batch, count = _sort(self._waiting, limit)
            for _ in range(count):
                self._waiting.popleft()
            self.size -= batch.size
        return batch

    def clear(self) -> list[Item]:
        """Everything, as it came."""
        with self._lock:
            items = [item for item, _, _ in self._waiting]
            self._waiting.clear()
            self.size = 0
        return items


def size_in_bytes(item: Item) -> int:
    """About how many bytes an item keeps in memory."""
    if not isinstance(item, LedgerEntry):
        return 1500  # what a call will say of itself, or less
    return 1000 + 500 * len(item.tries) + len(item.model) + len(item.tags or "") + len(item.usage_json or "")


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
    """What of two is to be written; a call knows no more than its entry does."""
    if not isinstance(other, LedgerEntry):
        return pending
    return newer_state(pending, other) if isinstance(pending, LedgerEntry) else other


def newer_state(pending: LedgerEntry, other: LedgerEntry) -> LedgerEntry:
    """The state that stays, by the rule of the upsert (see `statements`)."""
    if other.revision > pending.revision:
        return other
    if pending.end_reason in IN_FLIGHT and other.end_reason not in IN_FLIGHT:
        return msgspec.structs.replace(other, revision=pending.revision)
    return pending


def make_future() -> tuple[Resolve, "asyncio.Future[int]"]:
    """A future and what settles it, unless its caller has gone."""
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def resolve(outcome: int | LedgerError) -> None:
        if future.done():
            return
        if isinstance(outcome, LedgerError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    return resolve, future
