"""Keeps the ledger in order: rolls up, rebuilds and prunes, in steps so small that nobody waits for one."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

from arbstr_asgi.errors import LedgerError
from arbstr_asgi.ledger.faults import describe_error
from arbstr_asgi.ledger.fragments import SqlDialect
from arbstr_asgi.ledger.removal import Retention
from arbstr_asgi.ledger.roller import STEP, RowsChanged, RollupBuilder
from arbstr_asgi.ledger.sessions import ConnectionTasks, Work
from arbstr_asgi.stats import Rebuilt
from arbstr_asgi.stats.plan import HOUR
from arbstr_asgi.stats.zones import bound, number_of, start_of

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Hears how much is done, and how much there is."""

_TRIES = 50  # for one hour that somebody keeps writing to
_SHORTEST_PAUSE = 0.01  # seconds


class Maintenance:
    """Each step on a connection of its own, with a pause behind it that is as long as the step was times `rest`."""

    def __init__(self, sessions: ConnectionTasks, fragments: SqlDialect, *, rest: float = 0.0) -> None:
        self._sessions = sessions
        self._rest = rest
        self._looked_for_coarse = False
        self._roller = RollupBuilder(sessions.driver, fragments)
        self._removal = Retention(sessions.driver, fragments)

    async def roll_up(self, proceed: Callable[[], Awaitable[bool]] | None = None) -> None:
        """Make all roll-ups that can be made, the newest first, as long as `proceed` agrees. Raises LedgerError."""
        hours = await self._step(lambda raw: self._roller.seal(raw, datetime.now(UTC)))
        failed: LedgerError | None = None
        for hour in hours:
            if proceed is not None and not await proceed():
                return
            try:
                await self._hour(hour, tries=1)
            except LedgerError as error:  # too large for a step, perhaps: the others must not wait for it
                failed = error
        if hours or not self._looked_for_coarse:
            await self._coarse()
            self._looked_for_coarse = True
        if failed is not None:
            raise failed

    async def rebuild(self, progress: Progress | None) -> Rebuilt:
        """Compute every closed hour again, and the longer periods. Raises LedgerError."""
        await self.roll_up()  # what has only been waiting for that is not wrong
        hours = await self._step(self._roller.closed_hours)
        differed = 0
        for done, hour in enumerate(hours):
            differed += await self._hour(hour, tries=_TRIES, again=True)
            if progress is not None:
                progress(done + 1, len(hours))
        await self._coarse()
        return Rebuilt(len(hours), differed)

    async def prune(self, before: datetime, progress: Progress | None) -> int:
        """Delete the rows of the whole, closed hours before; their roll-ups stay. Raises LedgerError."""
        await self._step(lambda raw: self._roller.seal(raw, datetime.now(UTC)))
        end = min(number_of(bound(before), HOUR), await self._step(lambda raw: self._roller.state(raw, "sealed")))
        for _ in range(_TRIES):
            for hour in await self._step(lambda raw: self._roller.dirty(raw, end)):
                await self._hour(hour, tries=_TRIES)
            if await self._step(lambda raw: self._roller.give_up(raw, end)):
                break
        else:
            raise LedgerError("rows can't be pruned: they are still being written to")
        until = start_of(end, HOUR)
        count = 0 if progress is None else await self._step(lambda raw: self._removal.count(raw, until))
        removed = 0
        while found := await self._step(lambda raw: self._removal.before(raw, until)):
            removed += found
            if progress is not None:
                progress(removed, max(count, removed))
        return removed

    async def forget(self, end_user: str) -> dict[str, int]:
        """Delete what is about a person from the database: rows, attempts and roll-ups. Raises LedgerError."""
        removed = {"requests": 0, "attempts": 0, "rollups": 0}
        while sum(found := await self._step(lambda raw: self._removal.of_person(raw, end_user))):
            removed["requests"] += found[0]
            removed["attempts"] += found[1]
        removed["rollups"] = await self._step(lambda raw: self._roller.forget(raw, end_user))
        return removed

    async def _hour(self, hour: int, *, tries: int, again: bool = False) -> bool:
        """Whether the roll-ups of an hour had been wrong; where it keeps changing, it stays dirty."""
        for _ in range(tries):
            try:
                if again:
                    await self._step(lambda raw: self._roller.mark(raw, [hour]))
                return await self._step(lambda raw: self._roller.hour(raw, hour, compare=again))
            except RowsChanged:
                await asyncio.sleep(_SHORTEST_PAUSE)
        return False

    async def _coarse(self) -> None:
        for each in await self._step(self._roller.coarse):
            try:
                await self._step(lambda raw, each=each: self._roller.period(raw, *each))  # type: ignore[misc]
            except RowsChanged:
                continue

    async def _step(self, work: Work[T]) -> T:
        begun = time.monotonic()
        try:
            found = await self._sessions.run(work, timeout=STEP)
        except (RowsChanged, LedgerError):
            raise
        except Exception as error:
            raise LedgerError(
                f"the database can't be tidied: {describe_error(error, self._sessions.database)}"
            ) from error
        await asyncio.sleep((time.monotonic() - begun) * self._rest)
        return found
