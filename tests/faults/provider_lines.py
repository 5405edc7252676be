"""Lines in which the provider resets, stalls and garbles."""

import asyncio

from tests.faults.calls import Call
from tests.faults.lines import line
from tests.faults.scene import Scene
from tests.faults.stage import Stage

PATIENCE = 0.5  # seconds


def _told(scene: Scene, call: Call) -> bool:
    return call.told


async def _failing(stage: Stage, *endings: str) -> None:
    seconds = stage.pick(0.6, 10.0)

    def make(number: int) -> Call:
        kind = number // len(endings)
        ending = endings[number % len(endings)]
        patience = PATIENCE if ending == "stall" else 0.0
        return Call(streaming=kind % 3 != 0, counts=kind % 2 == 0, ending=ending, patience=patience)

    times = {"first_byte_timeout": 5.0, "idle_timeout": PATIENCE}
    async with stage.scene("sqlite", every=False, answered=_told, provider=times) as scene, scene.load(make):
        await asyncio.sleep(seconds)


@line("provider-resets", "The provider resets")
async def resets(stage: Stage) -> None:
    """Before its answer, and within it."""
    stage.result.how = "TCP resets before the head and in the middle of streams and plain replies, good calls between"
    await _failing(stage, "reset", "refuse", "whole")


@line("provider-stalls", "The provider stalls")
async def stalls(stage: Stage) -> None:
    """In the middle of a reply."""
    stage.result.how = f"silence in the middle of streams and plain replies, `idle_timeout = {PATIENCE:g}`"
    await _failing(stage, "stall", "whole")


@line("provider-garbles", "The provider garbles")
async def garbles(stage: Stage) -> None:
    """Rubbish instead of a chunk, and an end where none should be."""
    stage.result.how = "rubbish instead of a chunk, and bodies that end too soon, good calls between"
    await _failing(stage, "garble", "cut", "whole")
