"""What the writer has taken and not committed yet: rows, usage updates and marks, in chunks."""

import logging
from collections import deque
from typing import Any

from arbstr_asgi.errors import LedgerError
from arbstr_asgi.ledger import values
from arbstr_asgi.ledger.backlog import Backlog, Mark, Update
from arbstr_asgi.ledger.driver import Driver
from arbstr_asgi.ledger.losses import Losses
from arbstr_asgi.ledger.statements import Statements
from arbstr_asgi.ledger.values import Row

logger = logging.getLogger("arbstr_asgi.ledger")

Operation = Row | Update | Mark


class Hand:
    """Chunks in the order in which they are to be committed; one leaves only after its COMMIT."""

    def __init__(self, driver: Driver, statements: Statements, losses: Losses) -> None:
        self._driver = driver
        self._statements = statements
        self._losses = losses
        self._chunks: deque[list[Operation]] = deque()

    def __len__(self) -> int:
        return sum(map(len, self._chunks))

    def take(self, backlog: Backlog, limit: int) -> None:
        """Add one chunk of at most `limit` items from the backlog."""
        entries, updates, marks = backlog.take(limit)
        chunk: list[Operation] = []
        for entry in entries:
            try:
                chunk.append(values.normalise(entry))
            except Exception as error:  # noqa: BLE001 - one odd entry must not stop the others
                self._drop(entry.correlation_id, type(error).__name__)
        chunk += updates
        chunk += marks
        if chunk:
            self._chunks.append(chunk)

    async def write(self, raw: Any) -> None:
        """Commit the first chunk; instead of a chunk with a bad row its halves come next, until the row is alone.

        A bad row alone is dropped: logged with its id and the kind of reason, never with values. Any other trouble is
        raised, and the chunk stays.
        """
        chunk = self._chunks[0]
        try:
            counts = await self._commit(raw, chunk)
        except Exception as error:
            reason = self._driver.row_error(error)
            if reason is None:
                raise
            await self._driver.fetch(raw, "SELECT 1")  # if that fails too, the row is not to blame
            self._chunks.popleft()
            half = len(chunk) // 2
            if half:
                self._chunks.extendleft([chunk[half:], chunk[:half]])
            else:
                self._reject(chunk[0], reason)
        else:
            self._chunks.popleft()
            _settle(chunk, counts)

    def clear(self) -> list[Operation]:
        """Everything that is left."""
        left = [item for chunk in self._chunks for item in chunk]
        self._chunks.clear()
        return left

    async def _commit(self, raw: Any, chunk: list[Operation]) -> list[int]:
        driver, sql = self._driver, self._statements
        rows = [driver.encode(item) for item in chunk if isinstance(item, tuple)]
        updates = [
            (item.input_tokens, item.output_tokens, driver.money(item.cost_sats), item.correlation_id)
            for item in chunk
            if isinstance(item, Update)
        ]
        if not rows and not updates:
            return []
        async with driver.begin(raw):
            if rows:
                await driver.execute_many(raw, sql.upsert, rows)
            return [await driver.execute(raw, sql.update_usage, update) for update in updates]

    def _reject(self, item: Operation, reason: str) -> None:
        if isinstance(item, tuple):
            self._drop(item[0], reason)
        else:
            item.settle(LedgerError(f"refused by the database: {reason}"))

    def _drop(self, correlation_id: str, reason: str) -> None:
        logger.error("ledger: the row of %s was refused and dropped: %s", correlation_id, reason)
        self._losses.add(1, "refused by the database")


def _settle(chunk: list[Operation], counts: list[int]) -> None:
    waiting = iter(counts)
    for item in chunk:
        if isinstance(item, Update):
            item.settle(next(waiting))
        elif isinstance(item, Mark):
            item.settle(0)
