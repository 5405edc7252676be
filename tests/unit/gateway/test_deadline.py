"""Leaving a block from outside, and only then."""

import asyncio

import pytest

from arbstr_asgi.gateway.deadline import Deadline


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
