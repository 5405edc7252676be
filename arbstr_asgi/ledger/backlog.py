"""What waits to be written: entries, usage updates and flush marks, in the order in which they came."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

import msgspec

from arbstr_asgi.entry import OPEN, Call, Entry
from arbstr_asgi.errors import LedgerError
from arbstr_asgi.ledger import values

Settle = Callable[[int | LedgerError], None]


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """Three columns of one row; `settle` hears the number of rows matched, after the commit, or what prevented it."""

    correlation_id: str
    input_tokens: int | None
    output_tokens: int | None
    cost_sats: Decimal | None
    settle: Settle

    @classmethod
    def of(
        cls,
        correlation_id: str,
        input_tokens: int | None,
        output_tokens: int | None,
        cost_sats: Decimal | None,
        settle: Settle,
    ) -> "Update":
        """With its values made fit for every database."""
        tokens = values.integer(input_tokens), values.integer(output_tokens)
        return cls(values.identifier(correlation_id), *tokens, values.money(cost_sats), settle)


@dataclass(frozen=True, slots=True, eq=False)
class Mark:
    """`settle` hears 0 when everything before it is committed; with `spilled`, when it is committed or spilled."""

    settle: Settle
    spilled: bool = False


Item = Entry | Call | Update | Mark

# An item, when it came (seconds of the monotonic clock) and about how many bytes it keeps; a plain tuple, since one is
# made for each state of each call.
Waiting = tuple[Item, float, int]


class Taken(NamedTuple):
    """A part of the backlog, to be carried out in this order: entries, updates, marks; calls are asked for theirs."""

    entries: list[Entry | Call]
    updates: list[Update]
    marks: list[Mark]
    since: float
    size: int


class Backlog:
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
        size = weight(item)
        with self._lock:
            self._waiting.append((item, since, size))
            self.size += size
            return len(self._waiting)

    def take(self, limit: int) -> Taken:
        """At most `limit` items from the front, to be carried out in the order of `Taken`.

        That order changes nothing: an entry that follows an update of the same call is left for the next time.
        """
        with self._lock:
            taken, count = _sort(self._waiting, limit)
            for _ in range(count):
                self._waiting.popleft()
            self.size -= taken.size
        return taken

    def clear(self) -> list[Item]:
        """Everything, as it came."""
        with self._lock:
            items = [item for item, _, _ in self._waiting]
            self._waiting.clear()
            self.size = 0
        return items


def weight(item: Item) -> int:
    """About how many bytes an item keeps in memory."""
    if not isinstance(item, Entry):
        return 1500  # what a call will say of itself, or less
    return 1000 + 500 * len(item.tries) + len(item.model) + len(item.tags or "") + len(item.usage_json or "")


def _sort(waiting: Sequence[Waiting], limit: int) -> tuple[Taken, int]:
    entries: dict[str, Entry | Call] = {}
    updates: list[Update] = []
    marks: list[Mark] = []
    updated: set[str] = set()
    count = size = 0
    for count in range(min(limit, len(waiting))):
        item, _, weighs = waiting[count]
        if isinstance(item, Update):
            updates.append(item)
            updated.add(item.correlation_id)
        elif isinstance(item, Mark):
            marks.append(item)
        else:
            if item.correlation_id in updated:
                break
            known = entries.get(item.correlation_id)
            entries[item.correlation_id] = item if known is None else _one_of(known, item)
        size += weighs
    else:
        count = min(limit, len(waiting))
    return Taken(list(entries.values()), updates, marks, waiting[0][1] if count else 0.0, size), count


def _one_of(known: Entry | Call, other: Entry | Call) -> Entry | Call:
    """What of two is to be written; a call knows no more than its entry does."""
    if not isinstance(other, Entry):
        return known
    return newer(known, other) if isinstance(known, Entry) else other


def newer(known: Entry, other: Entry) -> Entry:
    """The state that stays, by the rule of the upsert (see `statements`)."""
    if other.revision > known.revision:
        return other
    if known.end_reason in OPEN and other.end_reason not in OPEN:
        return msgspec.structs.replace(other, revision=known.revision)
    return known


def promise() -> tuple[Settle, "asyncio.Future[int]"]:
    """A future and what settles it, unless its caller has gone."""
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def settle(outcome: int | LedgerError) -> None:
        if future.done():
            return
        if isinstance(outcome, LedgerError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    return settle, future
