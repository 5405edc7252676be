"""Leaving a block from outside, and only then."""

import asyncio
from typing import Any

import pytest

from arbstr_asgi.gateway.deadline import Deadline, DeadlineTimer


def test_fire() -> None:
    """Firing ends the block, the reason is known, and the task is not left cancelled."""

    async def main() -> None:
        interrupt = Deadline()
        with interrupt:
            asyncio.get_running_loop().call_later(0.01, interrupt.cancel, "why")
            await asyncio.sleep(5)
        assert interrupt.reason == "why"
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)

    asyncio.run(main())


def test_first_reason_counts() -> None:
    """A second firing, or one after the block, changes nothing."""

    async def main() -> None:
        interrupt = Deadline()
        with interrupt:
            interrupt.cancel("first")
            interrupt.cancel("second")
            await asyncio.sleep(5)
        interrupt.cancel("third")
        assert interrupt.reason == "first"
        await asyncio.sleep(0)

    asyncio.run(main())


def test_foreign_cancellation_passes() -> None:
    """A cancellation that is not ours goes on."""

    async def main() -> None:
        with Deadline():
            await asyncio.sleep(5)

    async def cancelled() -> None:
        task = asyncio.create_task(main())
        await asyncio.sleep(0.01)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())


def test_both_cancellations() -> None:
    """When both come at once, the foreign one still goes on."""

    async def main(interrupt: Deadline) -> None:
        with interrupt:
            await asyncio.sleep(5)

    async def cancelled() -> None:
        interrupt = Deadline()
        task = asyncio.create_task(main(interrupt))
        await asyncio.sleep(0.01)
        interrupt.cancel("ours")
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())


def test_exception_passes() -> None:
    """An error in the block is raised on, fired or not."""

    async def main() -> None:
        interrupt = Deadline()
        with interrupt:
            interrupt.cancel("why")
            raise KeyError

    with pytest.raises(KeyError):
        asyncio.run(main())


def test_deadline_and_touch() -> None:
    """A touched deadline does not fire, an untouched one does, and a paused one waits for the total."""

    async def main() -> None:
        interrupt = Deadline()
        with interrupt:
            interrupt.start(0.05)
            for _ in range(8):
                await asyncio.sleep(0.02)
                interrupt.extend(interrupt.now() + 0.05)
            assert interrupt.reason is None
            await asyncio.sleep(5)
        assert interrupt.reason == "timeout"
        paused = Deadline()
        with paused:
            paused.start(0.02)
            paused.extend(float("inf"))
            paused.limit_total(0.1, "drained")
            await asyncio.sleep(5)
        assert paused.reason == "drained"

    asyncio.run(asyncio.wait_for(main(), 4))


class CountingLoop(asyncio.SelectorEventLoop):
    """An event loop that counts the timers it is asked for."""

    timers = 0

    def call_at(self, *arguments: Any, **options: Any) -> Any:
        """Count, and schedule."""
        self.timers += 1
        return super().call_at(*arguments, **options)


def test_many_deadlines_share_one_timer() -> None:
    """A hundred blocks with deadlines and calls for later ask the loop for a few timers, and none stays behind."""
    loop = CountingLoop()

    async def main() -> None:
        timer = DeadlineTimer(loop)
        for _ in range(100):
            with Deadline(timer) as deadline:
                deadline.call_later(0.5, lambda: None)
                deadline.start(30.0)
        assert loop.timers < 5
        timer.close()

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main())
    assert not [handle for handle in loop._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]


def test_calls_for_later() -> None:
    """What is to be called later is called once, in time, and not after its block has been left."""

    async def main() -> None:
        timer, called, second = DeadlineTimer(asyncio.get_running_loop()), [], asyncio.Event()
        with Deadline(timer) as deadline:
            deadline.start(30.0)
            deadline.call_later(0.02, lambda: called.append("first"))
            deadline.call_later(30.0, lambda: called.append("late"))
            deadline.call_later(0.06, lambda: (called.append("second"), second.set()))
            await asyncio.wait_for(second.wait(), 5.0)
        with Deadline(timer) as left:
            left.call_later(0.0, lambda: called.append("left"))
        await asyncio.sleep(0.05)
        assert called == ["first", "second"]
        timer.close()

    asyncio.run(main())


def test_each_is_ended_by_its_own_deadline() -> None:
    """Of blocks that share a timer each is left at its own time, whatever the others do."""

    async def ends(timer: DeadlineTimer, seconds: float, ended: list[float]) -> None:
        with Deadline(timer) as deadline:
            deadline.start(seconds)
            await asyncio.sleep(5)
        assert deadline.reason == "timeout"
        ended.append(seconds)

    async def main() -> None:
        timer, ended = DeadlineTimer(asyncio.get_running_loop()), []
        await asyncio.gather(*(ends(timer, seconds, ended) for seconds in (0.3, 0.1, 0.2)))
        assert ended == [0.1, 0.2, 0.3]
        timer.close()

    asyncio.run(asyncio.wait_for(main(), 4))
