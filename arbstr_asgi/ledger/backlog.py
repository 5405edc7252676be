"""What waits to be written: entries, usage updates and flush marks, in the order in which they came."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

import msgspec

from arbstr_asgi.entry import Entry
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
    """`settle` hears 0 when everything before it is committed."""

    settle: Settle


Waiting = Entry | Update | Mark


class Backlog:
    """First in, first out; several states of one call become one when they are taken together."""

    def __init__(self) -> None:
        self._waiting: deque[Waiting] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, item: Waiting) -> None:
        """Append."""
        self._waiting.append(item)

    def clear(self) -> list[Waiting]:
        """Everything, as it came."""
        return [self._waiting.popleft() for _ in range(len(self._waiting))]

    def take(self, limit: int) -> tuple[list[Entry], list[Update], list[Mark]]:
        """At most `limit` items from the front, to be carried out in this order: entries, updates, marks.

        That order changes nothing: an entry that follows an update of the same call is left for the next time.
        """
        entries: dict[str, Entry] = {}
        updates: list[Update] = []
        marks: list[Mark] = []
        updated: set[str] = set()
        for _ in range(min(limit, len(self._waiting))):
            item = self._waiting[0]
            if isinstance(item, Entry):
                if item.correlation_id in updated:
                    break
                known = entries.get(item.correlation_id)
                entries[item.correlation_id] = item if known is None else newer(known, item)
            elif isinstance(item, Update):
                updates.append(item)
                updated.add(item.correlation_id)
            else:
                marks.append(item)
            self._waiting.popleft()
        return list(entries.values()), updates, marks


def newer(known: Entry, other: Entry) -> Entry:
    """The state that stays, by the rule of the upsert (see `statements`)."""
    if other.revision > known.revision:
        return other
    if known.end_reason == "in_flight" and other.end_reason != "in_flight":
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
