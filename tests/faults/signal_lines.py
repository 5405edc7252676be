"""Lines in which the server itself is told to end, or killed."""

import asyncio
import os
import signal
from asyncio import sleep, to_thread
from typing import Any

from tests.faults.calls import Call, now
from tests.faults.lines import NAMES, for_each, line, times
from tests.faults.load import opened
from tests.faults.scene import Scene
from tests.faults.stage import Stage

FILES = 256  # fewer than 200 streams need; `arbstr serve` takes what the hard limit allows
SPELL = 5  # rounds with the database, and then as many without
EARLY = 4  # so often a server is killed while it starts, and migrates or replays


def _answered(scene: Scene, call: Call) -> bool:
    """The client has seen a part and an end."""
    return bool(call.seen) and bool(call.ended)


async def _many_streams(stage: Stage, **server: Any) -> None:
    streams, grace = stage.pick(40, 200), stage.pick(2.0, 3.0)
    short = streams // 5
    stage.result.how = f"{streams} open streams, of which {short} end within the grace of {grace:g} s"
    async with stage.scene("sqlite", every=False, answered=_answered, grace=grace, **server) as scene:
        scene.calls = [Call(ending="open", counts=True, events=200, pace=0.2) for _ in range(streams - short)]
        scene.calls += [Call(counts=True, events=round(grace * 2), pace=0.2) for _ in range(short)]
        tasks = await opened(scene.url, scene.calls)
        await scene.terminate()
        await asyncio.gather(*tasks)
        whole = sum(call.whole for call in scene.calls)
        if whole != short:
            scene.problems.append(f"{whole} streams ended well, {short} could")
        untold = sum(not call.whole and not _told(call) for call in scene.calls)
        if untold and "program" not in server:
            scene.problems.append(f"{untold} clients were not told")


def _told(call: Call) -> bool:
    return call.wire is not None and call.wire.clean is True and b'"code": "shutdown"' in call.wire.body


@line("sigterm", "SIGTERM to `arbstr serve`")
async def sigterm(stage: Stage) -> None:
    """One process."""
    await _many_streams(stage, files=FILES)


@line("sigterm-workers", "SIGTERM to `arbstr serve -w 3`")
async def sigterm_workers(stage: Stage) -> None:
    """Three workers and their supervisor."""
    await _many_streams(stage, files=FILES, workers=3)


@line("sigterm-uvicorn", "SIGTERM to uvicorn")
async def sigterm_uvicorn(stage: Stage) -> None:
    """A server that only cancels, and then raises the signal again."""
    options = ("--timeout-graceful-shutdown", f"{stage.pick(2, 3)}")
    await _many_streams(stage, program="uvicorn", options=options, status=-signal.SIGTERM)


async def _rounds(stage: Stage, scene: Scene, *, kill: bool) -> None:
    """Start, and end at a random moment; clients call all the time, and the database comes and goes."""
    first = stage.pick(stage.random.choice((0, SPELL)), 0)  # a single one has the database by chance
    async with scene.load():
        for number in range(first, first + stage.pick(1, 20)):
            if number % SPELL == 0:
                await to_thread(scene.ledger.down if number // SPELL % 2 else scene.ledger.up)
            if kill and number % EARLY == stage.pick(stage.random.randrange(EARLY), 0):
                await scene.start(until_up=False)
                await sleep(stage.random.uniform(0.0, 1.0))
                await scene.kill()
            await scene.start()
            await sleep(stage.random.uniform(*stage.pick((0.5, 0.9), (0.0, 1.2))))
            await (scene.kill() if kill else scene.terminate())
        await to_thread(scene.ledger.up)
        await scene.start()
        await sleep(0.3)


async def _ended(stage: Stage, dialect: str, *, kill: bool, strict: bool = False) -> None:
    how = stage.pick("once", "10 times with the database and 10 times without")
    stage.result.how = f"at a random moment under load, {how}"
    if kill:
        stage.result.how += f", and {times(stage.pick(1, 5))} within the start"
        what = "every whole answer counts" if strict else "what was whole 250 ms before counts"
        stage.result.how += f"; {what}"
    async with stage.scene(dialect, strict=strict, start=False, every=False, grace=1.0) as scene:
        await _rounds(stage, scene, kill=kill)


@for_each(tuple(NAMES), "sigkill", "and SIGKILL to the server")
async def killed(stage: Stage, dialect: str) -> None:
    """What is not on disk is gone."""
    await _ended(stage, dialect, kill=True)


@for_each(tuple(NAMES), "sigkill-strict", "and SIGKILL to the server, strict")
async def killed_strict(stage: Stage, dialect: str) -> None:
    """Nothing is gone that a client has seen whole."""
    await _ended(stage, dialect, kill=True, strict=True)


@for_each(tuple(NAMES), "sigterm-random", "and SIGTERM to the server")
async def terminated(stage: Stage, dialect: str) -> None:
    """Nothing is gone at all."""
    await _ended(stage, dialect, kill=False)


@line("worker-killed", "SIGKILL to one of three workers")
async def worker_killed(stage: Stage) -> None:
    """Its supervisor replaces it; the others go on."""
    rounds = stage.pick(1, 5)
    stage.result.how = f"under load, {times(rounds)}; what was whole 250 ms before counts"
    dialect = stage.pick("sqlite", "postgresql")
    async with stage.scene(dialect, workers=3, every=False) as scene, scene.load():
        for number in range(rounds):
            await sleep(stage.random.uniform(0.2, 1.0))
            workers = scene.server.workers()
            scene.kills.append(now())
            os.kill(workers[-3:][number % 3], signal.SIGKILL)
            await scene.server.until_said("Running on", 4 + number)
        await sleep(0.3)
